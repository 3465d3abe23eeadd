"""Rules for this file: a value in the text of a YAML file, changed where it stands.

Pure: text in, text out. The parser says where each value stands, and only that is written again:
a key of the file's own table, or an element of a list that is that table's or is the whole file.
Raises `Unclear` and nothing else.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from companion_core.connect.changes import MISSING, Entry, Path, Unclear

__all__ = ["edit_yaml", "parse_yaml"]

_PLAIN: Final = re.compile(r"[A-Za-z_][\w-]*\Z")
_NEW_LINE: Final = "\n"
_BY_HAND: Final = "it is written in a way that cannot be changed"


def parse_yaml(text: str) -> Any:
    """Return what a text says; None for an empty one."""
    return _with_parser(text, "load")


def edit_yaml(text: str, path: Path, value: Any) -> str:
    """Return the text with another value at a path; `MISSING` takes it away."""
    root = _with_parser(text, "compose")
    match path:
        case (str(key),):
            return _edit_key(text, root, key, value)
        case (Entry() as entry,):
            return _edit_list(text, root, entry, value, at=None)
        case (str(key), Entry() as entry):
            return _edit_key_list(text, root, key, entry, value)
    raise Unclear(_BY_HAND)


def _edit_key(text: str, root: Any, key: str, value: Any) -> str:
    for name, node in _members(root):
        if name.value == key:
            if value is not MISSING:
                if hasattr(node, "flow_style") and not node.flow_style:
                    raise Unclear(_BY_HAND)
                return text[: node.start_mark.index] + _flow(value) + text[node.end_mark.index :]
            return _without(text, name.start_mark.index, node)
    if value is MISSING:
        return text
    return _ended(text) + f"{key}: {_flow(value)}\n"


def _edit_key_list(text: str, root: Any, key: str, entry: Entry, value: Any) -> str:
    for name, node in _members(root):
        if name.value == key:
            return _edit_list(text, node, entry, value, at=node.start_mark.index)
    return text if value is MISSING else _ended(text) + f"{key}:\n{_item(value, '  ')}"


def _edit_list(text: str, node: Any, entry: Entry, value: Any, *, at: int | None) -> str:
    elements = getattr(node, "value", None) or []
    if not elements:
        if value is MISSING:
            return text
        return _fill(text, node, value, at)
    if node.flow_style or not isinstance(elements, list):
        raise Unclear(_BY_HAND)
    column = node.start_mark.column
    for element in elements:
        if _says(element, entry):
            dash = text.rfind("-", 0, element.start_mark.index)
            start = text.rfind("\n", 0, dash) + 1
            if text[start:dash].strip():
                raise Unclear(_BY_HAND)
            end = _end(text, element)
            if value is not MISSING:
                return (
                    text[:start] + _item(value, " " * column) + text[end:].removeprefix(_NEW_LINE)
                )
            if len(elements) == 1:
                empty = "[]" if at is None else f"{' ' * column}[]"
                return f"{text[:start]}{empty}{text[end:]}"
            return _without(text, start, element)
    if value is MISSING:
        return text
    end = _end(text, elements[-1])
    return f"{text[:end]}\n{_item(value, ' ' * column)}{text[end:].removeprefix(_NEW_LINE)}"


def _fill(text: str, node: Any, value: Any, at: int | None) -> str:
    """Return the text with the first element of a list that is empty, or is not there."""
    if node is None:
        return _ended(text) + _item(value, "")
    start, end = node.start_mark.index, node.end_mark.index
    indent = "" if at is None else "  "
    before = text[:start].rstrip(" ")
    gap = "\n" if before and not before.endswith("\n") else ""
    return f"{before}{gap}{_item(value, indent)}{text[end:].removeprefix(_NEW_LINE)}"


def _members(root: Any) -> list[tuple[Any, Any]]:
    if root is None:
        return []
    if getattr(root, "flow_style", True) or not all(isinstance(m, tuple) for m in root.value):
        raise Unclear("it is no table of lines")
    return list(root.value)


def _says(element: Any, entry: Entry) -> bool:
    return isinstance(element.value, list) and any(
        isinstance(member, tuple)
        and member[0].value == entry.key
        and member[1].value == entry.value
        for member in element.value
    )


def _end(text: str, node: Any) -> int:
    """Return where a value ends: the parser counts blank lines and comments after it as its own."""
    start, end = int(node.start_mark.index), int(node.end_mark.index)
    lines = text[start:end].split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return start + len("\n".join(lines))


def _without(text: str, start: int, node: Any) -> str:
    end = _end(text, node)
    line_end = text.find("\n", end)
    return text[:start] + ("" if line_end < 0 else text[line_end + 1 :])


def _item(value: Any, indent: str) -> str:
    lines = [f"{key}: {_flow(each)}" for key, each in value.items()]
    return "".join(f"{indent}{'  ' if n else '- '}{line}\n" for n, line in enumerate(lines))


def _flow(value: Any) -> str:
    """Return a value on one line: YAML reads JSON, and plain words without quotes."""
    if isinstance(value, str) and _PLAIN.match(value) and _with_parser(value, "load") == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _with_parser(text: str, method: str) -> Any:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only where a file of YAML is read
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        return getattr(YAML(typ="safe", pure=True), method)(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = str(getattr(error, "problem", None) or "")
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise Unclear(f"it is no YAML{where}{': ' if problem else ''}{problem}") from None
