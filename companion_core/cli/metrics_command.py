"""`companion metrics`: what the gateway counted, for a collector that reads Prometheus text."""

from __future__ import annotations

import click

from companion_core.cli import Settings
from companion_core.control import ask, find_running
from companion_core.errors import CompanionError, Reason


@click.command("metrics")
@click.pass_obj
def command(settings: Settings) -> None:
    """Print counts and latencies by path and reason; no network serves them."""
    running = find_running(settings.paths, settings.egress)
    if running is None:
        raise CompanionError(Reason.NOT_RUNNING)
    click.echo(ask(running, settings.egress, "metrics")["text"], nl=False)
