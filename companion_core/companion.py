"""The one place where authority, runtime and gateway meet; also the embedding API.

    async with Companion.open(config) as companion:
        client = openai.AsyncOpenAI(
            base_url=companion.base_url,
            api_key=companion.token,
            http_client=companion.http_client(),
        )

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
from types import MappingProxyType, TracebackType
from typing import Any, Self

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.config.paths import DEFAULT_INSTANCE, InstancePaths, default_state_dir
from companion_core.config.reader import load_config, with_interpreter
from companion_core.config.sections import Config
from companion_core.control.replicas import claim, idle_replicas
from companion_core.control.server import ControlServer
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.egress.gateway_client import AsyncClient, Client, GatewayClients
from companion_core.egress.interface import Egress
from companion_core.egress.sandboxed import open_doorway
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.plugin_host import check_pins
from companion_core.runtime import reclaim
from companion_core.serving.account import open_account
from companion_core.serving.assembly import AuthorityProviders, RuntimeProviders, assemble
from companion_core.serving.client_keys import ServedKeys
from companion_core.serving.default_model import with_default_model
from companion_core.serving.events import Announcer, Event, EventKind, EventStream
from companion_core.serving.journal import Journal, watch_refusals
from companion_core.serving.last_end import LastEnd, forget_end, remember_end
from companion_core.serving.lifetime import Lifetime
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.model_source import HeldModel, ModelSource
from companion_core.serving.own_list import open_own_list
from companion_core.serving.served_model import ServedModel
from companion_core.serving.serving import Serving
from companion_core.serving.session_token import SessionToken
from companion_core.serving.status import CompanionStatus, ModelStatus, ServingStatus
from companion_core.serving.step import OnStep, Step
from companion_core.serving.swap import Swaps
from companion_core.serving.watches import watch_keychain, watch_overload
from companion_core.system.clock import wall_now
from companion_core.system.lacks import lacks_told
from companion_core.system.plain_paths import absolute
from companion_core.system.tasks import cancel, run_in_worker

__all__ = [
    "Companion",
    "CompanionStatus",
    "Event",
    "EventKind",
    "EventStream",
    "OnStep",
    "Step",
]


class Companion:
    """A companion; made by `open`, running inside `async with`."""

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        egress: Egress,
        on_step: OnStep | None = None,
        *,
        pins: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._paths = paths
        self._egress = egress
        self._pins = pins
        self._events = Announcer(on_step)
        self._on_step = self._events.step
        self._lifetime = Lifetime()
        self._undo = self._lifetime.undo
        self._started_at = datetime.fromtimestamp(wall_now(), UTC)
        self._plugins: dict[str, str] = {}
        self._token: SessionToken | None = None
        self._serving: Serving | None = None
        self._served: ServedModel | None = None
        self._source: ModelSource | None = None
        self._clients: GatewayClients | None = None
        self._keys: ServedKeys | None = None
        self._journal: Journal | None = None
        self._swaps = Swaps(config.model_id, self._on_step, self._events.tell)

    @classmethod
    def open(
        cls,
        config: Config | Path | str,
        *,
        state_dir: Path | str | None = None,
        instance: str = DEFAULT_INSTANCE,
        egress: Egress | None = None,
        on_step: OnStep | None = None,
        trusted_plugins: Mapping[str, str] | Path | str = MappingProxyType({}),
        interpreter: Path | str | None = None,
    ) -> Companion:
        """Return a companion to be used with `async with`, which starts and stops it.

        Args:
            config: a configuration, or the path of its TOML file.
            state_dir: the folder of models, logs and the control socket.
            instance: the companion's name; a second one beside the first needs another name.
                "auto" takes the first free one of auto-1, auto-2 and so on, as replicas do.
            egress: the doorway to the machine; where it is left out, the live one, or in an armed
                sandbox (`COMPANION_SANDBOX=1`) the one that refuses.
            on_step: hears each step, and the progress of a long one, in the thread of the event
                loop that enters the companion: one call at a time, in order. It must return soon.
                What it raises goes to the loop's exception handler and ends nothing.
            trusted_plugins: plugins that the product ships and vouches for: the SHA-256 of each
                one's code by its name, or the path of a JSON file of them. Those of the
                configuration's `plugins.pins_file` count as well.
            interpreter: the Python that runs what the companion starts, in place of
                `runtime.interpreter`; an application that is frozen needs one.

        Raises:
            UsageError: `configuration_invalid`.
            Refused: `state_path_unsafe`, others can change the file of pinned plugins.
        """
        checked = config if isinstance(config, Config) else load_config(Path(config))
        if interpreter is not None:
            checked = with_interpreter(checked, str(interpreter))
        root = default_state_dir() if state_dir is None else absolute(Path(state_dir))
        paths = InstancePaths(root, instance)
        return cls(
            with_default_model(checked, paths),
            paths,
            open_doorway() if egress is None else egress,
            on_step,
            pins=check_pins(trusted_plugins),
        )

    async def __aenter__(self) -> Self:
        self._events.bind()
        with lacks_told():
            try:
                await self._lifetime.begin(self._start())
            except CompanionError as error:
                if self._journal is not None:
                    self._journal.ended(error.reason)
                raise
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
    def instance(self) -> str:
        """The companion's name, which `companion --instance` takes; "auto" before the start."""
        return self._paths.instance

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
        return self._token.secret.reveal()

    def events(self) -> EventStream:
        """Return what happens from now on, for one reader on the companion's loop.

        Call it before `async with` to hear of the start too. It ends after `stopped`.
        """
        return self._events.stream()

    def http_client(self) -> AsyncClient:
        """Return a client of the gateway that trusts no environment and reaches nothing else.

        It has the address and the token. Proxies, certificate files and `.netrc` of the environment
        are ignored, and redirects are not followed. It is closed with the companion, once running
        answers have ended.
        """
        return self._require_clients().make()

    def sync_http_client(self) -> Client:
        """Return what `http_client` does for code that runs in threads beside the event loop."""
        return self._require_clients().make_sync()

    def _require_clients(self) -> GatewayClients:
        if self._clients is None:
            raise EnvironmentUnavailable(Reason.NOT_READY)
        return self._clients

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
        return self._served.availability(
            token_stored=self._token is not None and self._token.is_stored
        )

    @property
    def gave_up(self) -> Reason | None:
        """Why it stops or has stopped by itself; None where nothing but a request ends it."""
        if self._serving is None or self._served is None:
            return None
        return self._serving.watchdog.gave_up or self._served.gave_up

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
        model_id = self._config.model_id if served is None else served.model_id
        return CompanionStatus(
            available=verdict.ok,
            reason=verdict.reason,
            pid=os.getpid(),
            started_at=self._started_at,
            manifest=None if self._source is None else self._source.manifest_status(),
            model=ModelStatus(
                id=model_id,
                verified=served is not None and served.verified,
                vouched_by=None if self._source is None else self._source.vouched_by,
                held=None if served is None else served.held,
            ),
            lifecycle=serving.lifecycle,
            gateway=serving.gateway,
            runtime=serving.runtime,
            admission=serving.admission,
            resources=serving.resources,
            gave_up=self.gave_up,
            last_health_ok_seconds_ago=serving.last_health_ok_seconds_ago,
            swap=self._swaps.status(),
            step=self._events.latest if served is None else None,
            plugins=self._plugins,
        )

    # --- starting -------------------------------------------------------------------------

    async def _start(self) -> None:
        self._undo.callback(lambda: self._events.tell(Event(kind=EventKind.STOPPED)))
        self._paths, lock = claim(self._paths)
        self._undo.callback(lock.release)
        self._journal = Journal(self._paths.log)
        self._events.listen(self._journal.note)
        forget_end(self._paths)
        self._undo.callback(self._remember_end)
        self._undo.callback(_remove_if_empty, self._paths.run_folder())
        await run_in_worker(self._reclaim)
        await self._open_control()
        context = build_tls_context(self._config.network.extra_ca_file)
        authority, runtime = await run_in_worker(
            lambda _cancelled: assemble(
                self._config, self._egress, context, self._paths.plugin_store, self._pins
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
        lists = ModelLists(
            self._config,
            self._paths,
            self._egress,
            context,
            open_own_list(self._config, self._paths, authority.keychain),
            clock=wall_now,
            tokens=open_account(
                self._config, self._paths, self._egress, lambda: context, lambda: authority.keychain
            ),
        )
        source = ModelSource(lists, self._paths, runtime)
        self._undo.callback(source.close)
        self._source = source
        held = await source.obtain(self._config.model_id, self._on_step)
        served = await self._serve(held, runtime, token)
        self._undo.push_async_callback(self._swaps.close)
        self._swaps.open(source, served)
        self._undo.callback(lambda: self._events.tell(Event(kind=EventKind.STOPPING)))

    def _remember_end(self) -> None:
        if (reason := self.gave_up) is not None:
            remember_end(self._paths, LastEnd(at=datetime.now(UTC), reason=reason))
            if self._journal is not None:
                self._journal.ended(reason)

    def _reclaim(self, _cancelled: threading.Event) -> None:
        """End what an earlier companion left running that was killed together with its keeper."""
        record, run_folder = self._paths.runtime_record, self._paths.run_folder()
        count = reclaim(record, run_folder, self._egress)
        for other in idle_replicas(self._paths):
            # What cannot be cleaned up there is left to the start that takes it.
            with contextlib.suppress(CompanionError, OSError):
                folder = other.run_folder()
                count += reclaim(other.runtime_record, folder, self._egress)
                for left in (other.state_file, folder / "control.sock"):
                    left.unlink(missing_ok=True)
                _remove_if_empty(folder)
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
                "keys_changed": self._answer_keys,
                "keys_used": self._answer_keys,
                **self._swaps.handlers,
            },
        )
        self._undo.push_async_callback(control.close)
        await control.start(identity)

    async def _open_keychain(self, authority: AuthorityProviders) -> SessionToken:
        """Prove the keychain and put this start's token into it."""
        chosen = authority.keychain
        token = SessionToken(chosen, self._paths.keychain_scope, self._events.tell)
        await token.prove()
        self._undo.push_async_callback(token.clear)
        await token.store()
        self._token = token
        text = f"{chosen.plugin}: a test value was written, read and deleted"
        self._on_step(Step("keychain", text))
        return token

    async def _serve(
        self, held: HeldModel, runtime: RuntimeProviders, token: SessionToken
    ) -> ServedModel:
        serving = Serving(
            self._config,
            self._paths,
            runtime,
            token=token.secret,
            egress=self._egress,
            tell=self._events.tell,
        )
        served = ServedModel(
            serving,
            held,
            on_step=self._on_step,
            hurry=self._lifetime.stop_now,
            on_unwatched=self.request_stop,
            tell=self._events.tell,
        )
        self._undo.push_async_callback(serving.gateway.close)
        earlier = await serving.open()
        self._serving, self._served = serving, served
        moved = f", and no longer on port {earlier}, which is taken" if earlier else ""
        text = f"listens on loopback only: {serving.gateway.base_url}{moved}"
        self._on_step(Step("gateway", text))
        keys = ServedKeys(ClientKeyFile(self._paths.client_keys, clock=wall_now), serving.gateway)
        await keys.open(self._on_step)
        self._keys = keys
        self._undo.push_async_callback(keys.close)
        self._undo.push_async_callback(serving.stop)
        await served.begin()
        self._clients = GatewayClients(serving.gateway.base_url, token.secret)
        self._undo.push_async_callback(self._close_clients)
        self._undo.push_async_callback(served.drain)
        self._undo.push_async_callback(served.unwatch)
        refusals, tell = serving.gateway.answers_by_reason, self._events.tell
        watches = [watch_overload(refusals, tell), watch_keychain(token.keychain_reason, tell)]
        if self._journal is not None:
            watches.append(watch_refusals(serving.gateway.refusals_by_client, self._journal))
        for watch in watches:
            self._undo.push_async_callback(cancel, asyncio.create_task(watch))
        return served

    async def _close_clients(self) -> None:
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients.close()

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

    async def _answer_keys(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        keys = self._keys
        if keys is None:  # the gateway does not listen yet; it will read the file then
            return {}
        answer = keys.answer_reload if request["op"] == "keys_changed" else keys.answer_used
        return await answer(request)

    async def _answer_drain(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.request_stop(now=request.get("now") is True)
        return {}


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
