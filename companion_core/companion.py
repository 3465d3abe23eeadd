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
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from companion_core.authority.custody import LoopbackToken, generate_loopback_token
from companion_core.authority.keychain import GuardedKeychain
from companion_core.config.paths import (
    DEFAULT_INSTANCE,
    InstancePaths,
    default_state_dir,
)
from companion_core.config.reader import (
    Config,
    load_config,
)
from companion_core.control.client import InstanceLock
from companion_core.control.server import ControlServer
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.runtime.process.reclaim import reclaim
from companion_core.serving.assembly import (
    AuthorityProviders,
    RuntimeProviders,
    assemble,
)
from companion_core.serving.model_source import (
    HeldModel,
    ModelSource,
)
from companion_core.serving.served_model import ServedModel
from companion_core.serving.serving import Serving
from companion_core.serving.step import (
    OnStep,
    Step,
)
from companion_core.serving.swap import Swaps
from companion_core.system.clock import wall_now
from companion_core.system.secret import Secret
from companion_core.system.tasks import (
    outlast,
    run_in_worker,
    unless,
)

__all__ = ["Companion", "Step"]


class Companion:
    """A companion; made by `open`, running inside `async with`."""

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        egress: Egress,
        on_step: OnStep,
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
        self._token: Secret | None = None
        self._serving: Serving | None = None
        self._served: ServedModel | None = None
        self._swaps = Swaps(config.model.id, on_step)

    @classmethod
    def open(
        cls,
        config: Config | Path | str,
        *,
        state_dir: Path | str | None = None,
        instance: str = DEFAULT_INSTANCE,
        egress: Egress | None = None,
        on_step: OnStep | None = None,
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
        return self._token.reveal()

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
        if self._served is None:
            return refuse(Reason.NOT_VERIFIED)
        return self._served.availability(token_stored=self._token is not None)

    async def swap_model(self, model_id: str) -> None:
        """Serve another model of the manifest behind the same address, with the same token.

        It is proved while the one before serves on; a cancellation until then changes nothing.

        Raises:
            CompanionError: why it does not serve; the model before does, as far as it can.
        """
        await self._swaps.carry_out(model_id)

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
            "model": {"id": self._config.model.id, "verified": False}
            if self._served is None
            else {"id": self._served.model_id, "verified": self._served.verified},
            **serving,
            **self._swaps.status(),
            "plugins": self._plugins,
        }

    # --- the way up -----------------------------------------------------------------------

    async def _start_unless_stopped(self) -> None:
        if not await unless(self._start(), self._stop_requested):
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
        source = ModelSource(self._config, self._paths, self._egress, context, runtime)
        self._undo.callback(source.close)
        held = await source.obtain(self._config.model.id, self._on_step)
        served = await self._serve(held, runtime, token)
        self._undo.push_async_callback(self._swaps.close)
        self._swaps.open(source, served)

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
                "session": self._answer_credentials,
                "metrics": self._answer_metrics,
                "drain": self._answer_drain,
                **self._swaps.handlers,
            },
        )
        self._undo.push_async_callback(control.close)
        await control.start(identity)

    async def _open_keychain(self, authority: AuthorityProviders) -> Secret:
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

    async def _serve(
        self, held: HeldModel, runtime: RuntimeProviders, token: Secret
    ) -> ServedModel:
        serving = Serving(self._config, self._paths, runtime, token=token, egress=self._egress)
        served = ServedModel(
            serving,
            held,
            on_step=self._on_step,
            hurry=self._stop_now,
            on_unwatched=self.request_stop,
        )
        self._undo.push_async_callback(serving.gateway.close)
        await serving.open()
        self._serving, self._served = serving, served
        self._on_step(Step("gateway", f"listens on loopback only: {serving.gateway.base_url}"))
        self._undo.push_async_callback(serving.stop)
        await served.begin()
        self._undo.push_async_callback(served.drain)
        self._undo.push_async_callback(served.unwatch)
        return served

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

    async def _clear_token(self, stored: LoopbackToken) -> None:
        self._token = None
        # A keychain that was locked meanwhile keeps a token that no gateway accepts any more.
        with contextlib.suppress(CompanionError):
            await asyncio.to_thread(stored.clear)

    # --- what the control socket answers --------------------------------------------------

    async def _answer_status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.status()

    async def _answer_credentials(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        verdict = self.availability()
        if not verdict.ok:
            raise error_for(verdict.reason)
        model = None if self._served is None else self._served.model_id
        return {"base_url": self.base_url, "token": self.token, "model": model}

    async def _answer_metrics(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": "" if self._serving is None else self._serving.gateway.metrics_text()}

    async def _answer_drain(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.request_stop(now=request.get("now") is True)
        return {}


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
