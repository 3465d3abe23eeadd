"""The hands of `companion service`: one manager for each system, and what it is asked to do.

A unit of that name that `companion service` did not write is never replaced or removed.
"""

from __future__ import annotations

import contextlib
import enum
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.service.texts import (
    ServiceFacts,
    launchd_agent,
    launchd_label,
    scheduled_task,
    systemd_unit,
)
from companion_core.system.lacks import lack_of
from companion_core.system.state_files import read_private, write_private

__all__ = ["ServiceManager", "ServiceState", "ServiceStatus", "choose_manager"]

_SECONDS: Final = 120.0
_MAX_BYTES: Final = 64 * 1024
_MODE: Final = 0o644  # it holds no secret, and managers read it
# What only a text that we wrote has.
_OURS: Final = "companion_core"


class ServiceState(enum.StrEnum):
    """What is there under the service's name."""

    ABSENT = "absent"
    OK = "ok"
    DRIFT = "drift"  # ours, but not as it would be written now
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """A service, as its manager has it.

    Attributes:
        state: of what was written.
        running: the manager runs it now.
    """

    state: ServiceState
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """One system's manager, for one companion.

    Attributes:
        kind: what people call it.
        file: what it reads.
        text: what is to be in it.
        to_enable: commands that make it known, from the next login on.
        to_start: commands that start it now.
        to_restart: commands that end it and start it again.
        to_disable: commands that stop it and forget it, before the file goes.
        to_forget: commands after the file has gone.
        to_ask: a command that ends with 0 while it runs.
        encoding: of the file.
    """

    egress: Egress
    kind: str
    file: Path
    text: str
    to_enable: tuple[tuple[str, ...], ...]
    to_start: tuple[tuple[str, ...], ...]
    to_restart: tuple[tuple[str, ...], ...]
    to_disable: tuple[tuple[str, ...], ...]
    to_forget: tuple[tuple[str, ...], ...]
    to_ask: tuple[str, ...]
    encoding: str = "utf-8"
    environ: Mapping[str, str] = field(repr=False)

    def status(self) -> ServiceStatus:
        """Say what is there.

        Raises:
            CompanionError: the file cannot be read.
        """
        state = self.look()
        running = state is not ServiceState.ABSENT and self._run(self.to_ask)[0] == 0
        return ServiceStatus(state=state, running=running)

    def install(self, *, start: bool) -> None:
        """Write the file, make it known, and start it now unless something runs already.

        Raises:
            Refused: `service_foreign`.
            EnvironmentUnavailable: `service_manager_absent`, `disk_unavailable`.
        """
        self._refuse_foreign()
        before = read_private(self.file, _MAX_BYTES)
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self.file, self.text.encode(self.encoding), mode=_MODE)
        except OSError as error:
            raise lack_of(error, path=self.file) from error
        try:
            for command in (*self.to_enable, *(self.to_start if start else ())):
                self._require(command)
        except CompanionError:
            self._put_back(before)
            raise

    def restart(self) -> None:
        """Have the manager end what it runs, drained, and start it again.

        Raises:
            EnvironmentUnavailable: `service_manager_absent`.
        """
        for command in self.to_restart:
            self._require(command)

    def uninstall(self) -> bool:
        """Stop it, forget it and remove the file; False if there was none.

        Raises:
            Refused: `service_foreign`.
            EnvironmentUnavailable: `service_manager_absent`, `disk_unavailable`.
        """
        self._refuse_foreign()
        if self.look() is ServiceState.ABSENT:
            return False
        for command in self.to_disable:
            self._run(command)  # it may be stopped or forgotten already
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise lack_of(error, path=self.file) from error
        for command in self.to_forget:
            self._run(command)
        return True

    def _put_back(self, before: bytes | None) -> None:
        """Leave what was there before a manager refused the new file."""
        with contextlib.suppress(OSError, CompanionError):
            if before is None:
                self.file.unlink(missing_ok=True)
            else:
                write_private(self.file, before, mode=_MODE)

    def look(self) -> ServiceState:
        """Say what is written, without asking the manager.

        Raises:
            CompanionError: the file cannot be read.
        """
        if os.path.islink(self.file):  # noqa: PTH114 - a link of whatever kind
            return ServiceState.FOREIGN
        raw = read_private(self.file, _MAX_BYTES)
        if raw is None:
            return ServiceState.ABSENT
        text = raw.decode(self.encoding, "replace")
        if text == self.text:
            return ServiceState.OK
        return ServiceState.DRIFT if _OURS in text else ServiceState.FOREIGN

    def _refuse_foreign(self) -> None:
        if self.look() is ServiceState.FOREIGN:
            raise Refused(Reason.SERVICE_FOREIGN, str(self.file))

    def _require(self, command: Sequence[str]) -> None:
        code, said = self._run(command)
        if code:
            shown = said.strip().splitlines()[-1:] or [f"it ended with {code}"]
            raise EnvironmentUnavailable(
                Reason.SERVICE_MANAGER_ABSENT,
                f"{os.path.basename(command[0])}: {shown[0]}",  # noqa: PTH119 - of any system
            )

    def _run(self, command: Sequence[str]) -> tuple[int, str]:
        try:
            process = self.egress.start_process(
                command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise EnvironmentUnavailable(Reason.SERVICE_MANAGER_ABSENT, command[0]) from error
        with process:
            try:
                said, _ = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return 1, f"no answer within {_SECONDS:.0f} seconds"
        return process.returncode, said.decode("utf-8", "replace")


def choose_manager(
    facts: ServiceFacts,
    egress: Egress,
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    home: Callable[[], Path] = Path.home,
    spool: Path,
) -> ServiceManager:
    """Return the manager of this system.

    Args:
        facts: what is started.
        egress: the doorway to the machine.
        platform: as `sys.platform` has it.
        environ: the person's.
        home: their home folder.
        spool: a folder of ours, for what a manager copies from.
    """
    if platform == "darwin":
        return _launchd(facts, egress, environ, home())
    if platform == "win32":
        return _tasks(facts, egress, environ, spool)
    return _systemd(facts, egress, environ, home)


def _systemd(
    facts: ServiceFacts, egress: Egress, environ: Mapping[str, str], home: Callable[[], Path]
) -> ServiceManager:
    unit, control = f"{facts.name}.service", ("/usr/bin/systemctl", "--user")
    configured = environ.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else home() / ".config"  # noqa: PTH117
    return ServiceManager(
        egress=egress,
        kind="systemd",
        file=base / "systemd" / "user" / unit,
        text=systemd_unit(facts),
        to_enable=((*control, "daemon-reload"), (*control, "enable", unit)),
        to_start=((*control, "restart", unit),),
        to_restart=((*control, "restart", unit),),
        to_disable=((*control, "disable", "--now", unit),),
        to_forget=((*control, "daemon-reload"), (*control, "reset-failed", unit)),
        to_ask=(*control, "is-active", "--quiet", unit),
        environ=environ,
    )


def _launchd(
    facts: ServiceFacts, egress: Egress, environ: Mapping[str, str], home: Path
) -> ServiceManager:
    label, control = launchd_label(facts), "/bin/launchctl"
    file = home / "Library" / "LaunchAgents" / f"{label}.plist"
    domain = f"gui/{os.getuid()}" if hasattr(os, "getuid") else "gui/0"
    return ServiceManager(
        egress=egress,
        kind="launchd",
        file=file,
        text=launchd_agent(facts),
        to_enable=((control, "enable", f"{domain}/{label}"),),
        to_start=((control, "bootstrap", domain, str(file)),),
        to_restart=((control, "kickstart", "-k", f"{domain}/{label}"),),
        to_disable=((control, "bootout", f"{domain}/{label}"),),
        to_forget=(),
        to_ask=(control, "print", f"{domain}/{label}"),
        environ=environ,
    )


def _tasks(
    facts: ServiceFacts, egress: Egress, environ: Mapping[str, str], spool: Path
) -> ServiceManager:
    root = environ.get("SystemRoot", r"C:\Windows")
    control, task = rf"{root}\System32\schtasks.exe", rf"\{facts.name}"
    user = rf"{environ.get('USERDOMAIN', '')}\{environ.get('USERNAME', '')}".lstrip("\\")
    file = spool / f"{facts.name}.xml"
    return ServiceManager(
        egress=egress,
        kind="Task Scheduler",
        file=file,
        text=scheduled_task(facts, user),
        to_enable=((control, "/Create", "/F", "/TN", task, "/XML", str(file)),),
        to_start=((control, "/Run", "/TN", task),),
        to_restart=((control, "/End", "/TN", task), (control, "/Run", "/TN", task)),
        to_disable=((control, "/End", "/TN", task), (control, "/Delete", "/F", "/TN", task)),
        to_forget=(),
        to_ask=(control, "/Query", "/TN", task),
        encoding="utf-16",
        environ=environ,
    )
