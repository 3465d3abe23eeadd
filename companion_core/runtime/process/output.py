"""What a runtime writes to stdout and stderr: a bounded owner-only log, and the last lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NO_FOLLOW
from companion_core.system.secret import Secret

__all__ = ["RuntimeOutput", "quote"]

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
MAX_LINE_BYTES: Final = 4096
LAST_LINES: Final = 20
QUOTED_LINES: Final = 10
QUOTED_CHARACTERS: Final = 300
# Lines are written to the log after waiters wake, since writing is slower than reading: so much
# later, or once so many bytes have come together.
LOG_DELAY_SECONDS: Final = 0.02
LOG_BLOCK_BYTES: Final = 64 * 1024


class RuntimeOutput:
    """Reads the runtime's output while the event loop runs.

    Each runtime begins a new log. When it is full it becomes `NAME.1` and another one begins, so
    there are at most two full ones. Where the log cannot be written, the runtime goes on
    without it.

    Args:
        path: of the log.
        ready_text: literal text that announces "listening".
        secret: the backend's key, which never reaches the log.
        heed: called with each line.
        by_thread: read in a thread, where the event loop cannot watch a pipe.
        max_log_bytes: size of a full log.
        log_delay: seconds after which lines are written to the log.
        log_block_bytes: so many bytes are written at once, and then without delay.
        read_bytes: at most so many bytes are read at once.

    Attributes:
        writer: the descriptor for the runtime's stdout and stderr; `start` closes it.
        ready: set once `ready_text` has been seen.
        activity: set by each line, and by anything else that sees the runtime do something; the
            waiter clears it.
        ended: set once everything has been read and nobody can write any more.
        last_lines: the newest lines, without the backend's key and, as in the log, without control
            characters: a person reads both in a terminal.
    """

    def __init__(
        self,
        path: Path,
        *,
        ready_text: str | None = None,
        secret: Secret | None = None,
        heed: Callable[[str], None] = lambda _line: None,
        by_thread: bool = sys.platform == "win32",
        max_log_bytes: int = MAX_LOG_BYTES,
        log_delay: float = LOG_DELAY_SECONDS,
        log_block_bytes: int = LOG_BLOCK_BYTES,
        read_bytes: int = 65536,
    ) -> None:
        self.ready = asyncio.Event()
        self.activity = asyncio.Event()
        self.ended = asyncio.Event()
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._path = path
        self._max_log_bytes = max_log_bytes
        self._log_delay = log_delay
        self._log_block_bytes = log_block_bytes
        self._read_bytes = read_bytes
        self._ready_text = ready_text
        self._secret = b"" if secret is None else secret.reveal().encode()
        self._heed = heed
        self._pending = b""
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._writing: asyncio.TimerHandle | None = None
        self._written = 0
        self._log: int | None = None
        self._reader, self.writer = os.pipe()
        self._watched = False
        self._by_thread = by_thread
        self._open_log()

    def start(self) -> None:
        """Begin to read; from now on only the runtime has the pipe open for writing."""
        os.close(self.writer)
        loop = asyncio.get_running_loop()
        if self._by_thread or sys.platform == "win32":
            reader = threading.Thread(target=self._read_on, args=(loop,), daemon=True)
            reader.start()
        else:
            os.set_blocking(self._reader, False)
            loop.add_reader(self._reader, self._read)
        self._watched = True

    def close(self) -> None:
        """Read what is left, then close everything; may be called again."""
        if not self._watched:
            if self._reader >= 0:
                os.close(self.writer)
        elif not self._by_thread:
            self._read()
        self._stop_reading()
        self._write_log()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _stop_reading(self) -> None:
        if self._reader < 0:
            return
        if not self._watched:
            os.close(self._reader)
        elif not self._by_thread:  # a thread closes its end itself, after its last read
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
        self._watched, self._reader = False, -1
        self.ended.set()

    def _read(self) -> None:
        try:
            data = os.read(self._reader, self._read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._receive(data)

    def _read_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run in a thread: hand everything to the event loop until nobody can write any more."""
        reader, data = self._reader, b"-"
        try:
            while data:
                data = os.read(reader, self._read_bytes)
                loop.call_soon_threadsafe(self._receive, data)
        except (OSError, RuntimeError):  # the event loop is closed
            return
        finally:
            os.close(reader)

    def _receive(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        if lines or not data:  # a part of a line is no activity yet
            self.activity.set()
        if not data:
            lines.append(self._pending)
            self._pending = b""
        elif len(self._pending) > MAX_LINE_BYTES:
            whole = self._redacted(self._pending)
            cut = len(whole) - len(self._secret)  # the end may be the first part of the key
            lines.append(whole[:cut])
            self._pending = whole[cut:]
        for line in lines:
            self._take(line)
        if self._unwritten_bytes >= self._log_block_bytes:
            self._write_log()
        elif self._writing is None:
            loop = asyncio.get_running_loop()
            self._writing = loop.call_later(self._log_delay, self._write_log)
        if not data:
            self._stop_reading()

    def _take(self, line: bytes) -> None:
        text = self._redacted(line)[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        if not text:
            return
        if self._ready_text is not None and self._ready_text in text:
            self.ready.set()
        text = _plain(text)
        self._heed(text)
        self.last_lines.append(text)
        self._unwritten.append(text.encode() + b"\n")
        self._unwritten_bytes += len(self._unwritten[-1])

    def _redacted(self, line: bytes) -> bytes:
        return line.replace(self._secret, b"[key]") if self._secret else line

    def _open_log(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_FOLLOW | CLOSE_ON_EXEC | BINARY
        with contextlib.suppress(OSError):
            self._log = os.open(self._path, flags, 0o600)
            if sys.platform != "win32":
                os.fchmod(self._log, 0o600)
        self._written = 0

    def _write_log(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        lines, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        block, size = list[bytes](), 0
        for line in lines:
            if self._written + size + len(line) > self._max_log_bytes:
                self._write(b"".join(block))
                block, size = [], 0
            block.append(line)
            size += len(line)
        self._write(b"".join(block))

    def _write(self, data: bytes) -> None:
        if self._log is None or not data:
            return
        try:
            if self._written + len(data) > self._max_log_bytes:
                os.close(self._log)
                self._log = None
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._open_log()
            if self._log is not None:
                self._written += os.write(self._log, data)
        except OSError:  # a full disk
            return


def _plain(line: str, *, kept: str = "\t") -> str:
    """Replace the characters of a line that could steer a terminal."""
    if line.isprintable():
        return line
    return "".join(
        sign if sign.isprintable() or sign in kept else "\N{REPLACEMENT CHARACTER}" for sign in line
    )


def quote(lines: Sequence[str]) -> str:
    """Return the newest lines for a message to a person, without control characters."""
    shown = (_plain(line, kept="") for line in lines[-QUOTED_LINES:])
    return "\n".join(
        ["the runtime's last lines:", *(f"  {line[:QUOTED_CHARACTERS]}" for line in shown)]
    )
