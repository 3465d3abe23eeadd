"""`companion status`: what runs, and why it is or is not available."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.control.client import ask_running
from companion_core.errors import EXIT_CODES, CompanionError, Culprit, Reason
from companion_core.serving.last_end import last_end
from companion_core.serving.runtime_words import told_runtime
from companion_core.serving.step import amount

NOT_RUNNING: Final[dict[str, Any]] = {
    "available": False,
    "reason": Reason.NOT_RUNNING.value,
    "lifecycle": "stopped",
    "pid": None,
    "started_at": None,
    "gateway": None,
    "runtime": None,
    "model": None,
    "manifest": None,
    "admission": None,
    "resources": None,
    "gave_up": None,
    "last_health_ok_seconds_ago": None,
    "version": None,
    "plugins": {},
}
WATCH_SECONDS: Final = 1.0


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--watch", is_flag=True, help="Report again every second until interrupted.")
@click.pass_obj
def command(settings: Settings, *, as_json: bool, watch: bool) -> int:
    """Say what runs and why it is or is not available."""
    while True:
        document = read_status(settings)
        text = as_text(document)
        if document["pid"] is None and (ended := last_end(settings.paths)) is not None:
            text = f"{text}; {ended.told()}"
        echo_result(document, text, as_json=as_json)
        if not watch:
            break
        time.sleep(WATCH_SECONDS)
    running = document["reason"] != Reason.NOT_RUNNING.value
    return 0 if running else EXIT_CODES[Culprit.NOT_RUNNING]


def read_status(settings: Settings) -> dict[str, Any]:
    """Ask the running companion, if there is one."""
    try:
        return ask_running(settings.paths, settings.egress, "status")
    except CompanionError as error:
        if error.reason is not Reason.NOT_RUNNING:
            raise
        ended = last_end(settings.paths)
        return NOT_RUNNING if ended is None else {**NOT_RUNNING, "gave_up": ended.reason.value}


def as_text(status: dict[str, Any]) -> str:
    """Return the same facts as lines for a person."""
    if status["pid"] is None:
        return "not running"
    state = "available" if status["available"] else f"not available ({status['reason']})"
    if step := status.get("step"):
        state = "starting"
    version = f", version {status['version']}" if status.get("version") else ""
    lines = [
        f"{state}, lifecycle {status['lifecycle']}, "
        f"pid {status['pid']} since {status['started_at']}{version}"
    ]
    if step:
        lines.append(f"start      {_latest(step)}")
    if gateway := status["gateway"]:
        lines.append(f"gateway    {gateway['url']}")
    if runtime := status["runtime"]:
        lines.append(f"runtime    {runtime['name']}, pid {runtime['pid']}, {runtime['channel']}")
        lines.append(
            f"confined   {runtime['isolation']}; ceilings {runtime['ceilings']}: "
            f"{runtime['ceilings_detail']}"
        )
    if model := status["model"]:
        verified = ", verified" if model["verified"] else ""
        by = {"you": "you", "publisher": "its publisher"}.get(model.get("vouched_by", ""))
        vouched = "" if by is None else f", vouched for by {by}"
        lines.append(f"model      {model['id']}{verified}{vouched}")
    if runtime and (placement := runtime.get("placement")) is not None:
        lengths = (runtime["context_length"], runtime["model_context_length"])
        lines.append(f"computed   {told_runtime(placement, *lengths)}")
    if manifest := status.get("manifest"):
        if manifest["source"] == "own":
            come = f"your own list, signed {manifest['fetched_at']}"
        else:
            stored = "stored, its host did not answer; " if manifest["source"] == "stored" else ""
            come = f"{stored}fetched {manifest['fetched_at']}"
        lines.append(f"manifest   version {manifest['version']}, {come}")
    if swap := status.get("swap"):
        lines.append(f"swap       to {swap['model']}: {_latest(swap['step'])}")
    if admission := status["admission"]:
        lines.append(
            f"requests   {admission['in_flight']} of {admission['max_in_flight']} in flight, "
            f"{admission['queued']} of {admission['queue_bound']} waiting"
        )
    if resources := status["resources"]:
        lines.append(
            f"resources  {resources['ram_bytes'] / 1e6:.0f} MB memory, "
            f"{resources['vram_bytes'] / 1e6:.0f} MB graphics memory, "
            f"{resources['cpu_percent']:.1f} % of the machine"
        )
    if (age := status["last_health_ok_seconds_ago"]) is not None:
        lines.append(f"health     answered {age:.1f} s ago")
    if plugins := status["plugins"]:
        lines.append("plugins    " + ", ".join(f"{role} {name}" for role, name in plugins.items()))
    return "\n".join(lines)


def _latest(step: dict[str, Any] | None) -> str:
    if step is None:
        return "begun"
    return (
        f"{step['name']} {amount(step['done'], step['total']) if step['total'] else step['text']}"
    )
