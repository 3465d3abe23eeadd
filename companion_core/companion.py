"""The one place where authority, runtime and gateway meet; also the embedding API.

    async with Companion.open(config) as companion:
        client = openai.AsyncOpenAI(base_url=companion.base_url, api_key=companion.token)

Opening does what `companion up` does, step by step. Each step pushes its own undo, so leaving the
context, a failure and a cancellation all undo the same steps.
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

from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken, generate_loopback_token
from companion_core.config.paths import DEFAULT_INSTANCE, InstancePaths, default_state_dir
from companion_core.config.reader import Config, load_config
from companion_core.control.client import InstanceLock
from companion_core.control.server import ControlServer
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.interface import Egress
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.runtime import reclaim
from companion_core.serving.assembly import AuthorityProviders, RuntimeProviders, assemble
from companion_core.serving.lifetime import Lifetime
from companion_core.serving.model_source import HeldModel, ModelSource
from companion_core.serving.served_model import ServedModel
from companion_core.serving.serving import Serving
from companion_core.serving.status import CompanionStatus, ModelStatus, ServingStatus
from companion_core.serving.step import OnStep, Step
from companion_core.serving.swap import Swaps
from companion_core.system.clock import wall_now
from companion_core.system.lacks import lacks_told
from companion_core.system.plain_paths import absolute
from companion_core.system.secret import Secret
from companion_core.system.tasks import run_in_worker

__all__ = ["Companion", "CompanionStatus", "OnStep", "Step"]


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
        self._lifetime = Lifetime()
        self._undo = self._lifetime.undo
        self._started_at = datetime.fromtimestamp(wall_now(), UTC)
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
            state_dir: the folder of models, logs and the control socket.
            instance: the companion's name; a second one beside the first needs another name.
            egress: the doorway to the machine; the live one where it is left out.
            on_step: hears each step, and the progress of a long one.

        Raises:
            UsageError: `configuration_invalid`.
        """
        checked = config if isinstance(config, Config) else load_config(Path(config))
        root = default_state_dir() if state_dir is None else absolute(Path(state_dir))
        return cls(
            checked,
            InstancePaths(root, instance),
            LiveEgress() if egress is None else egress,
            (lambda _step: None) if on_step is None else on_step,
        )

    async def __aenter__(self) -> Self:
        with lacks_told():
            await self._lifetime.begin(self._start())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with lacks_told():
            await self._lifetime.close()

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
        """Ask for a drain and a stop; with `now`, without waiting for running answers.

        During the start it ends the start: `async with` raises `interrupted`.
        """
        self._lifetime.request_stop(now=now)

    async def wait_for_stop_request(self) -> None:
        """Return when somebody asked this companion to stop."""
        await self._lifetime.stop_requested.wait()

    def availability(self) -> Verdict:
        """Say whether a request would be served now, and if not, why (I-09)."""
        if self._served is None:
            return refuse(Reason.NOT_VERIFIED)
        return self._served.availability(token_stored=self._token is not None)

    async def swap_model(self, model_id: str) -> None:
        """Serve another model of the manifest at the same address, with the same token.

        The new model is proved while the one before serves; a cancellation until then changes
        nothing.

        Raises:
            CompanionError: why the new model does not serve; the one before does, if it can.
        """
        await self._swaps.carry_out(model_id)

    def status(self) -> CompanionStatus:
        """Say what runs and why it is or is not available; `to_json` is the command's document."""
        verdict, served = self.availability(), self._served
        serving = ServingStatus() if self._serving is None else self._serving.status()
        model_id = self._config.model.id if served is None else served.model_id
        return CompanionStatus(
            available=verdict.ok,
            reason=verdict.reason,
            pid=os.getpid(),
            started_at=self._started_at,
            model=ModelStatus(id=model_id, verified=served is not None and served.verified),
            lifecycle=serving.lifecycle,
            gateway=serving.gateway,
            runtime=serving.runtime,
            admission=serving.admission,
            resources=serving.resources,
            gave_up=serving.gave_up,
            last_health_ok_seconds_ago=serving.last_health_ok_seconds_ago,
            swap=self._swaps.status(),
            plugins=self._plugins,
        )

    # --- starting -------------------------------------------------------------------------

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
        """End what an earlier companion left running that was killed together with its keeper."""
        record, run_folder = self._paths.runtime_record, self._paths.run_folder()
        count = reclaim(record, run_folder, self._egress)
        if count:
            self._on_step(Step("runtime", f"{count} processes of an earlier start were ended"))

    async def _open_control(self) -> None:
        identity = self._egress.identify(os.getpid())
        if identity is None:
            # /proc is not this process namespace's own.
            raise EnvironmentUnavailable(Reason.PROCESS_UNREADABLE)
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
            hurry=self._lifetime.stop_now,
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

    async def _clear_token(self, stored: LoopbackToken) -> None:
        self._token = None
        # A keychain that was locked meanwhile still has the token, which no gateway accepts now.
        with contextlib.suppress(CompanionError):
            await asyncio.to_thread(stored.clear)

    # --- what the control socket answers --------------------------------------------------

    async def _answer_status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.status().to_json()

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
