"""Rules for this file: a large body is read in slices, each so short that nobody else waits for it.

CPython's JSON scanner lets nothing else run until a whole body has been read, a second and a half
for ten megabytes of short names. Here containers and long texts are read by steps; every scalar,
and every text piece by piece, is read by the scanner that reads small bodies, so that both take
and refuse the same (RFC 8259). No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from json.decoder import scanstring  # type: ignore[attr-defined] # typeshed leaves it out
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NoReturn

__all__ = ["LARGE_BODY", "MAX_DEPTH", "MAX_ITEMS", "TooManyItems", "WrittenTexts", "read_in_slices"]

# A smaller body is read at once, within ten milliseconds; it has no room for `MAX_ITEMS`.
LARGE_BODY: Final = 128 * 1024
MAX_DEPTH: Final = 200
# Names, texts, lists, objects, numbers: what the largest requests have, and what can be written
# anew at once.
MAX_ITEMS: Final = 150_000
MAX_COSTLY_ITEMS: Final = 50_000  # all of these but numbers, `true`, `false` and `null`

_SLICE: Final = 1024  # steps, of a microsecond or two
_STEP_CHARACTERS: Final = 64  # of a text, which count as one step

# A longer one is written as JSON while it is read, so that nothing is left to do at once.
_LONG_TEXT: Final = 128

_SPACE: Final = re.compile(r"[ \t\r\n]*")
# A bounded piece of a text; it never parts an escape, nor the two halves of a surrogate pair.
_PIECE: Final = re.compile(
    r'(?:[^"\\\x00-\x1f]{1,1024}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\u[0-9a-fA-F]{4}"
    r'|\\["\\/bfnrt]){0,64}'
)


class TooManyItems(ValueError):
    """The body has more items than are read."""


class WrittenTexts(dict[str, Any]):
    """The fields of a large body.

    Attributes:
        written: the long texts among its values as JSON, by identity; they are kept alive here.
    """

    def __init__(self, fields: dict[str, Any], written: dict[int, tuple[str, str]]) -> None:
        super().__init__(fields)
        self.written = written

    def write(self, text: str) -> str:
        """Return a text as JSON."""
        known = self.written.get(id(text))
        return encode_basestring_ascii(text) if known is None else known[1]


Scan = Callable[[str, int], tuple[Any, int]]


def read_in_slices(  # noqa: PLR0915 - one loop over one grammar; a call per part costs as much again
    text: str, scan: Scan
) -> Generator[None, None, WrittenTexts]:
    """Read one object; yields between slices and returns its fields.

    Args:
        text: without space around it.
        scan: reads a number, `true`, `false` or `null`; raises StopIteration for anything else.

    Raises:
        TooManyItems: there are more than `MAX_ITEMS`, or than `MAX_COSTLY_ITEMS`.
        ValueError: it is not one JSON object with each name once, or is nested too deep.
    """
    if not text.startswith("{"):
        _refuse()
    reader = _Reader(text)
    root: dict[str, Any] = {}
    stack: list[dict[str, Any] | list[Any]] = [root]
    position, opened, name = 1, True, ""
    while stack:
        if reader.slice_is_over():
            yield
        top = stack[-1]
        position = reader.skip_space(position)
        if not (opened and text.startswith("}" if type(top) is dict else "]", position)):
            if type(top) is dict:
                name, position = yield from reader.read_text(position)
                if name in top:
                    _refuse()
                position = reader.skip_space(position)
                if not text.startswith(":", position):
                    _refuse()
                position = reader.skip_space(position + 1)
            value: Any
            opening = text[position : position + 1]
            if opening == '"':
                value, position = yield from reader.read_text(position)
            elif opening == "{" or opening == "[":  # noqa: PLR1714 - half as fast with a set
                reader.count(costly=True)
                value = {} if opening == "{" else []
            else:
                reader.count(costly=False)
                try:
                    value, position = scan(text, position)
                except StopIteration:
                    _refuse()
            if type(top) is dict:
                top[name] = value
            else:
                top.append(value)  # type: ignore[union-attr] # mypy does not follow `type(top) is`
            if opening == "{" or opening == "[":  # noqa: PLR1714 - as above
                stack.append(value)
                if len(stack) > MAX_DEPTH:
                    _refuse()
                position, opened = position + 1, True
                continue
            position = reader.skip_space(position)
        # A value has ended, or an empty container is about to.
        while stack and text.startswith("}" if type(stack[-1]) is dict else "]", position):
            stack.pop()
            position = reader.skip_space(position + 1)
            if reader.slice_is_over():
                yield
        if stack:
            if not text.startswith(",", position):
                _refuse()
            position, opened = position + 1, False
    if position != len(text):
        _refuse()
    return WrittenTexts(root, reader.written)


class _Reader:
    """Reads the parts, and counts them.

    Attributes:
        written: see `WrittenTexts`.
    """

    __slots__ = ("_costly", "_items", "_steps", "_text", "written")

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = self._items = self._costly = 0
        self.written: dict[int, tuple[str, str]] = {}

    def slice_is_over(self) -> bool:
        """Count one step; True once in each slice."""
        self._steps += 1
        if self._steps < _SLICE:
            return False
        self._steps = 0
        return True

    def count(self, *, costly: bool) -> None:
        """Count one item."""
        self._items += 1
        self._costly += costly
        if self._items > MAX_ITEMS or self._costly > MAX_COSTLY_ITEMS:
            raise TooManyItems

    def skip_space(self, position: int) -> int:
        """Return where the next part begins."""
        return _SPACE.match(self._text, position).end()  # type: ignore[union-attr] # it matches ""

    def read_text(self, position: int) -> Generator[None, None, tuple[str, int]]:
        """Return the text that begins at `position`, and where it has ended."""
        text = self._text
        if not text.startswith('"', position):
            _refuse()
        self.count(costly=True)
        end = position + 1
        pieces: list[str] = []
        while True:
            begin, end = end, _PIECE.match(text, end).end()  # type: ignore[union-attr] # as above
            piece = text[begin:end]
            pieces.append(scanstring(f'{piece}"', 0)[0] if "\\" in piece else piece)
            if text.startswith('"', end):
                break
            if begin == end:
                _refuse()
            self._steps += 1 + len(piece) // _STEP_CHARACTERS
            if self.slice_is_over():
                yield
        if len(pieces) == 1 and len(piece) < _LONG_TEXT:
            return pieces[0], end + 1
        return (yield from self._keep_written(pieces)), end + 1

    def _keep_written(self, pieces: list[str]) -> Generator[None, None, str]:
        whole = "".join(pieces)
        written = ['"']
        for piece in pieces:
            written.append(encode_basestring_ascii(piece)[1:-1])
            self._steps += 1 + len(piece) // _STEP_CHARACTERS
            if self.slice_is_over():
                yield
        written.append('"')
        self.written[id(whole)] = whole, "".join(written)
        return whole


def _refuse() -> NoReturn:
    raise ValueError
