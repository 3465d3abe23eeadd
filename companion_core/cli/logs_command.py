"""`companion logs`: what happened, with times and reasons; and the runtime's own lines."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from companion_core.cli import Settings
from companion_core.cli.log_lines import read_log
from companion_core.errors import Reason
from companion_core.serving.record import Record, parse_record
from companion_core.system.harmless_text import harmless
from companion_core.system.lacks import lack_of

__all__ = ["command"]

_LINES: Final = 200


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--runtime", is_flag=True, help="The runtime's own lines instead.")
@click.option(
    "-n",
    "--lines",
    "count",
    type=click.IntRange(min=0),
    default=_LINES,
    show_default=True,
    help="So many of the newest lines; 0 for all there are.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_obj
def command(settings: Settings, *, follow: bool, runtime: bool, count: int, as_json: bool) -> None:
    """Say what happened to the companion: starts, restarts, refusals and ends, by reason.

    It holds no prompt, no answer and no secret. The runtime's own lines are a log apart
    (--runtime): what a runtime writes there is its own affair. Each log is bounded, and works also
    when nothing runs.
    """
    path = settings.paths.runtime_log if runtime else settings.paths.log
    empty = True
    try:
        for line in read_log(path, count, following=follow):
            empty = False
            shown = _document(line, runtime=runtime) if as_json else _text(line, runtime=runtime)
            click.echo(shown)
    except OSError as error:
        raise lack_of(error, path=path) from error
    if empty and not settings.quiet:
        click.echo("companion: nothing is logged; companion up starts one", err=True)


def _document(line: str, *, runtime: bool) -> str:
    return json.dumps(_facts(line, runtime=runtime))


def _facts(line: str, *, runtime: bool) -> dict[str, Any]:
    record = None if runtime else parse_record(line)
    if record is not None:
        return record.document()
    # A fault of the program that ended it, as Python writes it, has no time.
    event = "runtime_line" if runtime else "line"
    return {"at": None, "event": event, "reason": "ok", "text": line}


def _text(line: str, *, runtime: bool) -> str:
    record = None if runtime else parse_record(line)
    return harmless(line) if record is None else _told(record)


def _told(record: Record) -> str:
    """Return a record for a person, in the time of the place."""
    at = f"{record.at.astimezone():%Y-%m-%d %H:%M:%S}"
    what = record.step or ("" if record.reason is Reason.OK else record.reason.value)
    return "  ".join(
        filter(
            None,
            (
                at,
                record.event.replace("_", " "),
                what,
                f"{record.count} times" if record.count > 1 else "",
                f"by {record.client}" if record.client else "",
            ),
        )
    )
