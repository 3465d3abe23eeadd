"""What is written down, and that nothing about it ends a companion."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from companion_core.errors import Reason
from companion_core.serving.events import Announcer, Event, EventKind
from companion_core.serving.journal import Journal, watch_refusals
from companion_core.serving.record import Record, parse_record
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
NOW = 1_767_323_045.0  # the same second


def lines_of(path: Path) -> list[str]:
    return [line.split(" companion: ")[1] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "companion.log"


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal(path, clock=lambda: NOW)


def test_a_line_has_time_kind_and_reason_and_no_other_text(path: Path, journal: Journal) -> None:
    journal.note(
        Event(
            kind=EventKind.RUNTIME_ENDED,
            text="/home/me: exit code 3",
            reason=Reason.RUNTIME_EXITED,
            model="mine",
            at=AT,
        )
    )
    journal.note(Event(kind=EventKind.STEP, step=Step("model", "mine: 3 bytes"), at=AT))
    journal.note(Event(kind=EventKind.STEP, step=Step("download", "mine", 1, 2), at=AT))
    journal.ended(Reason.KEYCHAIN_LOCKED)
    assert path.read_text() == (
        "2026-01-02T03:04:05Z companion: runtime_ended runtime_exited\n"
        "2026-01-02T03:04:05Z companion: step model\n"
        "2026-01-02T03:04:05Z companion: ended keychain_locked\n"
    )
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_kind_of_event_can_be_read_again(path: Path, journal: Journal) -> None:
    for kind in EventKind:
        journal.note(Event(kind=kind, step=Step("model", "") if kind == "step" else None, at=AT))
    records = [parse_record(line) for line in path.read_text().splitlines()]
    assert [record.event for record in records if record] == [kind.value for kind in EventKind]


def test_events_come_through_the_announcer_from_any_thread(path: Path, journal: Journal) -> None:
    async def story() -> None:
        events = Announcer(None)
        events.bind()
        events.listen(journal.note)
        await asyncio.to_thread(events.tell, Event(kind=EventKind.STOPPING))
        events.tell(Event(kind=EventKind.STOPPED))
        await asyncio.sleep(0)

    asyncio.run(story())
    assert sorted(lines_of(path)) == ["stopped", "stopping"]


def test_a_full_log_makes_room_and_two_are_all_there_are(path: Path) -> None:
    journal = Journal(path, clock=lambda: NOW, max_bytes=200)
    for _ in range(50):
        journal.ended(Reason.KEYCHAIN_LOCKED)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "companion.log",
        "companion.log.1",
    ]
    assert all(each.stat().st_size < 300 for each in path.parent.iterdir())


@pytest.mark.parametrize("place", ["missing/companion.log", "folder"])
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    Journal(tmp_path / place).ended(Reason.KEYCHAIN_LOCKED)
    assert [each.name for each in tmp_path.rglob("*")] == ["folder"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path, path: Path, journal: Journal) -> None:
    (tmp_path / "elsewhere").write_text("")
    path.symlink_to(tmp_path / "elsewhere")
    journal.ended(Reason.KEYCHAIN_LOCKED)
    assert (tmp_path / "elsewhere").read_text() == ""


def test_refusals_are_written_together_and_the_last_ones_at_the_end(
    path: Path, journal: Journal
) -> None:
    counts = {("", Reason.QUEUE_FULL): 7}
    looks = 0

    async def sleep(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            counts["zed", Reason.RATE_LIMITED] = 2
            counts["", Reason.QUEUE_FULL] = 10
        elif looks == 3:
            counts["zed", Reason.RATE_LIMITED] = 3
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch_refusals(lambda: dict(counts), journal, sleep=sleep))
    assert lines_of(path) == [
        "refused queue_full count=3",
        "refused rate_limited client=zed count=2",
        "refused rate_limited client=zed count=1",
    ]
    assert parse_record(path.read_text().splitlines()[1]) == Record(
        at=AT.replace(microsecond=0),
        event="refused",
        reason=Reason.RATE_LIMITED,
        client="zed",
        count=2,
    )
