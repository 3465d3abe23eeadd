"""Rules for this file: what a backend answers in its own manner is put into the client's terms.

Two things are translated, and no other byte is changed: the model's name, where the backend has
another one for it than the client used; and the error with which a backend answers what is longer
than its context. Everything else passes verbatim, and a backend that needs neither pays nothing.
No I/O.

A name is looked for as `"model":"NAME"`. Inside a JSON text each quotation mark is escaped, so what
a model wrote cannot look like that; an answer is not parsed for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from companion_core.gateway.http.chunked import ChunkFramer
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import context_error

__all__ = ["FIRST_ERROR", "AnswerEditor", "AnswerRules", "Renamer"]

# An answer up to this is collected and sent with its length; a longer one is sent in chunks.
MOST_COLLECTED: Final = 2**20
# Some servers send a whole answer as one chunk.
MOST_IN_A_CHUNK: Final = 64 * 2**20
FIRST_ERROR: Final = 400
_NUMBERS: Final = {"{tokens}": b"(?P<tokens>[0-9]{1,9})", "{limit}": b"(?P<limit>[0-9]{1,9})"}


class Renamer:
    """Puts one name in another's place, in bytes that come in parts of any size."""

    __slots__ = ("_forms", "_held", "_longest", "_new", "_pattern")

    def __init__(self, old: str, new: str) -> None:
        quoted = json.dumps(old).encode()
        self._forms = (b'"model":' + quoted, b'"model": ' + quoted)
        self._pattern = re.compile(b'("model": ?)' + re.escape(quoted))
        self._new = json.dumps(new).encode()
        self._longest = len(self._forms[1])
        self._held = b""  # what may be the beginning of a name that has not come whole

    def feed(self, data: bytes) -> bytes:
        """Return what is certain of the bytes so far."""
        data = self._pattern.sub(lambda found: found[1] + self._new, self._held + data)
        at = data.find(b'"', max(0, len(data) - self._longest + 1))
        while at >= 0:
            tail = data[at:]
            if any(form.startswith(tail) for form in self._forms):
                self._held = tail
                return data[:at]
            at = data.find(b'"', at + 1)
        self._held = b""
        return data

    def whole(self, data: bytes) -> bytes:
        """Return the edited form of a body that has come whole."""
        return self.feed(data) + self.finish()

    def finish(self) -> bytes:
        """Return what was held back at the end of the answer."""
        held, self._held = self._held, b""
        return held


class AnswerRules:
    """What is translated for one name that clients use; made once for each backend and name.

    Attributes:
        every_answer: not only errors are edited: the backend has another name for the model.
    """

    __slots__ = ("_asked", "_served", "_too_long", "every_answer")

    def __init__(self, served: str, asked: str, too_long: Iterable[str] = ()) -> None:
        self._served = served
        self._asked = asked
        self._too_long = tuple(map(_compiled, too_long))
        self.every_answer = served != asked

    def editor(self, head: ResponseHead) -> AnswerEditor | None:
        """Return what edits one answer that begins with this head; None passes it verbatim."""
        if head.status >= FIRST_ERROR:
            return WholeAnswer(head, self._error)
        if not self.every_answer:
            return None
        renamer = Renamer(self._served, self._asked)
        length = head.content_length
        if length is None or length > MOST_COLLECTED:
            return StreamedAnswer(head, renamer)
        return WholeAnswer(head, lambda status, body: (status, renamer.whole(body)))

    def _error(self, status: int, body: bytes) -> tuple[int, bytes]:
        for pattern in self._too_long:
            if found := pattern.search(body):
                return context_error(int(found["tokens"]), int(found["limit"]))
        # Errors name the model in a sentence.
        return status, body.replace(self._served.encode(), self._asked.encode())


class AnswerEditor(Protocol):
    """Edits one answer.

    Attributes:
        head: to be passed on at once; None while that is not known.
    """

    head: ResponseHead | None

    def feed(self, data: bytes) -> bytes:
        """Return what to pass on for these bytes of the body, as the backend framed it.

        Raises:
            OverflowError: the answer is longer than any that is collected.
        """
        ...

    def finish(self) -> tuple[ResponseHead | None, bytes]:
        """Return the rest, with the head where it has not been passed on."""
        ...


class StreamedAnswer:
    """See `AnswerEditor`: passes on what is certain, as the backend framed it where it can."""

    __slots__ = ("_chunked", "_ended", "_raw", "_renamer", "head")

    def __init__(self, head: ResponseHead, renamer: Renamer) -> None:
        self._renamer = renamer
        self._chunked = head.chunked
        self._raw = bytearray()  # a chunk that has not come whole
        self._ended = False
        self.head: ResponseHead | None = head
        if head.content_length is not None:  # its length is another one now
            self.head = ResponseHead(
                head.status, head.content_type, None, chunked=True, reusable=head.reusable
            )

    def feed(self, data: bytes) -> bytes:
        """See `AnswerEditor`; the connection has found the framing right."""
        if not self._chunked:
            return self._framed(self._renamer.feed(data))
        self._raw += data
        if len(self._raw) > MOST_IN_A_CHUNK:
            raise OverflowError
        return self._whole_chunks()

    def _whole_chunks(self) -> bytes:
        raw, edited, at = self._raw, bytearray(), 0
        while not self._ended and (stop := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:stop], 16)
            after = stop + 2 + size
            if size == 0:
                edited += _chunk(self._renamer.finish())
                self._ended = True
            elif len(raw) < after + 2:
                break
            else:
                payload = bytes(raw[stop + 2 : after])
                renamed = self._renamer.feed(payload)
                edited += raw[at : after + 2] if renamed == payload else _chunk(renamed)
                at = after + 2
        if self._ended:
            edited += raw[at:]
            at = len(raw)
        del raw[:at]
        return bytes(edited)

    def finish(self) -> tuple[ResponseHead | None, bytes]:
        """See `AnswerEditor`."""
        if self._chunked:
            return None, b""
        rest = self._framed(self._renamer.finish())
        until_close = self.head is not None and self.head.until_close
        return None, rest if until_close else rest + b"0\r\n\r\n"

    def _framed(self, data: bytes) -> bytes:
        return data if self.head is not None and self.head.until_close else _chunk(data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class WholeAnswer:
    """See `AnswerEditor`: collects the body, and passes it on with its length."""

    __slots__ = ("_collected", "_edit", "_framer", "_head", "head")

    def __init__(self, head: ResponseHead, edit: Callable[[int, bytes], tuple[int, bytes]]) -> None:
        self._framer = ChunkFramer(collect=True) if head.chunked else None
        self._head = head
        self._edit = edit
        self._collected = bytearray()
        self.head: ResponseHead | None = None

    def feed(self, data: bytes) -> bytes:
        """See `AnswerEditor`."""
        if self._framer is None:
            self._collected += data
        else:
            self._framer.feed(data)
            self._collected = self._framer.payload
        if len(self._collected) > MOST_COLLECTED:
            raise OverflowError
        return b""

    def finish(self) -> tuple[ResponseHead | None, bytes]:
        """See `AnswerEditor`."""
        status, body = self._edit(self._head.status, bytes(self._collected))
        head = ResponseHead(
            status, self._head.content_type, len(body), chunked=False, reusable=True
        )
        return head, body


def _compiled(text: str) -> re.Pattern[bytes]:
    pattern = re.escape(json.dumps(text)[1:-1].encode())
    for name, digits in _NUMBERS.items():
        pattern = pattern.replace(re.escape(name.encode()), digits, 1)
    return re.compile(pattern)
