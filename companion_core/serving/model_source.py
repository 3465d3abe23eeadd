"""From an id to a verified model whose files are held by leases (I-01, I-02, I-04).

The manifest is fetched anew each time; while its host is silent, the accepted one serves until it
expires. A model that was handed out stays held until it is closed,
so two may be held at once: the one that serves, and the one that is to follow it.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import Final

from companion_core.config.paths import InstancePaths
from companion_core.decisions.gguf import MAGIC
from companion_core.errors import Reason, Refused, error_for
from companion_core.models.lease import FileLeases
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.model_lists import FoundModel, ModelLists
from companion_core.serving.remote_files import not_offline
from companion_core.serving.status import ManifestStatus
from companion_core.serving.step import OnStep, Step, amount
from companion_core.system.os_compat import read_at
from companion_core.system.tasks import run_in_worker

__all__ = ["HeldModel", "ModelSource"]

GGUF: Final = "gguf"


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
    """Obtains the models that the lists vouch for; for one event loop.

    Args:
        lists: that vouch for models.
        paths: of the instance: its store.
        runtime: the providers, of which one downloads and one knows which formats it runs.
    """

    def __init__(
        self,
        lists: ModelLists,
        paths: InstancePaths,
        runtime: RuntimeProviders,
    ) -> None:
        self._lists = lists
        self._paths = paths
        self._chosen = runtime.chosen
        self._held: set[HeldModel] = set()
        self._found: FoundModel | None = None

    async def obtain(self, model_id: str, on_step: OnStep) -> HeldModel:
        """Fetch the manifest, then the model; return when every file of it is proved.

        Args:
            model_id: of a model in the manifest.
            on_step: hears each step, and the download's progress from another thread.

        Raises:
            CompanionError: nothing new is held.
        """
        found = await run_in_worker(lambda cancelled: self._lists.find(model_id, cancelled))
        self._found = found
        on_step(Step("manifest", _about(found)))
        model = found.model
        if model.format not in self._chosen.spawn.provider.formats:
            raise error_for(Reason.MODEL_FORMAT_UNSUPPORTED)
        self._held = {held for held in self._held if not held.closed}
        held = HeldModel()
        self._held.add(held)
        held.leases.open()
        try:
            held.take_proof(await self._stage(found, held.leases, on_step))
            _require_format(held.model)
            on_step(_proved(held.model))
        except BaseException:
            held.close()
            raise
        return held

    def manifest_status(self) -> ManifestStatus | None:
        """Say which manifest was used last."""
        found = self._found
        if found is None:
            return None
        manifest, current = found.manifest, found.publisher
        if current is None:
            moment = datetime.fromtimestamp(manifest.issued, UTC)
            return ManifestStatus(version=manifest.version, source="own", fetched_at=moment)
        return ManifestStatus(
            version=manifest.version,
            source="stored" if current.is_stored else "fetched",
            fetched_at=datetime.fromtimestamp(current.fetched_at, UTC),
        )

    @property
    def vouched_by(self) -> str | None:
        """Who vouches for the model that was obtained last: "you" or "publisher"."""
        return None if self._found is None else self._found.vouched_by.value

    def close(self) -> None:
        """Close every model that was handed out; no runtime may have one open."""
        for held in self._held:
            held.close()

    async def _stage(self, found: FoundModel, leases: FileLeases, on_step: OnStep) -> VerifiedModel:
        model, manifest = found.model, found.manifest

        def resumes(done: int, total: int) -> str:
            return f"{model.id}: goes on after {amount(done, total)}"

        store = ModelStore(self._paths.models, hold=leases.hold)
        return await run_in_worker(
            lambda cancelled: store.stage(
                model,
                allowed_sources=manifest.allowed_sources,
                download=not_offline(self._chosen.download.provider.open, os.environ),
                progress=lambda done, total: on_step(Step("download", model.id, done, total)),
                resumed=lambda done, total: on_step(Step("download", resumes(done, total))),
                repairs=lambda broken: on_step(Step("download", f"{broken} is wrong; fetches it")),
                cancelled=cancelled,
            ),
            discard=VerifiedModel.close,
        )


def _about(found: FoundModel) -> str:
    current = found.publisher
    if current is None:
        return f"version {found.manifest.version}: your own list, signed by your key, unexpired"
    about = f"version {current.manifest.version}: signed by a trusted key, unexpired"
    if not current.is_stored:
        return about
    moment = datetime.fromtimestamp(current.fetched_at, UTC)
    why = f" ({current.unreachable})" if current.unreachable else ""
    return f"{about}; the stored one of {moment:%Y-%m-%d %H:%M} UTC: its host does not answer{why}"


def _require_format(model: VerifiedModel) -> None:
    """Refuse a model that is not what its entry says; a runtime would only say that it failed.

    Raises:
        Refused: `model_format_unsupported`.
    """
    file = model.files[0]
    if model.format == GGUF and read_at(file.descriptor, len(MAGIC), 0) != MAGIC:
        told = f"{model.model_id}: {file.name} is no GGUF file, whatever its manifest says"
        raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, told)


def _proved(model: VerifiedModel) -> Step:
    size = sum(file.size for file in model.files)
    held = ", held against writers" if all(file.held for file in model.files) else ""
    text = f"{model.model_id}: {size:,} bytes, the SHA-256 that was signed for{held}"
    return Step("model", text)
