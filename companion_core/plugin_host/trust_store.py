"""The file that records which plugins the person trusts, and what the conformance kit said.

One owner-only file, replaced atomically. An unsafe or malformed file is refused; it is never
read as "nothing is trusted, and nothing was ever checked".
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.plugin_host.rules import TrustRecord
from companion_core.system.folder_lock import lock_folder
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["CheckRecord", "TrustBook", "TrustStore"]

MAX_BYTES: Final = 4 * 1024 * 1024
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRecord:
    """What the conformance kit said of a plugin in exactly one state of its code.

    Attributes:
        digest: of the code that was checked; the result says nothing of other code.
        kit: version of the kit.
        passed: the roles that were checked, when all of them passed.
        failure: the first rule that was broken; "" if all passed.
        untried: what could not be tried on this machine, for a person.
        reason: `ok`, or why nothing could be said of a role, such as a locked store.
    """

    digest: str
    kit: str
    passed: tuple[str, ...] = ()
    failure: str = ""
    untried: tuple[str, ...] = ()
    reason: str = Reason.OK.value


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBook:
    """The content of the store, by the plugin's name."""

    trusted: Mapping[str, TrustRecord] = field(default_factory=dict)
    checked: Mapping[str, CheckRecord] = field(default_factory=dict)


class TrustStore:
    """Reads and replaces the file at `path`; every change writes the whole file again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> TrustBook:
        """Return what is stored; an empty book when there is no file.

        Raises:
            Refused: `state_path_unsafe`.
            EnvironmentUnavailable: `plugin_store_malformed`.
        """
        raw = read_private(self._path, MAX_BYTES)
        if raw is None:
            return TrustBook()
        try:
            return _parse(json.loads(raw))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EnvironmentUnavailable(Reason.PLUGIN_STORE_MALFORMED, str(self._path)) from error

    def trust(self, record: TrustRecord) -> None:
        """Trust `record`, in place of whatever was trusted under its name before."""
        with self._changing() as book:
            self._write(replace(book, trusted={**book.trusted, record.name: record}))

    def untrust(self, name: str) -> bool:
        """Forget trust and checks of `name`; False if it was not trusted."""
        with self._changing() as book:
            self._write(
                TrustBook(
                    trusted={key: row for key, row in book.trusted.items() if key != name},
                    checked={key: row for key, row in book.checked.items() if key != name},
                )
            )
        return name in book.trusted

    def remember_check(self, name: str, record: CheckRecord) -> None:
        """Store what the conformance kit said of `name`."""
        with self._changing() as book:
            self._write(replace(book, checked={**book.checked, name: record}))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[TrustBook]:
        """Lock the folder, so that no change of another process is overwritten."""
        folder = private_folder(self._path.parent, may_be_link=True)
        with lock_folder(folder, threading.Event()):
            yield self.read()

    def _write(self, book: TrustBook) -> None:
        document = {
            "schema": _SCHEMA,
            "trusted": {name: asdict(record) for name, record in book.trusted.items()},
            "checked": {name: asdict(record) for name, record in book.checked.items()},
        }
        write_private(self._path, json.dumps(document, indent=1, sort_keys=True).encode())


def _parse(document: Any) -> TrustBook:
    if document["schema"] != _SCHEMA or type(document["schema"]) is not int:
        raise ValueError
    trusted = {name: _trust_record(name, row) for name, row in document["trusted"].items()}
    checked = {name: _check_record(row) for name, row in document["checked"].items()}
    return TrustBook(trusted=trusted, checked=checked)


def _trust_record(name: str, row: Any) -> TrustRecord:
    record = TrustRecord(**row)
    texts = [getattr(record, f.name) for f in fields(record) if f.type == "str"]
    files = record.files
    if (
        name != record.name
        or not all(type(text) is str and text for text in texts)
        or type(row["editable"]) is not bool
        or type(row["files"]) is not dict
        or not all(type(digest) is str for digest in files.values())
    ):
        raise ValueError
    return record


def _check_record(row: Any) -> CheckRecord:
    lists = {"passed": tuple(row["passed"]), "untried": tuple(row.get("untried", ()))}
    record = CheckRecord(**{**row, **lists})  # an older core wrote no `untried` and no `reason`
    texts = (record.digest, record.kit, record.failure, *record.passed, *record.untried)
    Reason(record.reason)  # a ValueError for any other text
    if not all(type(text) is str for text in texts):
        raise ValueError
    return record
