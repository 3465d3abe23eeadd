"""From an id to a verified model whose files are held by leases (I-01, I-02, I-04).

The manifest is fetched anew each time. A model that was handed out stays held until it is closed,
so two may be held at once: the one that serves, and the one that is to follow it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.decisions.manifest import Manifest, ManifestModel
from companion_core.egress.interface import Egress
from companion_core.errors import Reason, Refused, error_for
from companion_core.models.lease import FileLeases
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.step import OnStep, Step, amount
from companion_core.system.clock import wall_now
from companion_core.system.tasks import run_in_worker

__all__ = ["HeldModel", "ModelSource"]


class HeldModel:
    """A verified model, held against writers until `close`.

    Attributes:
        leases: on its files, taken before they are hashed.
        wanted: set when another program waits to write to one of its files.
        in_use: a runtime may have it open; without one, a writer gets in at once.
        closed: no runtime may be started from it any more.
    """

    def __init__(self) -> None:
        self.leases = FileLeases(self._on_writer)
        self.wanted = asyncio.Event()
        self.in_use = False
        self.closed = False
        self._model: VerifiedModel | None = None

    @property
    def model(self) -> VerifiedModel:
        """The proof.

        Raises:
            Refused: `not_verified`.
        """
        if self._model is None:
            raise Refused(Reason.NOT_VERIFIED)
        return self._model

    @property
    def is_proved(self) -> bool:
        """Whether its proof still stands: nobody has asked to write to it or has written."""
        proved = self._model is not None and self._model.is_open
        return proved and not (self.closed or self.wanted.is_set())

    def take_proof(self, model: VerifiedModel) -> None:
        """Take the proof of the files that were hashed under `leases`."""
        self._model = model

    def close(self) -> None:
        """Give up its leases and close its files; a second call does nothing."""
        self.closed = True
        if self._model is not None:
            self._model.close()
        self.leases.close()

    def _on_writer(self) -> None:
        # Without a proof yet, hashing fails because of the writer, or the check before the start.
        if self._model is not None:
            self.wanted.set()
            if not self.in_use:
                self.close()


class ModelSource:
    """Obtains the models of one configuration's manifest; for one event loop.

    Args:
        config: says where the manifest is and which keys are trusted.
        paths: of the instance: its store, and what is remembered of manifests.
        egress: the doorway to the machine.
        context: how servers are verified.
        runtime: the providers, of which one downloads and one knows which formats it runs.
        clock: seconds of the wall clock, by which a manifest expires.
    """

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        egress: Egress,
        context: ssl.SSLContext,
        runtime: RuntimeProviders,
        *,
        clock: Callable[[], float] = wall_now,
    ) -> None:
        self._config = config
        self._paths = paths
        self._egress = egress
        self._context = context
        self._chosen = runtime.chosen
        self._clock = clock
        self._held: set[HeldModel] = set()

    async def obtain(self, model_id: str, on_step: OnStep) -> HeldModel:
        """Fetch the manifest, then the model; return when every file of it is proved.

        Args:
            model_id: of a model in the manifest.
            on_step: hears each step, and the download's progress from another thread.

        Raises:
            CompanionError: nothing new is held.
        """
        manifest = await self._fetch_manifest()
        on_step(Step("manifest", f"version {manifest.version}: signed by a trusted key, unexpired"))
        model = _find_model(manifest, model_id)
        if model.format not in self._chosen.spawn.provider.formats:
            raise error_for(Reason.MODEL_FORMAT_UNSUPPORTED)
        self._held = {held for held in self._held if not held.closed}
        held = HeldModel()
        self._held.add(held)
        held.leases.open()
        try:
            held.take_proof(await self._stage(model, manifest, held.leases, on_step))
            on_step(_proved(held.model))
        except BaseException:
            held.close()
            raise
        return held

    def close(self) -> None:
        """Close every model that was handed out; no runtime may have one open."""
        for held in self._held:
            held.close()

    async def _fetch_manifest(self) -> Manifest:
        return await run_in_worker(
            lambda cancelled: fetch_manifest(
                self._config.manifest.url,
                egress=self._egress,
                context=self._context,
                trusted_keys=self._config.manifest.trusted_keys,
                memory=ManifestMemory(self._paths.manifest_memory),
                wall_now=self._clock(),
                cancelled=cancelled,
            )
        )

    async def _stage(
        self, model: ManifestModel, manifest: Manifest, leases: FileLeases, on_step: OnStep
    ) -> VerifiedModel:
        def resumes(done: int, total: int) -> str:
            return f"{model.id}: goes on after {amount(done, total)}"

        store = ModelStore(self._paths.models, hold=leases.hold)
        return await run_in_worker(
            lambda cancelled: store.stage(
                model,
                allowed_sources=manifest.allowed_sources,
                download=self._chosen.download.provider.open,
                progress=lambda done, total: on_step(Step("download", model.id, done, total)),
                resumed=lambda done, total: on_step(Step("download", resumes(done, total))),
                cancelled=cancelled,
            ),
            discard=VerifiedModel.close,
        )


def _find_model(manifest: Manifest, model_id: str) -> ManifestModel:
    for model in manifest.models:
        if model.id == model_id:
            return model
    raise Refused(Reason.MODEL_NOT_IN_MANIFEST)


def _proved(model: VerifiedModel) -> Step:
    size = sum(file.size for file in model.files)
    held = ", held against writers" if all(file.held for file in model.files) else ""
    text = f"{model.model_id}: {size:,} bytes, the SHA-256 that was signed for{held}"
    return Step("model", text)
