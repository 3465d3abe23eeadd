"""Rules for this file: a change of one value in a document, and what the document says after it.

Pure; imports nothing of the package. A path leads through tables by their keys, and through a list
by an `Entry`, which names one of its elements by what that says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MISSING", "Entry", "Path", "Unclear", "after", "find", "is_text_path", "name_of"]


class _Missing:
    """The one value that no document has."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True, slots=True)
class Entry:
    """The element of a list that has a certain value under a key.

    Attributes:
        key: of the element, which is a table.
        value: that it has there.
    """

    key: str
    value: str


Path = tuple[str | Entry, ...]


class Unclear(ValueError):
    """A text cannot be read, or is written so that these rules cannot change it; says why."""


def find(document: Any, path: Path) -> Any:
    """Return the value at a path; `MISSING` if there is none.

    Raises:
        Unclear: something else than a table or a list stands in the way.
    """
    for index, part in enumerate(path):
        if document is MISSING or document is None:
            return MISSING
        if isinstance(part, Entry):
            document = next((each for _, each in _entries(document, path[:index], part)), MISSING)
        elif isinstance(document, dict):
            document = document.get(part, MISSING)
        else:
            raise Unclear(f"{name_of(path[:index]) or 'it'} is no table")
    return document


def after(document: Any, path: Path, value: Any) -> Any:
    """Return what a document says after a change; `MISSING` as the value takes it away.

    Raises:
        Unclear: as `find`.
    """
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, Entry):
        elements = [] if document in (None, MISSING) else copy.copy(document)
        where = next((index for index, _ in _entries(elements, (), first)), None)
        changed = after(MISSING if where is None else elements[where], rest, value)
        if changed is MISSING:
            return elements if where is None else elements[:where] + elements[where + 1 :]
        if where is None:
            return [*elements, changed]
        return [*elements[:where], changed, *elements[where + 1 :]]
    if document is None or document is MISSING:
        document = {}
    if not isinstance(document, dict):
        raise Unclear("it is no table")
    if value is MISSING and first not in document:
        return document
    changed = after(document.get(first, MISSING), rest, value)
    return {
        **{key: kept for key, kept in document.items() if key != first or changed is not MISSING},
        **({} if changed is MISSING else {first: changed}),
    }


def is_text_path(path: Path) -> bool:
    """Tell whether a path leads through tables alone."""
    return not any(isinstance(part, Entry) for part in path)


def name_of(path: Path) -> str:
    """Return a path as a person reads it: `models[companion].apiBase`."""
    name = ""
    for part in path:
        name += f"[{part.value}]" if isinstance(part, Entry) else f"{'.' if name else ''}{part}"
    return name


def _entries(elements: Any, path: Path, entry: Entry) -> Iterator[tuple[int, Any]]:
    if not isinstance(elements, list):
        raise Unclear(f"{name_of(path) or 'it'} is no list")
    for index, each in enumerate(elements):
        if isinstance(each, dict) and each.get(entry.key) == entry.value:
            yield index, each
