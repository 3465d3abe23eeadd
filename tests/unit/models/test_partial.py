"""What was received is gone on with by a later run, if nobody else could have made it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staging_parts import (
    ALLOWED,
    DATA,
    URL,
    Body,
    breaking,
    cut_off,
    good,
    have_free,
    leave,
    model_of,
    names,
    stage,
    store_of,
)

from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models import proof as model_proof
from companion_core.models.byte_pump import BLOCK_BYTES
from companion_core.models.kept_parts import KEPT_SECONDS, make_room, received, split_kept
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.system.clock import wall_now

pytestmark = pytest.mark.unit

SHA256 = model_of().files[0].sha256
CUT = 1_500_000
SECOND = ALLOWED[0] + "mirror.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def part(folder: Path) -> Path:
    """The bytes that a run left; the record is beside them."""
    cut_off(folder, CUT)
    return folder / f".{SHA256}.part"


class Host:
    """A downloader that honours ranges and remembers what it was asked."""

    def __init__(self, data: bytes = DATA, validator: str = '"v1"') -> None:
        self.data = data
        self.validator = validator
        self.asked: list[tuple[str, int, str | None]] = []

    def __call__(self, request: DownloadRequest) -> Body:
        self.asked.append((request.url, request.offset, request.validator))
        if request.offset and request.validator != self.validator:
            raise ResumeRefused
        rest = self.data[request.offset :]
        body = Body(rest, length=len(rest))
        body.validator = self.validator
        return body

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset, _ in self.asked]


def finish(folder: Path, download: Callable[[DownloadRequest], Any], **options: Any) -> None:
    """Stage, and see that exactly the signed bytes are there and nothing else."""
    verified = stage(folder, download, **options)
    assert os.pread(verified.files[0].descriptor, len(DATA) + 1, 0) == DATA
    assert names(folder) == [SHA256]
    verified.close()


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


def test_the_next_run_asks_for_the_rest_and_says_so(folder: Path, part: Path) -> None:
    """covers: download_stage/resume"""
    assert part.read_bytes() == DATA[:CUT]
    assert names(folder) == [f".{SHA256}.part", f".{SHA256}.resume"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert URL not in (folder / f".{SHA256}.resume").read_text()
    host, shown, told = Host(), [], []
    finish(
        folder,
        host,
        progress=lambda done, total: shown.append((done, total)),
        resumed=lambda done, total: told.append((done, total)),
    )
    assert host.asked == [(URL, CUT, '"v1"')]
    assert shown[0] == (CUT, len(DATA))
    assert shown == sorted(shown)
    assert told == [(CUT, len(DATA))]


def test_three_runs_bring_a_third_each(folder: Path) -> None:
    cut_off(folder, 700_000)
    cut_off(folder, 1_400_000)
    host = Host()
    finish(folder, host)
    assert host.offsets == [1_400_000]


def test_cancelling_keeps_what_is_there(folder: Path) -> None:
    cancelled = threading.Event()
    with pytest.raises(CompanionError) as caught:
        stage(folder, Host(), progress=lambda *_: cancelled.set(), cancelled=cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    host = Host()
    finish(folder, host)
    assert host.offsets == [BLOCK_BYTES]


def test_without_a_validator_nothing_is_kept(folder: Path) -> None:
    with pytest.raises(CompanionError):
        stage(folder, breaking(CUT, validator=None))
    assert names(folder) == []


def test_what_is_whole_is_proved_and_not_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(_self: Any, _descriptor: int) -> Any:
        raise CompanionError(Reason.INTERRUPTED)

    with monkeypatch.context() as patched:
        patched.setattr(model_proof.Prover, "_hash", cancel)
        with pytest.raises(CompanionError):
            stage(folder, good)
    assert received(folder, SHA256) == len(DATA)
    host = Host()
    finish(folder, host)
    assert host.asked == []


def test_a_break_after_the_last_byte_is_none(folder: Path) -> None:
    finish(folder, breaking(len(DATA)))


@pytest.mark.parametrize("at", [0, 700_000, CUT - 1])
def test_wrong_bytes_of_an_earlier_run_cost_one_try(folder: Path, part: Path, at: int) -> None:
    changed = bytearray(DATA[:CUT])
    changed[at] ^= 1
    rewrite(part, bytes(changed))
    host = Host()
    finish(folder, host)
    assert host.offsets == [CUT, 0]


def test_they_are_fetched_anew_once_only(folder: Path, part: Path) -> None:
    host = Host(DATA[:-1] + b"\1")
    with pytest.raises(Refused) as caught:
        stage(folder, host)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert host.offsets == [CUT, 0]
    assert names(folder) == []


def test_wrong_bytes_of_this_run_are_not_fetched_again(folder: Path) -> None:
    host = Host(b"\1" + DATA[1:])
    with pytest.raises(Refused):
        stage(folder, host)
    assert host.offsets == [0]
    assert names(folder) == []


def test_a_rest_that_is_too_long_costs_one_try(folder: Path, part: Path) -> None:
    host = Host(DATA + b"x")
    with pytest.raises(Refused) as caught:
        stage(folder, host)
    assert caught.value.reason is Reason.SIZE_MISMATCH
    assert host.offsets == [CUT, 0]
    assert part.read_bytes() == DATA[:CUT], "none of what is there was found wrong"


def test_what_changed_at_its_source_is_fetched_from_the_beginning(folder: Path, part: Path) -> None:
    host = Host(validator='"v2"')
    finish(folder, host)
    assert host.offsets == [CUT, 0]


def test_the_rest_of_something_else_is_not_taken(folder: Path, part: Path) -> None:
    """RFC 9110 section 15.3.7.3: parts are put together under one strong validator only."""
    offsets: list[int] = []

    def other(request: DownloadRequest) -> Body:
        offsets.append(request.offset)
        body = Body(DATA[request.offset :])
        body.validator = '"v2"'
        return body

    finish(folder, other)
    assert offsets == [CUT, 0]


def spoil_link(part: Path, victim: Path) -> None:
    part.rename(victim)
    part.symlink_to(victim)


def spoil_second_name(part: Path, victim: Path) -> None:
    victim.hardlink_to(part)


def spoil_pipe(part: Path, _victim: Path) -> None:
    part.unlink()
    os.mkfifo(part, 0o600)


def spoil_mode(part: Path, _victim: Path) -> None:
    part.chmod(0o640)


def spoil_length(part: Path, _victim: Path) -> None:
    rewrite(part, DATA + b"x")


def spoil_emptied(part: Path, _victim: Path) -> None:
    rewrite(part, b"")


def spoil_gone(part: Path, _victim: Path) -> None:
    part.unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_link,
        spoil_second_name,
        spoil_pipe,
        spoil_mode,
        spoil_length,
        spoil_emptied,
        spoil_gone,
    ],
)
def test_what_others_could_have_made_is_not_gone_on_with(
    folder: Path, part: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    spoil(part, victim)
    host = Host()
    finish(folder, host)
    assert host.offsets == [0]
    if victim.exists():
        assert victim.read_bytes() == DATA[:CUT]


def test_what_is_someone_elses_is_not_gone_on_with(
    folder: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_core.models.partial.user_id", lambda: os.geteuid() + 1)
    host = Host()
    finish(folder, host)
    assert host.offsets == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"size": len(DATA) + 1},
        {"size": "1"},
        {"source": "0" * 64},
        {"source": 5},
        {"validator": '"v1"\r\nAuthorization: x'},
        {"validator": "\u00fc"},
        {"validator": 5},
        {"validator": None},
        {"validator": "v" * 5000},
        None,
    ],
)
def test_a_record_of_something_else_is_none(
    folder: Path, part: Path, change: dict[str, Any] | None
) -> None:
    record = part.with_suffix(".resume")
    content = {**json.loads(record.read_text()), **change} if change is not None else "x"
    rewrite(record, json.dumps(content).encode())
    host = Host()
    finish(folder, host)
    assert host.offsets == [0]


@pytest.mark.parametrize("way", ["gone", "link", "shared"])
def test_a_record_that_others_could_have_made_is_none(
    folder: Path, part: Path, tmp_path: Path, way: str
) -> None:
    record, elsewhere = part.with_suffix(".resume"), tmp_path / "record"
    match way:
        case "gone":
            record.unlink()
        case "link":
            record.rename(elsewhere)
            record.symlink_to(elsewhere)
        case _:
            record.chmod(0o666)
    host = Host()
    finish(folder, host)
    assert host.offsets == [0]
    assert elsewhere.exists() is (way == "link")


def test_a_source_that_is_no_longer_signed_for_is_not_gone_on_with(
    folder: Path, part: Path
) -> None:
    host = Host()
    finish(folder, host, model=model_of(DATA, SECOND))
    assert host.asked == [(SECOND, 0, None)]


def test_the_source_of_what_is_there_is_asked_first(folder: Path) -> None:
    def second_only(request: DownloadRequest) -> Body:
        if request.url == URL:
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        return breaking(CUT)(request)

    model = model_of(DATA, URL, SECOND)
    with pytest.raises(CompanionError):
        stage(folder, second_only, model)
    host = Host()
    finish(folder, host, model=model)
    assert host.asked == [(SECOND, CUT, '"v1"')]


def test_a_source_that_does_not_answer_drops_nothing(folder: Path, part: Path) -> None:
    def silent(_request: DownloadRequest) -> Body:
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)

    with pytest.raises(CompanionError):
        stage(folder, silent, model_of(DATA, URL, SECOND))
    assert part.read_bytes() == DATA[:CUT]


def test_no_byte_lies_under_a_record_that_is_not_its_own(
    folder: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed at each step in which the source changes; what is left is of one source."""
    steps: list[tuple[int, str | None]] = []
    record = part.with_suffix(".resume")

    def note() -> None:
        validator = json.loads(record.read_text())["validator"] if record.exists() else None
        steps.append((part.stat().st_size, validator))

    for name in ("ftruncate", "write"):
        real = getattr(os, name)

        def step(descriptor: int, argument: Any, real: Callable[..., Any] = real) -> Any:
            note()
            result = real(descriptor, argument)
            note()
            return result

        monkeypatch.setattr(f"companion_core.models.partial.os.{name}", step)
    stage(folder, Host(validator='"v2"')).close()
    assert {validator for size, validator in steps if size} <= {None, '"v2"'}
    assert steps[-1] == (len(DATA), '"v2"')


