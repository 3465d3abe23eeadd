"""`companion down`: drain and stop the verified process."""

from __future__ import annotations

import signal
from typing import Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.control.client import RunningInstance, ask, find_running, wait_until_gone
from companion_core.egress.interface import KILL, Egress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason

# Running answers may finish (30 s), the runtime is terminated or killed (10 s), and the token is
# deleted from the keychain (10 s).
STOP_DEADLINE_SECONDS: Final = 60.0
KILL_DEADLINE_SECONDS: Final = 5.0


@click.command("down")
@click.option("--now", is_flag=True, help="Do not wait for running answers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, now: bool, as_json: bool) -> None:
    """Drain and stop the companion; it is fine if none runs."""
    running = find_running(settings.paths, settings.egress)
    if running is None:
        echo_result({"ok": True, "stopped": False}, "nothing runs", as_json=as_json)
        return
    stop(running, settings.egress, now=now)
    echo_result({"ok": True, "stopped": True}, "stopped", as_json=as_json)


def stop(running: RunningInstance, egress: Egress, *, now: bool) -> None:
    """Stop a companion that was proved to be ours, and return when it has ended.

    Raises:
        EnvironmentUnavailable: `control_unavailable` if it survives even the last signal.
    """
    try:
        ask(running, egress, "drain", now=now)
    except CompanionError:
        # It does not answer. Its pid and start time are proved, so the signal hits no other
        # process.
        if not running.seen:
            raise
        egress.send_signal(running.identity, signal.SIGTERM)
    if wait_until_gone(running, egress, STOP_DEADLINE_SECONDS):
        return
    if running.seen:
        egress.send_signal(running.identity, KILL)
    if not wait_until_gone(running, egress, KILL_DEADLINE_SECONDS):
        raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)
