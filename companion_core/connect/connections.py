"""Lead programs to the gateway by their own settings: lead, look, remove.

What is written is recorded first, with what stood there before, so that a stop between any two
steps leaves a connection that can be made again or taken back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.connect.changes import MISSING, Unclear, find, name_of
from companion_core.connect.person_file import (
    PersonFile,
    missing_folders,
    owner_only,
    read_file,
    remove_file,
    write_file,
)
from companion_core.connect.programs import (
    PROGRAMS,
    OwnFile,
    Places,
    Program,
    SettingsFile,
    Target,
)
from companion_core.connect.record import (
    FileRecord,
    Record,
    digest_of,
    read_record,
    value_digest,
    write_record,
)
from companion_core.connect.settings import is_bare, key_in, plain, shared_changes, taken_back
from companion_core.connect.text import edited, parsed
from companion_core.decisions.client_key import key_digest
from companion_core.errors import CompanionError, Reason, Refused, UsageError
from companion_core.system.folder_lock import lock_folder
from companion_core.system.lacks import lacks_told
from companion_core.system.secret import Secret
from companion_core.system.state_files import (
    OWNER_ONLY,
    private_folder,
    read_private,
    write_private,
)

__all__ = ["Connected", "Connections", "Look", "Removed", "State", "Wanted"]

State = Literal["ok", "drift", "absent", "foreign"]
_KEY_PREFIX: Final = "connect-"
_MAX_OWN_BYTES: Final = 64 * 1024
_NO_KEY: Final = Secret("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Where programs are to be led, as far as it is known now.

    Attributes:
        port: of the gateway; None before the first start.
        model: the id that is served; None where none is known.
        context: tokens of each request; None where it is not known.
        token_command: prints the session token.
    """

    port: int | None
    model: str | None
    context: int | None
    token_command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a program stands.

    Attributes:
        installed: it is on the person's PATH, or keeps settings here.
        connected: by `companion connect`.
        detail: why it is not ok, in words; names files and settings, never a value.
    """

    name: str
    installed: bool
    connected: bool
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """What connecting did.

    Attributes:
        changed: something was written.
        files: that lead the program here.
        values: what was set in the program's files, by name.
        key: a key that was made just now; empty where none was.
    """

    changed: bool
    files: tuple[Path, ...]
    values: tuple[str, ...]
    key: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What removing did.

    Attributes:
        files: that were brought back.
        left: values that somebody changed since; they stay as they are.
    """

    files: tuple[Path, ...]
    left: tuple[str, ...]


