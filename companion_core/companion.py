"""The one place where authority, runtime and gateway meet; also the embedding API.

    async with Companion.open(config) as companion:
        client = openai.AsyncOpenAI(base_url=companion.base_url, api_key=companion.token)

Opening does what `companion up` does, step by step. Each step leaves its own undo behind,
so leaving the context, a failure and a cancellation all take the same way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from companion_core.assembly import AuthorityProviders, RuntimeProviders, assemble
from companion_core.authority.custody import LoopbackToken, generate_loopback_token
from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.clock import wall_now
from companion_core.config import Config, load_config
from companion_core.control import InstanceLock
from companion_core.control_server import ControlServer
from companion_core.decisions.availability import evaluate_availability
from companion_core.decisions.manifest import Manifest, ManifestModel
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress import Egress, LiveEgress
from companion_core.errors import (
    CompanionError,
    EnvironmentUnavailable,
    Reason,
    Refused,
    error_for,
)
from companion_core.paths import DEFAULT_INSTANCE, InstancePaths, default_state_dir
from companion_core.runtime.file_lease import FileLeases
from companion_core.runtime.reclaim import reclaim
from companion_core.runtime.staging import ModelStore, VerifiedModel
from companion_core.serving import Serving
from companion_core.tasks import cancel, outlast, run_in_worker
from companion_core.tls_context import build_tls_context

__all__ = ["Companion", "Step"]

DRAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done on the way to available, and what proved it.

    Attributes:
        name: keychain, manifest, download, model, gateway, runtime, available or stopped.
        text: for a person; never a secret, a digest or a prompt.
        done: bytes so far in a step that takes long, of `total`.
    """

    name: str
    text: str
    done: int = 0
    total: int = 0


