"""A stop that comes while the companion still starts takes effect soon, and nothing is left."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest

from companion_core.testing.model_host import Misbehaviour

pytestmark = pytest.mark.integration

DEADLINE_SECONDS = 60

# The command line, which waits longer for a silent host than a test on a busy machine takes. Its
# own source is an argument, so that it can detach.
PATIENT = """
import sys
from companion_core.egress import https_get
from companion_core.authority import manifest_fetch
from companion_core.cli import detached, main

program = sys.argv.pop(1)
detached._SELF = ("-P", "-c", program, program)
https_get.HEAD_SECONDS = 600
manifest_fetch.IDLE_SECONDS = manifest_fetch.BODY_SECONDS = manifest_fetch.TOTAL_SECONDS = 600
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["manifest", "download"])
def stuck(request, world):
    """A world whose manifest or model host falls silent in the middle of its answer."""
    world.publish()
    if request.param == "manifest":
        world.manifest_host.answer = lambda _request: world.manifest_host.stopping.wait(60)
    else:
        world.model_host.misbehave = Misbehaviour(stall_after=1000)
    world.configure()
    return world


@contextlib.contextmanager
def starting(world, *arguments):
    """`companion up`, far enough that its control socket answers."""
    options = world.argv("up", *arguments)[3:]
    with subprocess.Popen(
        [sys.executable, "-c", PATIENT, PATIENT, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while world.companion("status", "--json").returncode == 5:
            assert up.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield up
        finally:
            if up.poll() is None:
                up.kill()


def assert_nothing_runs(world):
    assert world.wait_until_alone() == []
    instance = world.state / "instances" / "default"
    assert not (instance / "state.json").exists()
    assert not (instance / "run").exists()


def assert_nothing_is_left(world):
    assert_nothing_runs(world)
    assert world.stored_models() == []


@pytest.mark.parametrize("mode", [[], ["--detach"]], ids=["foreground", "detached"])
def test_down_ends_a_start(stuck, mode):
    with starting(stuck, *mode) as up:
        down = stuck.companion("down", "--json")
        assert json.loads(down.stdout) == {"ok": True, "stopped": True}, down.stderr
        _, err = up.communicate(timeout=DEADLINE_SECONDS)
    assert up.returncode == 130
    assert err.splitlines()[-1].startswith("companion: interrupted: ")
    assert_nothing_is_left(stuck)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", [[], ["--detach"]], ids=["foreground", "detached"])
def test_a_signal_ends_a_start_also_of_a_detached_one_by_its_parent(stuck, mode, number):
    with starting(stuck, *mode) as up:
        up.send_signal(number)
        _, err = up.communicate(timeout=DEADLINE_SECONDS)
    assert up.returncode == 130, err
    assert err.splitlines()[-1].startswith("companion: interrupted: ")
    assert_nothing_is_left(stuck)


def test_a_closed_terminal_drains_what_runs(world):
    world.publish()
    world.configure()
    with starting(world, "--json") as up:
        assert json.loads(up.stdout.readline())["available"] is True
        up.send_signal(signal.SIGHUP)
        up.communicate(timeout=DEADLINE_SECONDS)
    assert up.returncode == 0
    assert_nothing_runs(world)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_very_end_of_a_detached_start_changes_nothing_or_ends_it(world, number):
    world.publish()
    world.configure()
    with starting(world, "--detach") as up:
        for line in up.stderr:
            if line.startswith("available"):
                break
        up.send_signal(number)
        up.communicate(timeout=DEADLINE_SECONDS)
    if up.returncode == 0:
        assert world.status()["available"] is True
    else:
        assert up.returncode == 130
        assert_nothing_runs(world)
