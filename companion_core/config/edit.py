"""Rules for this file: how keys get into the text of a person's configuration.

Pure: text in, text out; it imports the standard library's TOML parser and the errors alone.
What a person wrote keeps its order, its comments and its line ends. No edit is returned before it
was parsed again and found to say what it said before, and the change.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from companion_core.errors import Reason, UsageError

__all__ = ["NewKey", "add_keys", "replace_text"]

_ANY_LINE: Final = r"(?m)^[ \t]*{start}[^\n]*(?:\n|\Z)"
_DELETE: Final = "\x7f"  # the one control character that JSON leaves as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that the configuration does not have yet.

    Attributes:
        comment: a sentence that stands above it; "" for none.
    """

    section: str
    name: str
    value: str | Sequence[str]
    comment: str = ""

    def lines(self, prefix: str = "") -> list[str]:
        """Return its lines; `prefix` stands before the key's name."""
        comment = [f"# {self.comment}"] if self.comment else []
        return [*comment, f"{prefix}{self.name} = {_written(self.value)}"]


def add_keys(text: str, keys: Sequence[NewKey]) -> str:
    """Return the text with the keys, each in its section.

    Raises:
        UsageError: `configuration_invalid`, with the lines to add by hand: the section is written
            in a way that these rules cannot add to.
    """
    for section in dict.fromkeys(key.section for key in keys):
        text = _add_to_section(text, section, [key for key in keys if key.section == section])
    return text


def replace_text(text: str, section: str, key: str, value: str) -> str:
    """Return the text with another value of a key that has one, a text.

    Raises:
        UsageError: `configuration_invalid`, with the line to write by hand.
    """
    wanted = copy.deepcopy(tomllib.loads(text))
    before = wanted[section][key]
    wanted[section][key] = value
    # As a key of its section, of a dotted name or of an inline table; in either kind of quotes.
    pattern = rf"""(\b{re.escape(key)}["']?[ \t]*=[ \t]*)(["']){re.escape(before)}\2"""
    for match in re.finditer(pattern, text):
        edited = text[: match.start()] + match[1] + _written(value) + text[match.end() :]
        if _says(edited, wanted):
            return edited
    raise _by_hand(section, [f"{key} = {_written(value)}"])


def _add_to_section(text: str, section: str, keys: Sequence[NewKey]) -> str:
    wanted = copy.deepcopy(tomllib.loads(text))
    table = wanted.setdefault(section, {})
    if isinstance(table, dict):
        table |= {key.name: _parsed(key.value) for key in keys}
        for edited in _places(text, section, keys):
            if _says(edited, wanted):
                return edited
    raise _by_hand(section, [line for key in keys for line in key.lines()])


def _places(text: str, section: str, keys: Sequence[NewKey]) -> Iterator[str]:
    """Yield the text with the keys at each place where they may belong; most are no valid ones."""
    newline = "\r\n" if "\r\n" in text else "\n"
    ended = text if not text or text.endswith("\n") else text + newline

    def block(prefix: str = "") -> str:
        return "".join(line + newline for key in keys for line in key.lines(prefix))

    header = rf"\[[ \t]*{re.escape(section)}[ \t]*\]"
    for match in re.finditer(_ANY_LINE.format(start=header), ended):
        yield ended[: match.end()] + block() + ended[match.end() :]
    dotted = rf"{re.escape(section)}[ \t]*\."
    for match in reversed([*re.finditer(_ANY_LINE.format(start=dotted), ended)]):
        yield ended[: match.end()] + block(f"{section}.") + ended[match.end() :]
    gap = newline if ended else ""
    yield f"{ended}{gap}[{section}]{newline}{block()}"


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except (tomllib.TOMLDecodeError, RecursionError):
        return False


def _written(value: str | Sequence[str]) -> str:
    """Return a value in TOML, whose texts are JSON's but for one character."""
    return json.dumps(_parsed(value), ensure_ascii=False).replace(_DELETE, r"\u007f")


def _parsed(value: str | Sequence[str]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _by_hand(section: str, lines: Sequence[str]) -> UsageError:
    shown = "\n".join(f"    {line}" for line in [f"[{section}]", *lines])
    return UsageError(
        Reason.CONFIGURATION_INVALID,
        f"[{section}] is written so that you have to add this:\n{shown}",
    )
