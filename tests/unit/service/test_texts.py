"""What service managers read: words that stay whole, and keys that the managers know."""

from __future__ import annotations

import plistlib
import shlex
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.errors import Reason, UsageError
from companion_core.service.texts import (
    ServiceFacts,
    launchd_agent,
    scheduled_task,
    systemd_unit,
)

pytestmark = pytest.mark.unit

FACTS = ServiceFacts(
    instance="default",
    program="/usr/bin/python3",
    arguments=("-P", "-m", "companion_core", "--state-dir", "/home/me/a b", "up"),
)
# launchd.plist(5)
KNOWN = {
    "Label",
    "ProgramArguments",
    "RunAtLoad",
    "KeepAlive",
    "ThrottleInterval",
    "ExitTimeOut",
    "Umask",
    "ProcessType",
    "HardResourceLimits",
}
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def read_by_systemd(line: str) -> list[str]:
    """Return the words of an ExecStart, as systemd.service(5) says that they are read."""
    words = shlex.split(line)
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def command_of(unit: str) -> str:
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


def test_an_instance_has_a_service_of_its_own() -> None:
    assert FACTS.name == "companion"
    other = ServiceFacts(instance="second", program="/p", arguments=())
    assert other.name == "companion-second"


@given(st.lists(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")))))
def test_systemd_reads_every_word_as_it_was(words: list[str]) -> None:
    if not all(word.isprintable() for word in words):
        return
    facts = ServiceFacts(instance="default", program="/usr/bin/python3", arguments=tuple(words))
    assert read_by_systemd(command_of(systemd_unit(facts))) == [facts.program, *words]


def test_a_specifier_and_a_variable_are_no_such_thing() -> None:
    facts = ServiceFacts(instance="default", program="/p", arguments=("%h", "$HOME", 'a"b\\'))
    assert command_of(systemd_unit(facts)) == '"/p" "%%h" "$$HOME" "a\\"b\\\\"'


@pytest.mark.parametrize("word", ["a\nExecStart=/bin/sh", "a\x00", "\x1b[2J", "a\tb"])
def test_a_word_that_could_begin_a_line_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        ServiceFacts(instance="default", program="/p", arguments=(word,))
    assert caught.value.reason is Reason.USAGE


def test_the_unit_lets_ceilings_be_hard_and_ends_when_only_a_person_can_help() -> None:
    lines = systemd_unit(FACTS).splitlines()
    assert "Delegate=yes" in lines
    assert "UMask=0077" in lines
    assert "Restart=on-failure" in lines
    assert "RestartPreventExitStatus=2 3 5 130" in lines


def test_the_agent_has_documented_keys_alone() -> None:
    document = plistlib.loads(launchd_agent(FACTS).encode())
    assert set(document) == KNOWN
    assert document["ProgramArguments"] == [FACTS.program, *FACTS.arguments]
    assert document["Umask"] == 0o077
    assert document["KeepAlive"] == {"SuccessfulExit": False}


def test_the_task_runs_as_the_person_without_further_rights() -> None:
    text = scheduled_task(FACTS, "HOME\\me & you")
    task = ET.fromstring(text.split("\n", 1)[1])  # noqa: S314 - our own
    # The order of the schema's sequence.
    assert [each.tag.removeprefix(TASK) for each in task] == [
        "RegistrationInfo",
        "Triggers",
        "Principals",
        "Settings",
        "Actions",
    ]
    found = {each.tag.removeprefix(TASK): each.text for each in task.iter()}
    assert found["UserId"] == "HOME\\me & you"
    assert found["RunLevel"] == "LeastPrivilege"
    assert found["LogonType"] == "InteractiveToken"
    assert found["ExecutionTimeLimit"] == "PT0S"
    assert found["Command"] == FACTS.program
    assert found["Arguments"] == '-P -m companion_core --state-dir "/home/me/a b" up'
