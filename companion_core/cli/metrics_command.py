"""`companion metrics`: the gateway's counts, for a collector that reads Prometheus text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import click

from companion_core.cli import Settings, echo_result
from companion_core.control.client import ask_running

# One sample of the exposition format. The gateway writes no label value that needs escaping.
_SAMPLE: Final = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@click.command("metrics")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> None:
    """Print counts and latencies by path and reason; they are not served on the network."""
    text: str = ask_running(settings.paths, settings.egress, "metrics")["text"]
    document = {"ok": True, "samples": list(_samples(text))}
    echo_result(document, text.removesuffix("\n"), as_json=as_json)


def _samples(text: str) -> Iterator[dict[str, Any]]:
    """Yield each sample of Prometheus text: its name, labels and value."""
    for line in text.splitlines():
        if sample := _SAMPLE.fullmatch(line):
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            yield {"name": sample["name"], "labels": labels, "value": float(sample["value"])}