def test_the_disk_needs_room_for_the_rest_only(
    folder: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_free(monkeypatch, lambda: len(DATA) - CUT)
    finish(folder, Host())
    (folder / SHA256).unlink()
    with pytest.raises(CompanionError) as caught:
        stage(folder, good)
    assert caught.value.reason is Reason.DISK_UNAVAILABLE


def test_what_is_cut_off_is_kept_for_fourteen_days(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    young = leave(folder, "1" * 64, age=KEPT_SECONDS - 60)
    (folder / f".{'6' * 64}.part").mkdir()  # not for us to remove, and in nobody's way
    leave(folder, "2" * 64, age=KEPT_SECONDS + 60)
    leave(folder, "3" * 64, age=-KEPT_SECONDS - 60)  # a clock that was set back
    leave(folder, "4" * 64).with_suffix(".resume").unlink()
    rewrite(folder / f".{'5' * 64}.resume", b"{}")
    other = folder / ".notes.part"
    other.touch()
    stage(folder, good).close()
    assert names(folder) == sorted(
        [young.name, young.with_suffix(".resume").name, f".{'6' * 64}.part", other.name, SHA256]
    )


def test_what_is_wanted_is_kept_for_longer(folder: Path, part: Path) -> None:
    os.utime(part, (1, 1))
    assert split_kept(folder, now=wall_now())[0] == []
    host = Host()
    finish(folder, host)
    assert host.offsets == [CUT]


def test_what_is_cut_off_makes_room_for_what_is_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o700)
    older = leave(folder, "1" * 64, age=60)
    newer = leave(folder, "2" * 64)
    have_free(monkeypatch, lambda: len(DATA) - (1 if older.exists() else 0))
    stage(folder, good).close()
    assert names(folder) == sorted([newer.name, newer.with_suffix(".resume").name, SHA256])


def test_no_room_is_made_in_vain_and_what_is_there_stays(
    folder: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(folder, "1" * 64)
    before = names(folder)
    have_free(monkeypatch, lambda: len(DATA) - CUT - 11)
    with pytest.raises(CompanionError) as caught:
        stage(folder, good)
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert names(folder) == before
    assert part.read_bytes() == DATA[:CUT]


def test_room_is_not_made_of_what_is_wanted_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(mode=0o700)
    second = leave(folder, "1" * 64)
    have_free(monkeypatch, lambda: 0 if second.exists() else 10)
    assert not make_room(folder, 10, wanted={"1" * 64})
    assert second.exists()
    assert make_room(folder, 10, wanted=())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("record", ["null", "garbage", "none"])
def test_what_cannot_be_gone_on_with_counts_for_nothing(folder: Path, record: str) -> None:
    folder.mkdir(mode=0o700)
    part = leave(folder, "1" * 64, validator=None)
    if record == "garbage":
        rewrite(part.with_suffix(".resume"), b"x")
    elif record == "none":
        part.with_suffix(".resume").unlink()
    assert received(folder, "1" * 64) == 0
    useful, rest = split_kept(folder, now=wall_now())
    assert useful == []
    assert part in rest
    whole = leave(folder, "2" * 64, validator=None, size=10)
    assert received(folder, "2" * 64) == 10
    assert split_kept(folder, now=wall_now())[0] == [whole]


def refuse_by_redirect(_request: DownloadRequest) -> Body:
    raise Redirect("https://portal.example/login")


def refuse_by_fault(_request: DownloadRequest) -> Body:
    raise ConnectionResetError


def refuse_by_a_short_rest(request: DownloadRequest) -> Body:
    if request.offset:
        return Body(b"x", length=1)
    raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)


def refuse_by_a_page(request: DownloadRequest) -> Body:
    if request.offset:
        raise ResumeRefused
    return Body(b"<html>", length=6)


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        (refuse_by_redirect, Reason.SOURCE_NOT_ALLOWED),
        (refuse_by_fault, Reason.PLUGIN_CALL_FAILED),
        (refuse_by_a_short_rest, Reason.DOWNLOAD_FAILED),
        (refuse_by_a_page, Reason.SIZE_MISMATCH),
    ],
)
def test_an_answer_of_which_no_byte_is_taken_drops_nothing(
    folder: Path, part: Path, download: Callable[[DownloadRequest], Body], reason: Reason
) -> None:
    with pytest.raises(CompanionError) as caught:
        stage(folder, download)
    assert caught.value.reason is reason
    host = Host()
    finish(folder, host)
    assert host.offsets == [CUT]


