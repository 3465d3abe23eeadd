import asyncio
from datetime import UTC, datetime

import pytest

from companion_core.cli.event_log import line_of, log_ending, log_events
from companion_core.errors import Reason
from companion_core.serving.events import Event, EventKind, EventStream
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Event(
                kind=EventKind.RUNTIME_ENDED,
                text="/home/me: exit code 3",
                reason=Reason.RUNTIME_EXITED,
                model="mine",
                at=AT,
            ),
            "2026-01-02T03:04:05Z companion: runtime_ended runtime_exited",
        ),
        (
            Event(kind=EventKind.STEP, step=Step("model", "mine: 3 bytes"), at=AT),
            "2026-01-02T03:04:05Z companion: step model",
        ),
        (Event(kind=EventKind.STOPPED, at=AT), "2026-01-02T03:04:05Z companion: stopped"),
        (Event(kind=EventKind.STEP, step=Step("download", "mine", 1, 2), at=AT), ""),
    ],
    ids=["reason", "step", "stopped", "progress"],
)
def test_a_line_has_time_kind_and_reason_and_no_other_text(event, line):
    assert line_of(event) == line


def test_what_was_told_until_the_end_is_written_and_the_reason_last(capsys):
    async def story() -> None:
        events = EventStream()
        async with log_events(events):
            events.put(Event(kind=EventKind.STEP, step=Step("gateway", "listens"), at=AT))
            events.put(Event(kind=EventKind.STOPPED, at=AT))

    asyncio.run(story())
    log_ending(Reason.KEYCHAIN_LOCKED)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "step gateway", "stopped", "ended keychain_locked",
    ]  # fmt: skip
