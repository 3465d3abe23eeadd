"""Rules for this file: the values of one program's file, written, found again and taken back.

Pure: text in, text out. A value that somebody changed since stays, but for what only a
connection has.
"""

from __future__ import annotations

from typing import Any

from companion_core.connect.changes import MISSING, Path, find, is_text_path, name_of
from companion_core.connect.programs import SettingsFile
from companion_core.connect.record import FileRecord, value_digest
from companion_core.connect.text import edited, parsed
from companion_core.system.secret import Secret

__all__ = ["is_bare", "key_in", "plain", "shared_changes", "taken_back"]


def plain(value: Any) -> Any:
    """Return a value as it is written, the key in it too."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def shared_changes(spec: SettingsFile, text: str) -> list[tuple[Path, Any]]:
    """Return the changes that lead a program here."""
    document = parsed(spec.form, text)
    missing = [
        (path, value) for path, value in spec.if_missing.items() if find(document, path) is MISSING
    ]
    return [*missing, *((path, plain(value)) for path, value in spec.values.items())]


def key_in(spec: SettingsFile, text: str) -> Any:
    """Return what stands where the program keeps its key; `MISSING` for nothing."""
    return find(parsed(spec.form, text), spec.key_at)


def is_bare(text: str) -> bool:
    """Tell whether a text says nothing at all, not even in a comment."""
    return text.strip() in {"", "{}", "[]"}


def taken_back(file: FileRecord, text: str) -> tuple[str, list[str]]:
    """Return a text without what was written, and the names of what somebody changed since.

    Raises:
        Unclear: the text is written so that it has to be changed by hand.
    """
    document = parsed(file.form, text)
    before = parsed(file.form, (file.before or b"").decode())
    changes: list[tuple[Path, Any]] = []
    left = []
    for path, digest in file.values:
        now = find(document, path)
        if now is MISSING:
            continue
        if value_digest(now) != digest and path not in file.added:
            left.append(name_of(path))
        else:
            changes.append((path, find(before, path)))
    text = edited(file.form, text, changes)
    parents = {path[:end] for path, _ in changes for end in range(1, len(path))}
    for parent in sorted(parents, key=len, reverse=True):
        empty = find(parsed(file.form, text), parent) in ({}, [], None)
        if is_text_path(parent) and empty and find(before, parent) is MISSING:
            text = edited(file.form, text, [(parent, MISSING)])
    return text, left
