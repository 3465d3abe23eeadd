"""Rules for this file: a value in the text of a JSON file, changed where it stands.

Pure: text in, text out. Comments and trailing commas are read as editors write them (JSONC); all
but the changed value stays as it is, to the byte. Raises `Unclear` and nothing else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from companion_core.connect.changes import MISSING, Path, Unclear, is_text_path

__all__ = ["edit_json", "parse_json_text"]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_SCALAR: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_MAX_DEPTH: Final = 64
_CLOSING: Final = {"{": "}", "[": "]"}


@dataclass(slots=True)
class _Node:
    """A value of the text: where it starts and ends, what it says, and its parts.

    `commas` has where each part's comma is, -1 for none.
    """

    start: int
    end: int = 0
    value: Any = None
    keys: list[tuple[str, int]] = field(default_factory=list)
    parts: list[_Node] = field(default_factory=list)
    commas: list[int] = field(default_factory=list)


def parse_json_text(text: str) -> Any:
    """Return what a text says; an empty one says an empty table."""
    return _parse(text).value


def edit_json(text: str, path: Path, value: Any) -> str:
    """Return the text with another value at a path; `MISSING` takes it away."""
    if not is_text_path(path):
        raise Unclear("a list of it cannot be changed")
    if not text.strip():
        text = "{}\n"
    node, unit = _parse(text), _unit(text)
    indent = ""
    for index, part in enumerate(path):
        if not isinstance(node.value, dict):
            raise Unclear(f"{'.'.join(map(str, path[:index])) or 'it'} is no table")
        at = next((n for n, (key, _) in enumerate(node.keys) if key == part), None)
        last = index == len(path) - 1
        if at is None:
            if value is MISSING:
                return text
            for name in reversed(path[index + 1 :]):
                value = {str(name): value}
            return _insert(text, node, (str(part), value), indent=indent, unit=unit)
        if last:
            if value is MISSING:
                return _remove(text, node, at)
            found = node.parts[at]
            written = _written(value, _line_indent(text, node.keys[at][1]), unit)
            return text[: found.start] + written + text[found.end :]
        indent = _line_indent(text, node.keys[at][1])
        node = node.parts[at]
    raise Unclear("it has no name")


def _insert(text: str, node: _Node, member: tuple[str, Any], *, indent: str, unit: str) -> str:
    key, value = member
    close = node.end - 1
    if not node.parts:
        inner = indent + unit
        written = f"{json.dumps(key, ensure_ascii=False)}: {_written(value, inner, unit)}"
        kept = text[node.start + 1 : close].rstrip()  # a comment alone
        return f"{text[: node.start + 1]}{kept}\n{inner}{written}\n{indent}{text[close:]}"
    first, last = node.keys[0][1], node.parts[-1].end
    own_lines = "\n" in text[node.start : first]
    inner = _line_indent(text, first) if own_lines else ""
    written = f"{json.dumps(key, ensure_ascii=False)}: {_written(value, inner or indent, unit)}"
    trailing = node.commas[-1] >= 0
    end = len(text[:close].rstrip())
    comma = "" if trailing else ","
    between = f"\n{inner}" if own_lines else " "
    tail = "," if trailing else ""
    return f"{text[:last]}{comma}{text[last:end]}{between}{written}{tail}{text[end:]}"


def _remove(text: str, node: _Node, at: int) -> str:
    start, end = node.keys[at][1], node.parts[at].end
    if node.commas[at] >= 0:
        end = node.commas[at] + 1
    elif at and node.commas[at - 1] >= 0:
        comma = node.commas[at - 1]
        text = text[:comma] + text[comma + 1 :]
        start, end = start - 1, end - 1
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    if line_end >= 0 and not text[line_start:start].strip() and not text[end:line_end].strip():
        return text[:line_start] + text[line_end + 1 :]  # it stood on lines of its own
    return text[:start].rstrip(" \t") + text[end:]


def _written(value: Any, indent: str, unit: str) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=unit or "  ")
    return text.replace("\n", f"\n{indent}")


def _unit(text: str) -> str:
    found = re.search(r"[{\[][ \t]*\n([ \t]+)\S", text)
    return found[1] if found else "  "


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _parse(text: str) -> _Node:
    at = _blank(text, 0)
    if at == len(text):
        return _Node(start=at, end=at, value={})
    node = _value(text, at, 0)
    if _blank(text, node.end) != len(text):
        raise Unclear(f"line {_line(text, node.end)} is no JSON")
    return node


def _value(text: str, at: int, depth: int) -> _Node:
    opening = text[at : at + 1]
    if opening in _CLOSING and opening:
        if depth == _MAX_DEPTH:
            raise Unclear("it is nested too deeply")
        return _container(text, at, depth, opening)
    if (match := _SCALAR.match(text, at)) is None:
        raise Unclear(f"line {_line(text, at)} is no JSON")
    return _Node(start=at, end=match.end(), value=_loaded(text, at, match[0]))


def _container(text: str, at: int, depth: int, opening: str) -> _Node:
    node = _Node(start=at)
    table = opening == "{"
    at = _blank(text, at + 1)
    while text[at : at + 1] != _CLOSING[opening]:
        if node.parts and node.commas[-1] < 0:
            raise Unclear(f"line {_line(text, at)} is no JSON")
        if table:
            match = _SCALAR.match(text, at)
            key = _loaded(text, at, match[0]) if match else None
            colon = _blank(text, match.end()) if match else at
            if not isinstance(key, str) or text[colon : colon + 1] != ":":
                raise Unclear(f"line {_line(text, at)} is no JSON")
            if any(key == known for known, _ in node.keys):
                raise Unclear(f"{key} stands there twice")
            node.keys.append((key, at))
            at = _blank(text, colon + 1)
        part = _value(text, at, depth + 1)
        node.parts.append(part)
        at = _blank(text, part.end)
        comma = at if text[at : at + 1] == "," else -1
        node.commas.append(comma)
        if comma >= 0:
            at = _blank(text, at + 1)
    node.end = at + 1
    values = [part.value for part in node.parts]
    node.value = dict(zip((k for k, _ in node.keys), values, strict=True)) if table else values
    return node


def _loaded(text: str, at: int, written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        raise Unclear(f"line {_line(text, at)} is no JSON") from None


def _blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return at if match is None else match.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
