"""The steps of `companion update`, in order; each looks first and changes only what is not right.

A step that is not set up is skipped. One that has to wait says for what, and is tried again by the
next run. Every step can be killed at any point: the next run looks again.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import click

from companion_core import __version__
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.cli import Settings, explain, is_terminal
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.connect_command import connections_of, wanted_of
from companion_core.cli.detached import start_detached
from companion_core.cli.down_command import stop
from companion_core.cli.own_library import OwnLibrary, open_library
from companion_core.cli.plugin_facts import PluginCatalog
from companion_core.cli.plugins_command import trust_plugin
from companion_core.cli.service_command import manager_of
from companion_core.connect import PROGRAMS
from companion_core.control.client import ask, find_running
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import REASONS, CompanionError, Culprit, Reason
from companion_core.serving.default_model import with_default_model
from companion_core.serving.step import Step
from companion_core.system.clock import wall_now

__all__ = ["Outcome", "State", "UpdateSteps"]

# A list that was signed this long ago is signed for another year.
RENEW_SECONDS: Final = 30 * 24 * 3600.0
_FIRST: Final = "configuration"
_AGAIN: Final = "; companion update goes on then"


class State(enum.StrEnum):
    """What became of a step."""

    DONE = "done"
    UNCHANGED = "unchanged"
    POSTPONED = "postponed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A step, and what became of it.

    Attributes:
        detail: for a person.
        error: why it failed.
    """

    name: str
    state: State
    detail: str = ""
    error: CompanionError | None = None

    def document(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {"name": self.name, "state": self.state.value, "detail": self.detail}


_Told = tuple[State, str]


class UpdateSteps:
    """The steps for one instance.

    Args:
        settings: of the command line.
        dry_run: look, and change nothing.
        as_json: progress is for a program.
    """

    def __init__(self, settings: Settings, *, dry_run: bool, as_json: bool) -> None:
        self._settings = settings
        self._dry_run = dry_run
        self._as_json = as_json

    def run(self) -> Iterator[Outcome]:
        """Take each step after the one before, and yield what became of it."""
        steps: tuple[tuple[str, Callable[[], _Told]], ...] = (
            (_FIRST, self._configuration),
            ("plugins", self._plugins),
            ("manifest", self._manifest),
            ("own models", self._own_models),
            ("model", self._model),
            ("clients", self._clients),
            ("service", self._service),
            ("restart", self._restart),
        )
        failed: list[str] = []
        for name, step in steps:
            # What serves goes on serving rather than end for something that is not whole.
            if failed and (name == "restart" or failed[0] == _FIRST):
                detail = f"waits for {' and '.join(failed)}"
                yield Outcome(name=name, state=State.POSTPONED, detail=detail)
                continue
            outcome = _taken(name, step)
            if outcome.state is State.FAILED:
                failed.append(name)
            yield outcome

    # --- the steps -------------------------------------------------------------------------

    def _configuration(self) -> _Told:
        self._settings.read_config()
        if not self._settings.config.exists():
            return State.SKIPPED, "there is no file; the defaults hold"
        return State.UNCHANGED, str(self._settings.config)

    def _plugins(self) -> _Told:
        catalog = PluginCatalog(self._settings)
        changed = [each for each in catalog.plugins if each[1].reason is Reason.PLUGIN_CHANGED]
        if not changed:
            return State.UNCHANGED, ""
        names = ", ".join(found.name for found, _ in changed)
        if self._dry_run:
            return State.DONE, f"would show what changed of {names}, and ask"
        if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            return State.POSTPONED, f"companion plugins trust {changed[0][0].name}{_AGAIN}"
        for found, state in changed:
            try:
                trust_plugin(catalog, found, state)
            except click.exceptions.Abort:
                return State.POSTPONED, f"{found.name} is not trusted as it is now"
        return State.DONE, f"trusted as installed now: {names}"

    def _manifest(self) -> _Told:
        section = self._library.config.manifest
        if section is None:
            return State.SKIPPED, "no publisher is configured"
        if self._dry_run:
            return State.DONE, "would ask the publisher's host"
        memory = ManifestMemory.of(self._settings.paths)
        before = memory.last_seen(section.trusted_keys)
        current = run_cancellable(self._library.models.publisher)
        if current is None:
            return State.SKIPPED, "no publisher is configured"
        version = current.manifest.version
        if current.is_stored:
            why = current.unreachable or "its host is silent"
            return State.POSTPONED, f"version {version} is stored; {why}"
        if before is not None and before.version == version:
            return State.UNCHANGED, f"version {version}"
        return State.DONE, f"version {version}"

    def _own_models(self) -> _Told:
        library = self._library.models
        issued = library.own_issued() if self._settings.paths.own_manifest.exists() else None
        if issued is None:
            return State.SKIPPED, "you have added no model"
        if wall_now() - issued < RENEW_SECONDS:
            return State.UNCHANGED, "your list was signed less than a month ago"
        if self._dry_run:
            return State.DONE, "would prove your models, and sign your list for another year"
        known = run_cancellable(library.known.models)
        own = [model for model in known if model.vouched_by is ManifestKind.PERSONAL]
        away = [model.id for model in own if not model.stored]
        if away:
            return State.POSTPONED, f"companion models pull {away[0]}{_AGAIN}"
        for model in own:
            tell = self._library.progress("verify", model.id)
            error = run_cancellable(functools.partial(library.verify, model, progress=tell))
            if error is not None:
                raise error
        library.renew()
        return State.DONE, "every model is what you recorded; your list holds for another year"

    def _model(self) -> _Told:
        model_id = self._served_id or self._configured_id
        if model_id is None:
            return State.SKIPPED, "no model is chosen"
        if self._dry_run and self._library.config.manifest is not None:
            return State.DONE, f"would fetch {model_id} if the manifest names other bytes"
        model = run_cancellable(
            lambda cancelled: self._library.models.known.model(model_id, cancelled)
        )
        if model.stored:
            return State.UNCHANGED, f"{model_id} is stored"
        if self._dry_run:
            return State.DONE, f"would fetch {model_id}, {model.size:,} bytes"
        downloader = self._library.downloader()
        run_cancellable(
            lambda cancelled: self._library.models.pull(
                model_id,
                downloader.provider.open,
                downloader.plugin,
                progress=self._library.progress("download", model_id),
                cancelled=cancelled,
            )
        )
        return State.DONE, f"{model_id} is stored and proved: {model.size:,} bytes"

    def _clients(self) -> _Told:
        connections, wanted = connections_of(self._settings), wanted_of(self._settings)
        looks = [connections.look(name, wanted) for name in PROGRAMS]
        connected = [look for look in looks if look.connected]
        if not connected:
            return State.SKIPPED, "no program is connected"
        foreign = [look for look in connected if look.state == "foreign"]
        drifted = [look for look in connected if look.state == "drift"]
        if not self._dry_run:
            for look in drifted:
                connections.lead(look.name, wanted)
        if foreign:
            return State.POSTPONED, f"{foreign[0].name}: {foreign[0].detail}"
        if not drifted:
            return State.UNCHANGED, ", ".join(look.name for look in connected)
        names = ", ".join(look.name for look in drifted)
        return State.DONE, f"would lead here again: {names}" if self._dry_run else names

    def _service(self) -> _Told:
        manager = manager_of(self._settings)
        found = manager.status()
        if found.state == "absent":
            return State.SKIPPED, "no service is installed"
        if found.state == "foreign":
            return State.SKIPPED, f"{manager.file} was not written by companion service"
        if found.state == "ok":
            return State.UNCHANGED, str(manager.file)
        if not self._dry_run:
            # What runs goes on until the last step, which restarts it if it has to.
            manager.install(start=False)
        return State.DONE, f"{'would write' if self._dry_run else 'wrote'} {manager.file}"

    def _restart(self) -> _Told:
        settings = self._settings
        running = find_running(settings.paths, settings.egress)
        if running is None:
            return State.SKIPPED, "nothing runs"
        status = ask(running, settings.egress, "status")
        reasons = [*self._reasons_to_restart(status)]
        if not reasons:
            return State.UNCHANGED, f"companion-core {__version__} runs"
        why = "; ".join(reasons)
        manager = manager_of(settings)
        by_manager = manager.status().running
        if not (by_manager or _is_detached(running.identity.pid)):
            return State.POSTPONED, f"{why}; end it where you started it, and start it again"
        if self._dry_run:
            return State.DONE, f"would drain and start again: {why}"
        model = status["model"]["id"] if status.get("model") else None
        if by_manager:
            manager.restart()
        else:
            stop(running, settings.egress, now=False)
            start_detached(settings, model, self._show)
        return State.DONE, f"drained and started again: {why}"

    # --- what they look at -----------------------------------------------------------------

    def _reasons_to_restart(self, status: dict[str, Any]) -> Iterator[str]:
        """Yield what a running companion has not got yet.

        All of it is seen from outside: a run that was killed leaves nothing that has to be known.
        """
        version = status.get("version")
        if version != __version__:
            yield f"companion-core {version or '(an earlier one)'} still runs"
        with contextlib.suppress(OSError, ValueError, KeyError):
            started = datetime.fromisoformat(status["started_at"])
            trusted = self._settings.paths.plugin_store.stat().st_mtime
            if trusted > started.timestamp() + 1:  # which is told in whole seconds
                yield "plugins were trusted since it started"
        section, runs = self._library.config.manifest, status.get("manifest")
        if section is None or runs is None or runs.get("source") == "own":
            return
        seen = ManifestMemory.of(self._settings.paths).last_seen(section.trusted_keys)
        if seen is not None and seen.version != runs.get("version"):
            yield f"it runs by version {runs.get('version')} of the manifest, not {seen.version}"

    @functools.cached_property
    def _library(self) -> OwnLibrary:
        return open_library(self._settings, as_json=self._as_json, yes=True)

    @property
    def _configured_id(self) -> str | None:
        config = with_default_model(self._library.config, self._settings.paths)
        return config.model.id

    @functools.cached_property
    def _served_id(self) -> str | None:
        running = find_running(self._settings.paths, self._settings.egress)
        if running is None:
            return None
        model = ask(running, self._settings.egress, "status").get("model")
        return None if model is None else str(model["id"])

    def _show(self, step: Step) -> None:
        self._library.printer(step)


def _is_detached(pid: int) -> bool:
    """Tell whether `companion up --detach` started it: no product runs it, and no terminal."""
    import psutil  # noqa: PLC0415 - slow to import

    with contextlib.suppress(psutil.Error):
        return "--announce-fd" in psutil.Process(pid).cmdline()
    return False


def _taken(name: str, step: Callable[[], _Told]) -> Outcome:
    try:
        state, detail = step()
    except CompanionError as error:
        if error.reason is Reason.INTERRUPTED:
            raise
        waits = REASONS[error.reason].culprit is Culprit.ENVIRONMENT
        why = explain(error)
        detail = f"{why}: {error.reason.value}" if why else error.reason.value
        return Outcome(
            name=name,
            state=State.POSTPONED if waits else State.FAILED,
            detail=f"{detail}: {error.advice}",
            error=error,
        )
    return Outcome(name=name, state=state, detail=detail)
