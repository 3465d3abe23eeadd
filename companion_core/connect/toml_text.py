"""Rules for this file: a value in the text of a TOML file, changed where it stands.

Pure: text in, text out. tomlkit keeps comments, order and line ends. Raises `Unclear` and nothing
else.
"""

from __future__ import annotations

import tomllib
from typing import Any

from companion_core.connect.changes import MISSING, Path, Unclear, find, is_text_path

__all__ = ["edit_toml", "parse_toml"]


def parse_toml(text: str) -> Any:
    """Return what a text says."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Unclear(f"it is no TOML: {error}") from None


def edit_toml(text: str, path: Path, value: Any) -> str:
    """Return the text with another value at a path; `MISSING` takes it away."""
    import tomlkit  # noqa: PLC0415 - only where a file of TOML is changed
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    if not is_text_path(path):
        raise Unclear("a list of it cannot be changed")
    keys = [str(part) for part in path]
    try:
        if value is MISSING and (left := _without_block(text, keys)) is not None:
            return left
        document: Any = tomlkit.parse(text)
        table = document
        for part in keys[:-1]:
            if part not in table:
                if value is MISSING:
                    return text
                table[part] = tomlkit.table(is_super_table=True)
            table = table[part]
        last = keys[-1]
        if value is MISSING:
            if last in table:
                del table[last]
        else:
            table[last] = value
        return tomlkit.dumps(document)
    except (TOMLKitError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unclear(f"it is written in a way that cannot be changed: {error}") from None


def _without_block(text: str, keys: list[str]) -> str | None:
    """Return the text without a table that stands there as it was written; None if it does not.

    tomlkit counts a person's comment after a table as the table's own, and would take it along.
    """
    import tomlkit  # noqa: PLC0415 - only where a file of TOML is changed

    value = find(parse_toml(text), tuple(keys))
    if not isinstance(value, dict):
        return None
    document: Any = tomlkit.document()
    table = document
    for key in keys[:-1]:
        table[key] = tomlkit.table(is_super_table=True)
        table = table[key]
    table[keys[-1]] = value
    block = tomlkit.dumps(document).strip("\n") + "\n"
    before, found, rest = text.partition(block)
    if not found or (before and not before.endswith("\n")):
        return None
    return before.removesuffix("\n") + rest if before.endswith("\n\n") else before + rest
