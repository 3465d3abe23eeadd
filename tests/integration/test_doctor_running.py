"""What is read back of a running companion, its runtime and its gateway: processes and sockets."""

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

import pytest
from doctor_parts import ANSWERS, make_row, situation_of
from runtime_parts import wait_until

from companion_core.decisions.verdict import refuse
from companion_core.doctor import running
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import BROKEN, Status, fine, judge
from companion_core.doctor.invariants import INVARIANTS, judge_invariant
from companion_core.egress.interface import ProcessUnreadable
from companion_core.errors import Reason

pytestmark = pytest.mark.integration

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")


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
def test_a_variable_that_was_not_planned_is_told(tmp_path, env, extra):
    with process("pass", **env) as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": "unix"}
        found = running.check_runtime_environment(situation_of(tmp_path, runtime=status))
    assert (found.status is Status.FAIL) == bool(extra), found.detail
    assert extra in found.detail
    assert not extra or found.reason is Reason.RUNTIME_ENVIRONMENT


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
def test_a_variable_that_every_runtime_has_may_not_be_missing(tmp_path):
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
def test_the_environment_is_judged_by_the_cores_own_rule(tmp_path, monkeypatch):
    asked = []

    def rule(own, others, *, planned, child_names):
        asked.append((own, [*others], planned, child_names))
        return refuse(Reason.RUNTIME_ENVIRONMENT)

    # Planted in the rule's place, to see what it is asked and that its answer counts.
    monkeypatch.setattr(running, "check_environment", rule)
    with process("pass", LAMP_KEY="x") as runtime:
        status = {"name": "lamp", "pid": runtime.pid, "channel": "unix"}
        found = running.check_runtime_environment(situation_of(tmp_path, runtime=status))
    assert found.reason is Reason.RUNTIME_ENVIRONMENT
    names = frozenset({"PATH", "HOME", "TMPDIR", "LANG", "PYTHONUNBUFFERED", "LAMP_KEY"})
    assert asked == [(names, [], names, frozenset(ANSWERS["runtime"]["child_env_names"]))]


@LINUX
def test_a_process_that_cannot_be_read_is_not_taken_for_none(tmp_path, monkeypatch):
    def unreadable(_pid):
        raise ProcessUnreadable

    # No process of this person can be hidden from root, which the tests may run as.
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
        (LISTEN.format("127.0.0.1"), "namespace", False),  # it is not in a network of its own
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


MOVE = """
import ctypes, os
user = 0x10000000 if os.geteuid() else 0
if ctypes.CDLL(None).unshare(0x40000000 | user):
    raise SystemExit
"""


@LINUX
@pytest.mark.parametrize(
    ("address", "channel", "ok"),
    [
        ("127.0.0.1", "namespace", True),
        ("127.0.0.1", "tcp", False),  # nobody reaches it there
        ("127.0.0.1", "unix", False),
        ("0.0.0.0", "namespace", False),
    ],
)
def test_a_runtime_listens_in_the_network_that_its_channel_is_in(
    tmp_path, require_real, address, channel, ok
):
    with process(MOVE + LISTEN.format(address)) as runtime:
        ours = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{runtime.pid}/ns/net")
        moved = runtime.poll() is None and theirs.readlink() != ours
        require_real("network namespaces for everybody", moved)
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
def test_a_gateway_port_without_a_listener_fails(tmp_path):
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
def test_a_companion_that_others_could_read_is_told(tmp_path, umask, name, status):
    code = (
        f"import os, resource; os.umask({umask}); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    )
    with process(code, name) as companion:
        found = running.check_process(situation_of(tmp_path, pid=companion.pid))
    assert found.status is status, found.detail
