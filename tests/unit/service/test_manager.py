"""What each manager is asked to do, and that nothing foreign is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.service.manager import ServiceManager, ServiceState, choose_manager
from companion_core.service.texts import ServiceFacts

pytestmark = pytest.mark.unit

FACTS = ServiceFacts(
    instance="default", program="/usr/bin/python3", arguments=("-m", "companion_core", "up")
)


class _Ended:
    def __init__(self, code: int, said: bytes) -> None:
        self.returncode = code
        self._said = said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def communicate(self, timeout: float) -> tuple[bytes, None]:
        return self._said, None


class Machine:
    """An egress that notes what is started, and has it end as told."""

    def __init__(self, code: Callable[[str], int] = lambda _line: 0, said: bytes = b"") -> None:
        self.asked: list[str] = []
        self._code = code
        self._said = said

    def start_process(self, argv: Any, **_options: Any) -> Any:
        line = " ".join(argv[1:])
        self.asked.append(line)
        return _Ended(self._code(line), self._said)


def manager(tmp_path: Path, machine: Any, platform: str = "linux") -> ServiceManager:
    return choose_manager(
        FACTS,
        machine,
        platform=platform,
        environ={"USERDOMAIN": "HOME", "USERNAME": "me"},
        home=lambda: tmp_path,
        spool=tmp_path / "state",
    )


PLACES = {
    "linux": ".config/systemd/user/companion.service",
    "darwin": "Library/LaunchAgents/org.companion-core.companion.plist",
    "win32": "state/companion.xml",
}


@pytest.mark.parametrize("platform", PLACES)
def test_it_is_written_known_started_and_removed_again(tmp_path: Path, platform: str) -> None:
    machine = Machine()
    made = manager(tmp_path, machine, platform)
    assert made.status().state is ServiceState.ABSENT
    made.install(start=True)
    assert made.file == tmp_path / PLACES[platform]
    assert made.status().state is ServiceState.OK
    assert made.status().running
    assert made.uninstall()
    assert not made.file.exists()
    assert not made.uninstall()


def test_systemd_is_asked_in_this_order(tmp_path: Path) -> None:
    machine = Machine()
    made = manager(tmp_path, machine)
    made.install(start=True)
    made.uninstall()
    assert machine.asked == [
        "--user daemon-reload",
        "--user enable companion.service",
        "--user restart companion.service",
        "--user disable --now companion.service",
        "--user daemon-reload",
        "--user reset-failed companion.service",
    ]


def test_what_runs_already_is_not_started_a_second_time(tmp_path: Path) -> None:
    machine = Machine()
    manager(tmp_path, machine).install(start=False)
    assert "--user restart companion.service" not in machine.asked


@pytest.mark.parametrize("platform", PLACES)
def test_a_foreign_service_of_that_name_stays(tmp_path: Path, platform: str) -> None:
    machine = Machine()
    made = manager(tmp_path, machine, platform)
    made.file.parent.mkdir(parents=True)
    made.file.write_text("[Service]\nExecStart=/bin/true\n", encoding=made.encoding)
    assert made.status().state is ServiceState.FOREIGN
    for act in (lambda: made.install(start=True), made.uninstall):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.reason is Reason.SERVICE_FOREIGN
        assert str(made.file) in caught.value.detail
    assert "/bin/true" in made.file.read_text(encoding=made.encoding)


def test_a_link_is_foreign_whatever_it_leads_to(tmp_path: Path) -> None:
    made = manager(tmp_path, Machine())
    made.file.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text(made.text)
    made.file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        made.install(start=True)
    assert (tmp_path / "elsewhere").read_text() == made.text


def test_what_we_wrote_before_is_drift_and_is_written_again(tmp_path: Path) -> None:
    made = manager(tmp_path, Machine())
    made.install(start=True)
    made.file.write_text(made.text.replace("RestartSec=30", "RestartSec=1"))
    assert made.status().state is ServiceState.DRIFT
    made.install(start=True)
    assert made.status().state is ServiceState.OK


def test_what_the_manager_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    machine = Machine(lambda line: 1 if "enable" in line else 0, b"Failed to connect to bus\n")
    made = manager(tmp_path, machine)
    with pytest.raises(EnvironmentUnavailable) as caught:
        made.install(start=True)
    assert caught.value.reason is Reason.SERVICE_MANAGER_ABSENT
    assert caught.value.detail == "systemctl: Failed to connect to bus"
    assert not made.file.exists()
    made.file.write_text("# companion_core, an earlier release\n")
    with pytest.raises(EnvironmentUnavailable):
        made.install(start=True)
    assert made.file.read_text() == "# companion_core, an earlier release\n"


def test_in_an_armed_sandbox_nothing_is_started(tmp_path: Path) -> None:
    made = manager(tmp_path, RefusingEgress())
    with pytest.raises(CompanionError):
        made.install(start=True)


def test_a_configured_folder_counts_where_it_is_absolute(tmp_path: Path) -> None:
    for folder, expected in (("/x/config", "/x/config"), ("relative", f"{tmp_path}/.config")):
        made = choose_manager(
            FACTS,
            RefusingEgress(),
            platform="linux",
            environ={"XDG_CONFIG_HOME": folder},
            home=lambda: tmp_path,
            spool=tmp_path,
        )
        assert str(made.file) == f"{expected}/systemd/user/companion.service"
