"""What the companion and a keeper write to each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from companion_core.runtime.process.keeper_protocol import (
    Apart,
    Exited,
    LockPolicy,
    StartCommand,
    Started,
    StartFailed,
    parse_report,
)

pytestmark = pytest.mark.unit

POLICY = LockPolicy(
    read=("/usr",),
    write=("/data",),
    devices=("/dev/null",),
    port=4711,
    calls=b"\x06\x00",
    calls_here=b"\x06\x01",
)


def test_a_command_is_the_line_that_the_keeper_reads() -> None:
    command = StartCommand(
        argv=("/it", "--flag"),
        env={"HOME": "/run/me"},
        descriptors=(7, 9),
        policy=POLICY,
        apart=Apart(network=True),
        group=Path("/sys/fs/cgroup/mine"),
        programs=2,
    )
    line = command.to_json()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "argv": ["/it", "--flag"],
        "env": {"HOME": "/run/me"},
        "descriptors": [7, 9],
        "policy": {
            "read": ["/usr"],
            "write": ["/data"],
            "devices": ["/dev/null"],
            "port": 4711,
            "calls": "0600",
            "calls_here": "0601",
        },
        "apart": {"network": True},
        "group": "/sys/fs/cgroup/mine",
    }


def test_without_a_policy_and_a_group_both_are_null() -> None:
    message = json.loads(StartCommand(argv=("/it",), env={}).to_json())
    assert (message["policy"], message["group"], message["descriptors"]) == (None, None, [])
    assert message["apart"] is None


def test_the_environment_with_the_backend_s_key_is_in_no_repr() -> None:
    assert "s3cr3t" not in repr(StartCommand(argv=("/it",), env={"KEY": "s3cr3t"}))


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b'{"started": 4711}', Started(4711)),
        (b'{"started": 4711, "first": 4710}', Started(4711, first=4710)),
        (b'{"started": 4711, "first": 0}', Started(4711, first=0)),
        (b'{"failed": 2}', StartFailed(2)),
        (b'{"exited": -9, "for_memory": true}', Exited(-9, for_memory=True)),
        (b'{"exited": 0, "for_memory": false}', Exited(0, for_memory=False)),
        (b'{"started": 0}', None),
        (b'{"started": "4711"}', None),
        (b'{"failed": "2"}', None),
        (b'{"exited": 0}', None),
        (b'{"another": 1}', None),
        (b"[]", None),
    ],
)
def test_a_report_is_parsed_and_anything_else_is_none(line, report) -> None:
    assert parse_report(line) == report


def test_a_line_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        parse_report(b"started")
