"""What was written for one program, and what stood there before; owner-only, in the state folder.

A file's former content is kept whole, because it is brought back to the byte. Of what was written
only digests are kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from companion_core.connect.changes import Entry
from companion_core.connect.changes import Path as Keys
from companion_core.connect.text import Form
from companion_core.decisions.strict_json import parse_json
from companion_core.errors import Reason, Refused
from companion_core.system.state_files import read_private, write_private

__all__ = ["FileRecord", "Record", "digest_of", "read_record", "value_digest", "write_record"]

_MAX_BYTES: Final = 16 * 1024 * 1024
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the program.

    Attributes:
        before: its content before; None if there was no file.
        mode: its permission bits before; None if there was no file.
        written: the digest of what was written.
        values: the digest of each written value, by path.
        added: the paths among them that only a connection has.
        folders: that were made for it, the innermost first.
    """

    path: Path
    form: Form
    before: bytes | None
    mode: int | None
    written: str
    values: tuple[tuple[Keys, str], ...]
    added: tuple[Keys, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One connected program.

    Attributes:
        port: of the gateway, as it was written.
        model: the id that was written.
        pinned: the person named the model; else it follows what is served.
        context: tokens, as they were written.
        key: the name of the program's own key; None for one that runs a command.
        files: of the program.
        own: files of the companion's own that the program reads.
    """

    port: int
    model: str
    pinned: bool
    context: int | None
    key: str | None
    files: tuple[FileRecord, ...]
    own: tuple[Path, ...]


def digest_of(data: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(data).hexdigest()


def value_digest(value: Any) -> str:
    """Return the digest of a value."""
    return digest_of(json.dumps(value, sort_keys=True, default=str).encode())


def write_record(path: Path, record: Record) -> None:
    """Keep a record.

    Raises:
        EnvironmentUnavailable: `disk_unavailable`.
    """
    document = {
        "version": _VERSION,
        "port": record.port,
        "model": record.model,
        "pinned": record.pinned,
        "context": record.context,
        "key": record.key,
        "files": [
            {
                "path": str(file.path),
                "form": file.form.value,
                "before": None if file.before is None else base64.b64encode(file.before).decode(),
                "mode": file.mode,
                "written": file.written,
                "values": [[_keys_out(path), digest] for path, digest in file.values],
                "added": [_keys_out(path) for path in file.added],
                "folders": [str(folder) for folder in file.folders],
            }
            for file in record.files
        ],
        "own": [str(path) for path in record.own],
    }
    write_private(path, json.dumps(document).encode("ascii"))


def read_record(path: Path) -> Record | None:
    """Return a record; None if there is none.

    Raises:
        Refused: `client_file_foreign`, it cannot be read; `state_path_unsafe`.
    """
    raw = read_private(path, _MAX_BYTES)
    if raw is None:
        return None
    document = parse_json(raw, limit=_MAX_BYTES)
    try:
        return _record(document)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(Reason.CLIENT_FILE_FOREIGN, f"{path} is damaged") from None


def _record(document: Any) -> Record:
    if document["version"] != _VERSION:
        raise ValueError("a later release's")
    files = tuple(
        FileRecord(
            path=Path(each["path"]),
            form=Form(each["form"]),
            before=None if each["before"] is None else base64.b64decode(each["before"]),
            mode=None if each["mode"] is None else int(each["mode"]),
            written=str(each["written"]),
            values=tuple((_keys_in(path), str(digest)) for path, digest in each["values"]),
            added=tuple(_keys_in(path) for path in each["added"]),
            folders=tuple(Path(folder) for folder in each["folders"]),
        )
        for each in document["files"]
    )
    context, key = document["context"], document["key"]
    return Record(
        port=int(document["port"]),
        model=str(document["model"]),
        pinned=bool(document["pinned"]),
        context=None if context is None else int(context),
        key=None if key is None else str(key),
        files=files,
        own=tuple(Path(path) for path in document["own"]),
    )


def _keys_out(path: Keys) -> list[Any]:
    return [[part.key, part.value] if isinstance(part, Entry) else part for part in path]


def _keys_in(path: list[Any]) -> Keys:
    return tuple(part if isinstance(part, str) else Entry(*part) for part in path)