class Connections:
    """The connected programs of one companion. Blocking.

    Raises:
        Refused: from the methods: `client_file_foreign`, `client_keys_damaged`,
            `state_path_unsafe`.
        EnvironmentUnavailable: from the methods: `disk_unavailable`.
    """

    def __init__(self, places: Places, keys: ClientKeyFile) -> None:
        self._places = places
        self._keys = keys

    def connected(self) -> tuple[str, ...]:
        """Return the programs that are connected."""
        return tuple(name for name in PROGRAMS if self._record_path(name).exists())

    def look(self, name: str, wanted: Wanted) -> Look:
        """Return how a program stands; writes nothing."""
        program = PROGRAMS[name]
        connected = self._record_path(name).exists()
        state: State
        try:
            record = read_record(self._record_path(name))
            connected = record is not None
            target = _target(wanted, record)
            if record is None:
                state, detail = "absent", ""
                for spec in program.files(self._places, target):
                    if isinstance(spec, SettingsFile):
                        _refuse_foreign(spec, read_file(spec.path).text)
            else:
                key = self._kept_key(program, record, target)
                detail = ", ".join(self._differences(program, record, target, key))
                state = "drift" if detail else "ok"
        except Unclear as error:
            state, detail = "foreign", str(error)
        except CompanionError as error:
            state, detail = "foreign", error.detail
        return Look(
            name=name,
            installed=self._is_installed(program),
            connected=connected,
            state=state,
            detail=detail,
        )

    def lead(self, name: str, wanted: Wanted, *, model: str | None = None) -> Connected:
        """Lead a program here; one that is led here already stays as it is.

        Args:
            name: of the program.
            wanted: where to.
            model: the id that the person named; None follows what is served.

        Raises:
            CompanionError: `not_running`: no start has chosen the gateway's port yet.
            UsageError: no model is known.
        """
        program = PROGRAMS[name]
        with self._alone():
            record = read_record(self._record_path(name))
            target = _chosen(wanted, record, model)
            pinned = model is not None or (record is not None and record.pinned)
            kept = None if record is None else self._kept_key(program, record, target)
            if record is not None and not self._differences(program, record, target, kept):
                if record.pinned != pinned:
                    record = dataclasses.replace(record, pinned=pinned)
                    write_record(self._record_path(name), record)
                return _connected(program.files(self._places, target), key=_NO_KEY, changed=False)
            self._plan(program, record, dataclasses.replace(target, key=Secret("planned")))
            made = _NO_KEY
            if program.has_key and kept is None:
                made = self._new_key(name)
            target = dataclasses.replace(target, key=kept or made)
            plans = self._plan(program, record, target)
            specs = program.files(self._places, target)
            own = [spec for spec in specs if isinstance(spec, OwnFile)]
            write_record(
                self._record_path(name),
                Record(
                    port=target.port,
                    model=target.model,
                    pinned=pinned,
                    context=target.context,
                    key=_key_name(name) if program.has_key else None,
                    files=tuple(plan.record for plan in plans),
                    own=tuple(spec.path for spec in own),
                ),
            )
            for spec in own:
                write_private(spec.path, _own_content(spec, target.key))
            for plan in plans:
                write_file(plan.before, plan.data, mode=plan.mode)
            return _connected(specs, key=made, changed=True)

    def remove(self, name: str) -> Removed | None:
        """Bring back what stood there before; None if the program is not connected."""
        with self._alone():
            record = read_record(self._record_path(name))
            if record is None:
                return None
            backs = [self._back(file) for file in record.files]
            for file, (now, data, _) in zip(record.files, backs, strict=True):
                if data is None:
                    remove_file(Path(os.path.realpath(now.path)), [*file.folders])
                elif data != now.data:
                    mode = file.mode if file.mode is not None else now.mode
                    write_file(now, data, mode=OWNER_ONLY if mode is None else mode)
            for path in record.own:
                remove_file(path, [])
            if record.key is not None:
                with contextlib.suppress(UsageError):  # the person revoked it
                    self._keys.revoke(record.key)
            remove_file(self._record_path(name), [])
            return Removed(
                files=tuple(file.path for file in record.files),
                left=tuple(left for _, _, lefts in backs for left in lefts),
            )

    # --- one program's files ---

    def _plan(self, program: Program, record: Record | None, target: Target) -> list[_Plan]:
        plans = []
        for spec in program.files(self._places, target):
            if not isinstance(spec, SettingsFile):
                continue
            known = _known(record, spec)
            try:
                plans.append(_plan_file(spec, known))
            except Unclear as error:
                raise Refused(Reason.CLIENT_FILE_FOREIGN, f"{spec.path}: {error}") from None
        return plans

    def _back(self, file: FileRecord) -> tuple[PersonFile, bytes | None, list[str]]:
        """Return a file as it is, the content to bring back, and what stays as it is."""
        now = read_file(file.path)
        if now.data is None or digest_of(now.data) == file.written:
            return now, file.before if now.data is not None else None, []
        try:
            text, left = taken_back(file, now.text)
        except Unclear as error:
            raise Refused(Reason.CLIENT_FILE_FOREIGN, f"{file.path}: {error}") from None
        empty = file.before is None and is_bare(text)
        return now, None if empty else text.encode(), left

    def _differences(
        self, program: Program, record: Record, target: Target, key: Secret | None
    ) -> list[str]:
        """Return the names of what does not lead here, the first of each file."""
        if key is None:
            return ["its key opens nothing"]
        found = []
        target = dataclasses.replace(target, key=key)
        for spec in program.files(self._places, target):
            if isinstance(spec, OwnFile):
                wanted = _own_content(spec, target.key)
                if read_private(spec.path, _MAX_OWN_BYTES) != wanted:
                    found.append(f"{spec.path} differs")
                continue
            if _known(record, spec) is None:
                found.append(f"{spec.path} is read now")
                continue
            try:
                document = parsed(spec.form, read_file(spec.path).text)
                found += [
                    f"{name_of(path)} differs"
                    for path, value in spec.values.items()
                    if find(document, path) != plain(value)
                ]
                found += [
                    f"{name_of(path)} leads elsewhere"
                    for path in spec.against
                    if find(document, path) is not MISSING
                ]
            except Unclear as error:
                raise Refused(Reason.CLIENT_FILE_FOREIGN, f"{spec.path}: {error}") from None
        return found

    # --- keys ---

    def _kept_key(self, program: Program, record: Record, target: Target) -> Secret | None:
        """Return the key that the program keeps, if it opens the door; "" where it needs none."""
        if not program.has_key:
            return _NO_KEY
        stored = next((key for key in self._keys.read() if key.name == record.key), None)
        if stored is None:
            return None
        specs = program.files(self._places, target)
        for spec in specs:
            text: object = None
            if isinstance(spec, OwnFile):
                raw = read_private(spec.path, _MAX_OWN_BYTES) or b""
                text = raw.decode(errors="replace").rstrip("\n").rpartition("=")[2]
            elif spec.key_at:
                with contextlib.suppress(Unclear):
                    text = key_in(spec, read_file(spec.path).text)
            else:
                continue
            if isinstance(text, str) and stored.is_of(key_digest(text)):
                return Secret(text)
            return None
        return _NO_KEY  # the program keeps it where nobody can look

    def _new_key(self, name: str) -> Secret:
        with contextlib.suppress(UsageError):  # of a connection that was interrupted, or no more
            self._keys.revoke(_key_name(name))
        return self._keys.add(_key_name(name))

    # --- the machine ---

    def _is_installed(self, program: Program) -> bool:
        path = self._places.variables.get("PATH")
        return any(shutil.which(each, path=path) is not None for each in program.commands)

    def _record_path(self, name: str) -> Path:
        return self._places.own / f"{name}.json"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        private_folder(self._places.own)
        with lacks_told(), lock_folder(self._places.own, threading.Event()):
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One file that is about to be written."""

    before: PersonFile
    data: bytes
    mode: int
    record: FileRecord


def _plan_file(spec: SettingsFile, known: FileRecord | None) -> _Plan:
    now = read_file(spec.path)
    base, before, mode = now.text, now.data, now.mode
    if known is not None:
        mode = known.mode
        if now.data is not None and digest_of(now.data) == known.written:
            before = known.before
            base = (before or b"").decode()
        elif now.data is not None:
            base, _ = taken_back(known, now.text)
            empty = known.before is None and is_bare(base)
            before = None if empty else base.encode()
    _refuse_foreign(spec, base)
    text = edited(spec.form, base, shared_changes(spec, base))
    data = text.encode()
    document = parsed(spec.form, text)
    written = [*spec.values, *(path for path in spec.if_missing)]
    return _Plan(
        before=now,
        data=data,
        mode=owner_only(now.mode) if spec.key_at else now.mode or OWNER_ONLY,
        record=FileRecord(
            path=spec.path,
            form=spec.form,
            before=before,
            mode=mode,
            written=digest_of(data),
            values=tuple((path, value_digest(find(document, path))) for path in written),
            added=tuple(p for p in written if any(p[: len(a)] == a for a in spec.added)),
            folders=known.folders if known is not None else tuple(missing_folders(spec.path)),
        ),
    )


def _refuse_foreign(spec: SettingsFile, text: str) -> None:
    """Refuse a file that has, without a connection, what only a connection writes."""
    document = parsed(spec.form, text)
    for path in spec.added:
        if find(document, path) is not MISSING:
            raise Refused(
                Reason.CLIENT_FILE_FOREIGN,
                f"{spec.path} has {name_of(path)}, which companion connect did not write",
            )
    for path in spec.against:
        if find(document, path) is not MISSING:
            raise Refused(
                Reason.CLIENT_FILE_FOREIGN,
                f"{spec.path} has {name_of(path)}, which would lead the program elsewhere",
            )


def _known(record: Record | None, spec: SettingsFile) -> FileRecord | None:
    files = () if record is None else record.files
    return next((file for file in files if file.path == spec.path), None)


def _own_content(spec: OwnFile, key: Secret) -> bytes:
    return ("\n".join(spec.lines) + key.reveal() + "\n").encode()


def _key_name(name: str) -> str:
    return f"{_KEY_PREFIX}{name}"


def _target(wanted: Wanted, record: Record | None) -> Target:
    """Return where a program should lead, filled in from what was written before."""
    pinned = record is not None and record.pinned
    model = record.model if record is not None and pinned else wanted.model
    same = record is not None and record.model == model
    return Target(
        port=wanted.port or (record.port if record else 0),
        model=model or (record.model if record else ""),
        context=wanted.context or (record.context if record and (same or not model) else None),
        key=_NO_KEY,
        token_command=wanted.token_command,
    )


def _chosen(wanted: Wanted, record: Record | None, model: str | None) -> Target:
    target = _target(wanted, record)
    if model is not None:
        target = dataclasses.replace(target, model=model)
    if not target.model:
        raise UsageError(Reason.USAGE, "no model is known: start one, or name it with --model")
    if not target.port:
        raise CompanionError(Reason.NOT_RUNNING, "the gateway's port is chosen at the first start")
    return target


def _connected(
    specs: tuple[SettingsFile | OwnFile, ...], *, key: Secret, changed: bool
) -> Connected:
    return Connected(
        changed=changed,
        files=tuple(spec.path for spec in specs),
        values=tuple(
            name_of(path)
            for spec in specs
            if isinstance(spec, SettingsFile)
            for path in spec.values
        ),
        key=key,
    )
