"""What is read back of a running companion, with a companion, a runtime and a gateway made up."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_parts import ANSWERS, make_config, make_row, make_situation, make_survey
from runtime_parts import wait_until

from companion_core.decisions.verdict import refuse
from companion_core.doctor import running
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import (
    BROKEN,
    Status,
    fine,
    judge,
    skipped,
)
from companion_core.doctor.invariants import INVARIANTS, judge_invariant
from companion_core.egress.interface import ProcessUnreadable
from companion_core.errors import CompanionError, Reason

pytestmark = pytest.mark.integration

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
STATUS: dict[str, Any] = {
    "available": True,
    "reason": "ok",
    "lifecycle": "ready",
    "pid": os.getpid(),
    "gateway": {"url": "http://127.0.0.1:1/v1"},
    "runtime": {
        "name": "lamp",
        "pid": os.getpid(),
        "channel": "unix",
        "isolation": "none",
        "ceilings": "observed",
    },
    "model": {"id": "tiny", "verified": True},
    "admission": {"in_flight": 0, "max_in_flight": 2, "queued": 0, "queue_bound": 16},
    "resources": {"ram_bytes": 10, "vram_bytes": 0, "cpu_percent": 0.1},
    "last_health_ok_seconds_ago": 1.0,
}


def situation_of(tmp_path, **changes):
    situation = make_situation(tmp_path)
    situation.status = {**STATUS, **changes}
    situation.plugins = make_survey()
    return situation


def test_of_nothing_running_every_row_says_so(tmp_path):
    situation = make_situation(tmp_path)
    situation.rows["companion"] = make_row("companion", skipped(Reason.NOT_RUNNING, "nothing runs"))
    rows = [row for row in run_checks(running.checks(), situation) if row.id != "companion"]
    assert rows
    assert {(row.status, row.reason) for row in rows} == {(Status.SKIP, Reason.NOT_RUNNING)}


def test_a_companion_that_only_starts_breaks_no_check(tmp_path):
    situation = situation_of(
        tmp_path,
        available=False,
        reason="not_verified",
        lifecycle="stopped",
        gateway=None,
        runtime=None,
        model={"id": "tiny", "verified": False},
        admission=None,
        resources=None,
        last_health_ok_seconds_ago=None,
    )
    situation.rows["companion"] = make_row("companion", fine())
    rows = {row.id: row for row in run_checks(running.checks(), situation)}
    assert rows["available"].reason is Reason.NOT_VERIFIED
    for name in (
        "running-runtime", "gateway", "admission", "resources", "runtime-environment",
        "runtime-sockets", "gateway-sockets", "guard",
    ):  # fmt: skip
        assert (rows[name].status, rows[name].reason) == (Status.SKIP, Reason.NOT_READY)


@pytest.mark.parametrize(
    ("check", "changes", "reason"),
    [
        (running.check_available, {}, "ok"),
        (running.check_available, {"available": False, "reason": "health_stale"}, "health_stale"),
        (running.check_verified, {}, "ok"),
        (running.check_verified, {"model": {"id": "tiny", "verified": False}}, "not_verified"),
        (running.check_admission, {}, "ok"),
        (running.check_runtime, {}, "ok"),
        (running.check_runtime, {"runtime": None}, "not_ready"),
        (running.check_gateway, {}, "ok"),
        (running.check_gateway, {"gateway": None}, "not_ready"),
        (
            running.check_admission,
            {"admission": {**STATUS["admission"], "queued": 17}},
            "malformed_admission_state",
        ),
        (running.check_resources, {}, "ok"),
        (running.check_resources, {"resources": None}, "probe_failed"),
        (
            running.check_resources,
            {"resources": {**STATUS["resources"], "ram_bytes": 10**15}},
            "ram_over_limit",
        ),
    ],
)
def test_what_its_status_says_is_judged(tmp_path, check, changes, reason):
    situation = situation_of(tmp_path, **changes)
    situation.config = make_config(limits={"max_ram_bytes": 10**9})
    assert check(situation).reason.value == reason


@contextlib.contextmanager
def process(code: str, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A made-up runtime, once it has printed a line."""
    base = {"PATH": "/usr/bin:/bin", "HOME": "/x", "TMPDIR": "/x", "LANG": "C.UTF-8"}
    base["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen(
        [
            sys.executable,
            "-IS",
            "-c",
            f"{code}\nprint(1, flush=True)\nimport time\ntime.sleep(3600)",
            *arguments,
        ],
        env=base | env,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield started
        finally:
            os.killpg(started.pid, signal.SIGKILL)


@LINUX
@pytest.mark.parametrize(
    ("env", "extra"),
    [
        ({}, ""),
        ({"LAMP_KEY": "x", "PWD": "/x", "CUDA_VISIBLE_DEVICES": "0"}, ""),
        ({"SSH_AUTH_SOCK": "/x"}, "SSH_AUTH_SOCK"),
        ({"LAMP_CHILD": "x"}, "LAMP_CHILD"),
    ],
)
def test_a_name_that_was_not_planned_is_told(tmp_path, env, extra):
    with process("pass", **env) as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": "unix"}
        found = running.check_runtime_environment(situation_of(tmp_path, runtime=status))
    assert (found.status is Status.FAIL) == bool(extra), found.detail
    assert extra in found.detail
    assert not extra or found.reason is Reason.RUNTIME_ENVIRONMENT


@pytest.mark.parametrize("changes", [{"plugin": "other"}, None])
def test_without_what_its_plugin_declares_the_names_are_not_judged(tmp_path, changes):
    situation = situation_of(tmp_path)
    answers = None if changes is None else {"runtime": {**ANSWERS["runtime"], **changes}}
    situation.plugins = make_survey(answers=answers)
    found = running.check_runtime_environment(situation)
    assert (found.status, found.reason) == (Status.SKIP, Reason.PROVIDER_MISSING)


@LINUX
def test_a_child_of_the_runtime_may_add_what_its_plugin_declared(tmp_path):
    fork = "import os\nif not os.fork():\n    os.execve({!r}, ['sleep', '3600'], {{{!r}: 'x'}})"
    for name, status in (("LAMP_CHILD", Status.OK), ("AWS_PROFILE", Status.FAIL)):
        with process(fork.format("/bin/sleep", name)) as runtime:
            seen = situation_of(
                tmp_path, runtime={"name": "lamp", "pid": runtime.pid, "channel": "unix"}
            )

            def became_its_program(seen=seen, status=status) -> bool:
                found = running.check_runtime_environment(seen)
                assert found.status in {Status.OK, status}, found.detail
                said = status is Status.FAIL or "1 processes" in found.detail
                return found.status is status and said

            assert wait_until(became_its_program)


@LINUX
def test_a_name_that_every_runtime_has_may_not_be_missing(tmp_path):
    base = {"PATH": "/usr/bin:/bin", "HOME": "/x", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(["/bin/sleep", "3600"], env=base) as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": "unix"}
        situation = situation_of(tmp_path, runtime=status)
        while "HOME" not in Path(f"/proc/{runtime.pid}/environ").read_text():
            pass
        found = running.check_runtime_environment(situation)
        runtime.kill()
    assert (found.reason, found.detail) == (Reason.RUNTIME_ENVIRONMENT, "missing: TMPDIR")


@LINUX
def test_the_environment_is_judged_by_the_rule_that_the_core_has(tmp_path, monkeypatch):
    asked = []

    def rule(own, others, *, planned, child_names):
        asked.append((own, [*others], planned, child_names))
        return refuse(Reason.RUNTIME_ENVIRONMENT)

    monkeypatch.setattr(running, "check_environment", rule)
    with process("pass", LAMP_KEY="x") as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": "unix"}
        found = running.check_runtime_environment(situation_of(tmp_path, runtime=status))
    assert found.reason is Reason.RUNTIME_ENVIRONMENT
    names = frozenset({"PATH", "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "LAMP_KEY"})
    assert asked == [(names, [], names, frozenset(ANSWERS["runtime"]["child_env_names"]))]


@LINUX
def test_a_process_that_the_system_does_not_show_is_no_lack_of_processes(tmp_path, monkeypatch):
    def unreadable(_pid):
        raise ProcessUnreadable

    monkeypatch.setattr(running, "descendants", unreadable)
    situation = situation_of(tmp_path)
    situation.rows["companion"] = make_row("companion", fine())
    rows = {row.id: row for row in run_checks(running.checks(), situation)}
    for name in ("runtime-environment", "runtime-sockets"):
        assert (rows[name].status, rows[name].reason) == (Status.FAIL, Reason.PROCESS_UNREADABLE)


LISTEN = "import socket\ns = socket.socket()\ns.bind(({!r}, 0))\ns.listen()"


@LINUX
@pytest.mark.parametrize(
    ("code", "channel", "ok"),
    [
        ("pass", "unix", True),
        (LISTEN.format("127.0.0.1"), "unix", False),
        (LISTEN.format("0.0.0.0"), "unix", False),
        (LISTEN.format("127.0.0.1"), "tcp", True),
        (LISTEN.format("127.0.0.1"), "namespace", True),
        (LISTEN.format("0.0.0.0"), "tcp", False),
        (LISTEN.format("0.0.0.0"), "namespace", False),
        ("pass", "tcp", False),
    ],
)
def test_a_runtime_that_listens_wider_is_told(tmp_path, code, channel, ok):
    with process(code) as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": channel}
        found = running.check_runtime_sockets(situation_of(tmp_path, runtime=status))
    assert (found.status is Status.OK) is ok, found.detail
    assert ok or found.reason is Reason.RUNTIME_LISTENS_WIDE


@pytest.mark.skipif(sys.platform == "darwin", reason="sockets are shown to root alone")
@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", Status.OK),
        pytest.param("127.0.0.2", Status.OK, marks=LINUX),
        ("", Status.FAIL),
    ],
)
def test_a_gateway_beyond_loopback_breaks_i_17(tmp_path, address, status):
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        found = running.check_gateway_sockets(situation_of(tmp_path, gateway={"url": url}))
    assert found.status is status, found.detail
    row = make_row("gateway-sockets", found)
    rule = next(each for each in INVARIANTS if each.id == "I-17")
    assert judge_invariant(rule, {row.id: row}).status is status
    assert judge([row]).exit_code == (0 if status is Status.OK else BROKEN)


@pytest.mark.skipif(sys.platform == "darwin", reason="sockets are shown to root alone")
def test_a_port_that_nobody_holds_is_a_lack(tmp_path):
    found = running.check_gateway_sockets(situation_of(tmp_path))  # nobody listens on port 1
    assert (found.status, found.reason) == (Status.FAIL, Reason.LISTENER_NOT_BOUND)


class Gateway(http.server.BaseHTTPRequestHandler):
    """Refuses as the real one does, but for what `fault` says."""

    fault = ""

    def do_GET(self) -> None:
        code = "missing_token"
        if self.headers["Host"] == "attacker.example" and self.fault != "host":
            code = "host_not_allowed"
        elif self.headers["Origin"]:
            code = "cross_site_forbidden"
        elif self.fault == "open":
            code = "ok"
        elif self.fault == "spent":
            code = "rate_limited"
        body = json.dumps({"error": {"code": code}}).encode()
        if self.fault == "garbage":
            body = b"<html>"
        self.send_response(403)
        if self.fault == "cors":
            self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("fault", ["", "spent", "host", "open", "cors", "garbage"])
def test_a_gateway_that_lets_a_stranger_in_is_told(tmp_path, fault):
    handler = type("Faulty", (Gateway,), {"fault": fault})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            found = running.check_guard(situation_of(tmp_path, gateway={"url": url}))
        finally:
            server.shutdown()
            thread.join()
    assert (found.status is Status.OK) == (fault in {"", "spent"}), found.detail


def test_a_gateway_that_does_not_answer_is_told(tmp_path):
    found = running.check_guard(situation_of(tmp_path))  # nobody listens on port 1
    assert (found.status, found.reason) == (Status.FAIL, Reason.LISTENER_NOT_BOUND)


@LINUX
@pytest.mark.parametrize(
    ("umask", "name", "status"),
    [
        (0o077, "/usr/bin/companion", Status.OK),
        (0o022, "/usr/bin/companion", Status.FAIL),
        (0o022, "companion_core", Status.FAIL),
        (0o022, "/opt/companion-product/main", Status.SKIP),
    ],
)
def test_a_companion_whose_files_or_memory_others_could_read_is_told(tmp_path, umask, name, status):
    code = (
        f"import os, resource; os.umask({umask}); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    )
    with process(code, name) as companion:
        found = running.check_process(situation_of(tmp_path, pid=companion.pid))
    assert found.status is status, found.detail


@pytest.mark.security
def test_a_token_in_a_log_is_told_and_never_shown(tmp_path, monkeypatch):
    situation = situation_of(tmp_path)
    situation.paths.prepare()
    situation.running = object()  # type: ignore[assignment]
    log: Path = situation.paths.logs / "runtime.log"
    log.write_text("nothing to see")
    monkeypatch.setattr(running, "ask", lambda *_: {"token": "planted-token"})
    found = running.check_logs(situation)
    assert found.status is Status.OK
    assert "last MiB" in found.detail
    log.write_text("x" * 3_000_000 + "planted-token\n")
    found = running.check_logs(situation)
    assert found.status is Status.FAIL
    assert "runtime.log" in found.detail
    assert "planted-token" not in found.detail

    def refuse(*_: object) -> None:
        raise CompanionError(Reason.NOT_READY)

    monkeypatch.setattr(running, "ask", refuse)
    assert running.check_logs(situation).status is Status.SKIP
