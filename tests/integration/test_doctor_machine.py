"""The machine's own checks, asked of the real machine."""

from __future__ import annotations

import socket

import pytest
from doctor_parts import make_config, make_situation

from companion_core.doctor import machine
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.errors import Reason

pytestmark = pytest.mark.integration


def test_every_check_gives_a_row_on_this_machine(tmp_path):
    rows = {row.id: row for row in run_checks(machine.checks(), make_situation(tmp_path))}
    assert {
        "python",
        "platform",
        "packages",
        "extra.uvloop",
        "extra.httptools",
        "loopback-v4",
        "isolation.chosen",
    } <= set(rows)
    for name in ("python", "packages", "loopback-v4", "temporary", "certificates", "proxies"):
        assert rows[name].status is Status.OK, name
    assert all(row.reason is not Reason.INTERNAL_FAULT for row in rows.values())


@pytest.mark.parametrize(
    ("family", "status"), [(socket.AF_INET, Status.FAIL), (socket.AF_INET6, Status.SKIP)]
)
def test_the_gateway_needs_ipv4_and_can_do_without_ipv6(tmp_path, family, status):
    found = machine.check_loopback(make_situation(tmp_path), family=family, host="192.0.2.1")
    assert found.status is status


def test_a_port_that_is_taken_is_told_unless_it_is_ours(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        situation = make_situation(tmp_path)
        situation.config = make_config(gateway={"port": port})
        found = machine.check_port(situation)
        assert (found.status, found.reason) == (Status.FAIL, Reason.LISTENER_NOT_BOUND)
        situation.status = {"gateway": {"url": f"http://127.0.0.1:{port}/v1"}}
        assert machine.check_port(situation).status is Status.OK
    situation.status = None
    assert machine.check_port(situation).status is Status.OK
