"""Rules for this file: what a text of any of these formats says, and changes of it.

Pure. No text is returned before it was parsed again and found to say what it said before, and the
change. What these rules do not understand they refuse (`Unclear`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, Final

from companion_core.connect.changes import MISSING, Path, Unclear, after, find
from companion_core.connect.json_text import edit_json, parse_json_text
from companion_core.connect.toml_text import edit_toml, parse_toml
from companion_core.connect.yaml_text import edit_yaml, parse_yaml

__all__ = ["Form", "edited", "parsed"]


class Form(enum.Enum):
    """How a file is written."""

    JSON = "json"
    TOML = "toml"
    YAML = "yaml"


_PARSE: Final[dict[Form, Callable[[str], Any]]] = {
    Form.JSON: parse_json_text,
    Form.TOML: parse_toml,
    Form.YAML: parse_yaml,
}
_EDIT: Final[dict[Form, Callable[[str, Path, Any], str]]] = {
    Form.JSON: edit_json,
    Form.TOML: edit_toml,
    Form.YAML: edit_yaml,
}


def parsed(form: Form, text: str) -> Any:
    """Return what a text says.

    Raises:
        Unclear: it is not of that form.
    """
    return _PARSE[form](text)


def edited(form: Form, text: str, changes: Iterable[tuple[Path, Any]]) -> str:
    """Return the text after changes; `MISSING` as a value takes what stands there away.

    Raises:
        Unclear: it is not of that form, or is written so that it has to be changed by hand.
    """
    crlf = "\r\n" in text
    if crlf:
        if text.count("\r\n") != text.count("\n"):
            raise Unclear("its lines end in two ways")
        text = text.replace("\r\n", "\n")
    for path, value in changes:
        before = parsed(form, text)
        if _same(find(before, path), value):
            continue
        wanted = after(before, path, value)
        text = _EDIT[form](text, path, value)
        says = parsed(form, text)
        if not _same(says, wanted) and not _same(says, _without_empty(wanted, path, value)):
            raise Unclear("it is written in a way that cannot be changed")
    return text.replace("\n", "\r\n") if crlf else text


def _without_empty(document: Any, path: Path, value: Any) -> Any:
    """Return a document without tables that a change left empty: TOML need not say them."""
    for end in range(len(path) - 1, 0, -1):
        if value is MISSING and find(document, path[:end]) == {}:
            document = after(document, path[:end], MISSING)
    return document


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    if one is MISSING or other is MISSING:
        return one is other
    return bool(_typed(one) == _typed(other))


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(each) for each in value]
    return (type(value).__name__, value) if isinstance(value, bool) else value