def test_a_redirect_that_is_no_longer_admitted_drops_nothing(folder: Path, part: Path) -> None:
    def moved(_request: DownloadRequest) -> Body:
        raise Redirect("https://models.example.org/companion/moved.gguf")

    elsewhere = ("https://other.example.org/",)
    with pytest.raises(Refused):
        store_of(folder).stage(model_of(), allowed_sources=elsewhere, download=moved)
    assert part.read_bytes() == DATA[:CUT]


def test_what_this_run_received_outlives_a_refusal_too(folder: Path) -> None:
    asked: list[int] = []

    def moves_away(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        if request.offset:
            raise Redirect("https://portal.example/login")
        failure = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True)
        body = Body(DATA[:CUT], length=len(DATA), failure=failure)
        body.validator = '"v1"'
        return body

    with pytest.raises(Refused):
        stage(folder, moves_away)
    assert asked == [0, CUT]
    assert received(folder, SHA256) == CUT


def test_a_rest_that_turns_out_too_long_while_it_is_taken_is_dropped(
    folder: Path, part: Path
) -> None:
    asked: list[int] = []

    def unannounced(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        body = Body(DATA[request.offset :] + (b"x" if request.offset else b""))
        body.validator = '"v1"'
        return body

    finish(folder, unannounced)
    assert asked == [CUT, 0]


def test_a_stream_without_a_length_that_ends_short_was_cut_off(folder: Path) -> None:
    asked: list[int] = []

    def short(request: DownloadRequest) -> Body:
        asked.append(request.offset)
        body = Body(DATA[request.offset :][:700_000])
        body.validator = '"v1"'
        return body

    with pytest.raises(CompanionError) as caught:
        stage(folder, short)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert asked == [0, 700_000, 1_400_000]
    host = Host()
    finish(folder, host)
    assert host.offsets == [2_100_000]


def test_a_fresh_file_is_never_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 writes a file out while it is closed if it was, with nobody hashing meanwhile."""
    cuts: list[int] = []
    cut = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda file, size: (cuts.append(size), cut(file, size)))
    finish(folder, Host())
    assert cuts == []


def test_a_file_that_begins_anew_is_cut_first(
    folder: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[int] = []
    cut = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda file, size: (cuts.append(size), cut(file, size)))
    finish(folder, Host(validator='"v2"'))
    assert cuts == [0]