class Companion:
    """A companion; made by `open`, running inside `async with`."""

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        egress: Egress,
        on_step: Callable[[Step], None],
    ) -> None:
        self._config = config
        self._paths = paths
        self._egress = egress
        self._on_step = on_step
        self._undo = contextlib.AsyncExitStack()
        self._started_at = datetime.fromtimestamp(wall_now(), UTC)
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._closing: asyncio.Future[None] | None = None
        self._plugins: dict[str, str] = {}
        self._token: str | None = None
        self._model: VerifiedModel | None = None
        self._serving: Serving | None = None
        self._watch: asyncio.Task[None] | None = None
        self._losing: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        config: Config | Path | str,
        *,
        state_dir: Path | str | None = None,
        instance: str = DEFAULT_INSTANCE,
        egress: Egress | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Companion:
        """Return a companion to be used with `async with`, which starts and stops it.

        Args:
            config: a configuration, or the path of its TOML file.
            state_dir: where models, logs and the control socket live.
            instance: a second companion beside the first has another name.
            egress: the doorway to the machine; the live one when left out.
            on_step: told of each step, and of progress within long ones.

        Raises:
            UsageError: `configuration_invalid`.
        """
        checked = config if isinstance(config, Config) else load_config(Path(config))
        root = default_state_dir() if state_dir is None else Path(state_dir).absolute()
        return cls(
            checked,
            InstancePaths(root, instance),
            LiveEgress() if egress is None else egress,
            (lambda _step: None) if on_step is None else on_step,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._start_unless_stopped()
        except BaseException:
            await self._close()
            raise
        self._closing = asyncio.ensure_future(self._close_when_asked())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def base_url(self) -> str:
        """The address that OpenAI clients take as `base_url`."""
        if self._serving is None:
            raise EnvironmentUnavailable(Reason.NOT_READY)
        return self._serving.gateway.base_url

    @property
    def token(self) -> str:
        """This session's token; a new one at each start."""
        if self._token is None:
            raise EnvironmentUnavailable(Reason.NOT_READY)
        return self._token

    def request_stop(self, *, now: bool = False) -> None:
        """Ask for a drain; with `now`, running answers are not waited for any longer.

        During the start it gives the start up: `async with` raises `interrupted`.
        """
        if now:
            self._stop_now.set()
        self._stop_requested.set()

    async def wait_for_stop_request(self) -> None:
        """Return when somebody asked this companion to stop."""
        await self._stop_requested.wait()

    def availability(self) -> Verdict:
        """Say whether a request would be served now, and if not, why (I-09)."""
        if self._serving is None:
            return refuse(Reason.NOT_READY if self._model else Reason.NOT_VERIFIED)
        facts = self._serving.availability_facts(
            verified=self._model is not None, token_stored=self._token is not None
        )
        return evaluate_availability(facts)

    def status(self) -> dict[str, Any]:
        """Return what `companion status --json` prints."""
        verdict = self.availability()
        serving: dict[str, Any] = {
            "lifecycle": "stopped",
            "gateway": None,
            "runtime": None,
            "admission": None,
            "resources": None,
            "gave_up": None,
            "last_health_ok_seconds_ago": None,
        }
        if self._serving is not None:
            serving = self._serving.status()
        return {
            "available": verdict.ok,
            "reason": verdict.reason.value,
            "pid": os.getpid(),
            "started_at": self._started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "model": {"id": self._config.model.id, "verified": self._model is not None},
            **serving,
            "plugins": self._plugins,
        }

    # --- the way up -----------------------------------------------------------------------

    async def _start_unless_stopped(self) -> None:
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                return starting.result()
        finally:
            for task in (stopping, starting):
                task.cancel()
                await outlast(task)
        raise CompanionError(Reason.INTERRUPTED)

    async def _start(self) -> None:
        self._paths.prepare()
        lock = InstanceLock(self._paths.lock_file)
        lock.acquire()
        self._undo.callback(lock.release)
        self._undo.callback(_remove_if_empty, self._paths.run_folder())
        await run_in_worker(self._reclaim)
        await self._open_control()
        context = build_tls_context(self._config.network.extra_ca_file)
        authority, runtime = await run_in_worker(
            lambda _cancelled: assemble(
                self._config, self._egress, context, self._paths.plugin_store
            )
        )
        chosen = runtime.chosen
        self._plugins = {
            "keychain": authority.keychain.plugin,
            "spawn": chosen.spawn.plugin,
            "download": chosen.download.plugin,
            "health": chosen.health.plugin,
            "probe": chosen.probe.plugin,
        }
        token = await self._open_keychain(authority)
        manifest = await run_in_worker(
            lambda cancelled: fetch_manifest(
                self._config.manifest.url,
                egress=self._egress,
                context=context,
                trusted_keys=self._config.manifest.trusted_keys,
                memory=ManifestMemory(self._paths.manifest_memory),
                wall_now=wall_now(),
                cancelled=cancelled,
            )
        )
        self._on_step(
            Step("manifest", f"version {manifest.version}: signed by a trusted key, unexpired")
        )
        model = await self._obtain_model(manifest, runtime)
        await self._serve(model, runtime, token)

    def _reclaim(self, _cancelled: threading.Event) -> None:
        """End what a companion left that was killed, its keeper too."""
        record, run_folder = self._paths.runtime_record, self._paths.run_folder()
        count = reclaim(record, run_folder, self._egress)
        if count:
            self._on_step(Step("runtime", f"{count} processes of an earlier start were ended"))

    async def _open_control(self) -> None:
        identity = self._egress.identify(os.getpid())
        if identity is None:
            raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)
        control = ControlServer(
            self._paths,
            {
                "status": self._answer_status,
                "session": self._answer_session,
                "metrics": self._answer_metrics,
                "drain": self._answer_drain,
            },
        )
        self._undo.push_async_callback(control.close)
        await control.start(identity)

    async def _open_keychain(self, authority: AuthorityProviders) -> str:
        """Prove the keychain and put this start's token into it."""
        chosen = authority.keychain
        keychain = GuardedKeychain(
            chosen.provider, instance=self._paths.keychain_scope, plugin=chosen.plugin
        )
        await run_in_worker(lambda _cancelled: keychain.prove())
        stored = LoopbackToken(keychain)
        token = generate_loopback_token()
        self._undo.push_async_callback(self._clear_token, stored)
        await run_in_worker(lambda _cancelled: stored.store(token))
        self._token = token
        self._on_step(
            Step("keychain", f"{chosen.plugin}: a test value was written, read and deleted")
        )
        return token

    async def _obtain_model(self, manifest: Manifest, runtime: RuntimeProviders) -> VerifiedModel:
        model = _find_model(manifest, self._config.model.id)
        if model.format not in runtime.chosen.spawn.provider.formats:
            raise error_for(Reason.MODEL_FORMAT_UNSUPPORTED)
        leases = FileLeases(self._on_writer)
        leases.open()
        self._undo.callback(leases.close)

        def resumes(done: int, total: int) -> str:
            return f"{model.id}: goes on after {done / 1e6:.1f} of {total / 1e6:.1f} MB"

        store = ModelStore(self._paths.models, hold=leases.hold)
        verified = await run_in_worker(
            lambda cancelled: store.stage(
                model,
                allowed_sources=manifest.allowed_sources,
                download=runtime.chosen.download.provider.open,
                progress=lambda done, total: self._on_step(Step("download", model.id, done, total)),
                resumed=lambda done, total: self._on_step(Step("download", resumes(done, total))),
                cancelled=cancelled,
            ),
            discard=VerifiedModel.close,
        )
        self._undo.callback(self._let_go_of_model, verified)
        self._model = verified
        size = sum(file.size for file in verified.files)
        held = ", held against writers" if all(file.held for file in verified.files) else ""
        text = f"{model.id}: {size:,} bytes, the SHA-256 that was signed for{held}"
        self._on_step(Step("model", text))
        return verified

    async def _serve(self, model: VerifiedModel, runtime: RuntimeProviders, token: str) -> None:
        serving = Serving(self._config, self._paths, runtime, token=token, egress=self._egress)
        self._undo.push_async_callback(serving.gateway.close)
        await serving.open()
        self._serving = serving
        self._on_step(Step("gateway", f"listens on loopback only: {serving.gateway.base_url}"))
        self._undo.push_async_callback(serving.stop)
        await serving.start(model)
        backend = serving.status()["runtime"]
        self._on_step(
            Step(
                "runtime",
                f"{backend['name']}, pid {backend['pid']}, {backend['channel']} socket,"
                f" isolation: {backend['isolation']}",
            )
        )
        self._undo.push_async_callback(self._drain, serving)
        self._watch = asyncio.create_task(serving.upkeep.run())
        self._watch.add_done_callback(self._on_watch_end)
        self._undo.push_async_callback(cancel, self._watch)
        self._on_step(Step("available", "a health check was answered through the gateway"))

    # --- the way down ---------------------------------------------------------------------

    async def _close(self) -> None:
        """Take the steps back, to the end even when the caller is cancelled again."""
        self.request_stop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._undo.aclose())
        await outlast(self._closing, on_cancel=lambda: self.request_stop(now=True))
        self._closing.result()

    async def _close_when_asked(self) -> None:
        """Also when the program around it pays no heed: `companion down` stops what it started."""
        await self._stop_requested.wait()
        await self._undo.aclose()

    async def _drain(self, serving: Serving) -> None:
        drained = asyncio.ensure_future(serving.drain(DRAIN_SECONDS))
        impatient = asyncio.ensure_future(self._stop_now.wait())
        await asyncio.wait({drained, impatient}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, impatient):
            await cancel(task)

    def _on_watch_end(self, watch: asyncio.Future[None]) -> None:
        """Stop rather than serve unwatched; the way down raises what ended the watch."""
        if not watch.cancelled():
            self.request_stop()

    async def _clear_token(self, stored: LoopbackToken) -> None:
        self._token = None
        # A keychain that was locked meanwhile keeps a token that no gateway accepts any more.
        with contextlib.suppress(CompanionError):
            await asyncio.to_thread(stored.clear)

    def _let_go_of_model(self, model: VerifiedModel) -> None:
        self._model = None
        model.close()

    def _on_writer(self) -> None:
        """Another program is about to write to the model; it waits until we let go."""
        if self._model is not None and self._losing is None:
            self._losing = asyncio.ensure_future(self._lose_model(self._model))
            self._undo.push_async_callback(cancel, self._losing)

    async def _lose_model(self, model: VerifiedModel) -> None:
        """Serve nothing of it any more, and end what has it open, before the writer gets in."""
        self._model = None
        if self._serving is not None:
            if self._watch is not None:
                await cancel(self._watch)
            await self._serving.stop()
        model.close()
        self._on_step(Step("stopped", "another program opened the model for writing"))

    # --- what the control socket answers --------------------------------------------------

    async def _answer_status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.status()

    async def _answer_session(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        verdict = self.availability()
        if not verdict.ok:
            raise error_for(verdict.reason)
        return {"base_url": self.base_url, "token": self.token}

    async def _answer_metrics(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": "" if self._serving is None else self._serving.gateway.metrics_text()}

    async def _answer_drain(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.request_stop(now=request.get("now") is True)
        return {}


def _find_model(manifest: Manifest, model_id: str) -> ManifestModel:
    for model in manifest.models:
        if model.id == model_id:
            return model
    raise Refused(Reason.MODEL_NOT_IN_MANIFEST)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
