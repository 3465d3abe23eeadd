from __future__ import annotations

import asyncio
import os

import pytest

from companion_core.runtime.process import output as output_module
from companion_core.runtime.process.output import LAST_LINES, RuntimeOutput, quote
from companion_core.system.secret import Secret

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.name != "posix", reason="reads a pipe in the event loop"),
]


@pytest.fixture(params=[False, True], ids=["loop", "thread"], autouse=True)
def by_thread(request, monkeypatch):
    """Read by the event loop, and by a thread as on Windows."""
    monkeypatch.setitem(RuntimeOutput.__init__.__kwdefaults__, "by_thread", request.param)


def run(path, *writes: bytes, **options) -> RuntimeOutput:
    async def life() -> RuntimeOutput:
        output = RuntimeOutput(path, **options)
        writer = os.dup(output.writer)
        output.start()
        for data in writes:
            os.write(writer, data)
            await asyncio.sleep(0)
        os.close(writer)
        await asyncio.wait_for(output.ended.wait(), 30)
        output.close()
        output.close()
        return output

    return asyncio.run(life())


def test_lines_are_kept_and_logged(tmp_path) -> None:
    output = run(tmp_path / "log", b"one\ntw", b"o\r\n\nthree")
    assert list(output.last_lines) == ["one", "two", "three"]
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_only_the_newest_lines_are_kept(tmp_path) -> None:
    output = run(tmp_path / "log", b"".join(b"%d\n" % number for number in range(100)))
    assert list(output.last_lines) == [str(number) for number in range(100 - LAST_LINES, 100)]


@pytest.mark.parametrize("writes", [(b"is rea", b"dy now\n"), (b"is ready",)])
def test_the_announcement_is_seen_wherever_it_is_cut(tmp_path, writes) -> None:
    assert run(tmp_path / "log", *writes, ready_text="is ready").ready.is_set()


@pytest.mark.parametrize(("data", "wakes"), [(b"half a li", False), (b"a line\n", True)])
def test_a_line_is_activity_and_a_part_of_one_is_not(tmp_path, data, wakes) -> None:
    async def life() -> None:
        output = RuntimeOutput(tmp_path / "log")
        output._receive(data)
        assert output.activity.is_set() is wakes
        output._receive(b"")
        assert output.activity.is_set()

    asyncio.run(life())


def test_no_announcement_without_its_text(tmp_path) -> None:
    assert not run(tmp_path / "log", b"is read\ny\n", ready_text="is ready").ready.is_set()


def test_the_key_is_in_no_line(tmp_path) -> None:
    output = run(tmp_path / "log", b"my key is s3cr3t, twice s3cr3t\n", secret=Secret("s3cr3t"))
    assert list(output.last_lines) == ["my key is [key], twice [key]"]
    assert b"s3cr3t" not in (tmp_path / "log").read_bytes()


def test_a_line_without_end_is_bounded(tmp_path) -> None:
    output = run(tmp_path / "log", b"x" * 10_000)
    assert all(len(line) <= output_module.MAX_LINE_BYTES for line in output.last_lines)


def test_the_log_is_bounded(tmp_path) -> None:
    run(tmp_path / "log", *[b"%040d\n" % number for number in range(10)], max_log_bytes=100)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"log", "log.1"}
    assert max(sizes.values()) <= 100


def test_lines_are_written_many_at_a_time_and_never_gather(tmp_path, monkeypatch) -> None:
    written, write = list[int](), RuntimeOutput._write

    def counted(output: RuntimeOutput, data: bytes) -> None:
        written.append(len(data))
        write(output, data)

    monkeypatch.setattr(RuntimeOutput, "_write", counted)
    lines = b"".join(b"%099d\n" % number for number in range(30))
    run(tmp_path / "log", lines, log_delay=3600, log_block_bytes=1000, read_bytes=500)
    assert (tmp_path / "log").read_bytes() == lines
    assert 2 <= len([size for size in written if size]) <= 4
    assert max(written) <= 1500


def test_a_log_that_cannot_be_written_costs_the_log_only(tmp_path) -> None:
    output = run(tmp_path / "missing" / "log", b"still seen\n")
    assert list(output.last_lines) == ["still seen"]


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / "log").symlink_to(victim)
    run(tmp_path / "log", b"overwrite\n")
    assert victim.read_text() == "keep"


def test_an_output_that_was_never_started_closes_both_ends(tmp_path) -> None:
    output = RuntimeOutput(tmp_path / "log")
    writer = output.writer
    output.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


def test_what_is_quoted_is_short_and_steers_no_terminal() -> None:
    lines = ["dropped", *(f"line {number}" for number in range(8)), "\x1b[2J\u202egone", "x" * 999]
    quoted = quote(lines).splitlines()
    assert quoted[:2] == ["the runtime's last lines:", "  line 0"]
    assert quoted[-2:] == [
        "  \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}gone",
        "  " + "x" * 300,
    ]
    assert len(quoted) == 11


def test_what_is_kept_and_logged_steers_no_terminal(tmp_path) -> None:
    written = "\x1b[2J\x1b]0;title\x07a\tb\r\x9b31m\u202egone ü\n".encode()
    shown = "\ufffd[2J\ufffd]0;title\ufffda\tb\ufffd\ufffd31m\ufffdgone ü"
    output = run(tmp_path / "log", written, ready_text="\x1b]0;title")
    assert list(output.last_lines) == [shown]
    assert (tmp_path / "log").read_text() == shown + "\n"
    assert output.ready.is_set()


def test_the_key_is_in_no_line_wherever_one_is_cut(tmp_path) -> None:
    longest = output_module.MAX_LINE_BYTES
    for before in range(longest - 12, longest + 3):
        text = b"x" * before + b"s3cr3t" + b"y" * 20
        run(
            tmp_path / "log",
            text[: longest + 1],
            text[longest + 1 :] + b"\n",
            secret=Secret("s3cr3t"),
        )
        log = (tmp_path / "log").read_bytes()
        assert b"s3cr3"[:3] not in log, before


def test_the_log_is_written_while_the_runtime_runs_and_to_its_end(tmp_path) -> None:
    log = tmp_path / "log"

    async def life() -> None:
        output = RuntimeOutput(log, ready_text="ready")
        writer = os.dup(output.writer)
        output.start()
        os.write(writer, b"ready\n")
        await output.ready.wait()
        async with asyncio.timeout(30):
            while log.read_bytes() != b"ready\n":  # noqa: ASYNC110 - a file sets no event
                await asyncio.sleep(0.001)
        output.ready.clear()
        os.write(writer, b"ready again\n")
        await output.ready.wait()
        output.close()
        assert log.read_bytes() == b"ready\nready again\n"
        os.close(writer)

    asyncio.run(life())
