"""The file of the keys that a person gave to programs: made, listed and revoked.

A key is shown once, when it is made. The file holds a digest of it, and nothing that opens a door.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from companion_core.decisions.client_key import (
    MAX_BYTES,
    MAX_KEYS,
    ClientKey,
    is_client_name,
    key_digest,
    keys_document,
    parse_keys,
)
from companion_core.decisions.strict_json import parse_json
from companion_core.errors import Reason, Refused, UsageError
from companion_core.system.folder_lock import lock_folder
from companion_core.system.lacks import lacks_told
from companion_core.system.secret import Secret
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["ClientKeyFile"]

_RANDOM_BYTES: Final = 32


class ClientKeyFile:
    """The keys of one companion. Blocking; it may be used by several processes.

    Args:
        folder: of the companion's own; made owner-only.
        clock: seconds of the wall clock.

    Raises:
        Refused: from the methods: `client_keys_damaged`, `state_path_unsafe`.
        EnvironmentUnavailable: from the methods: `disk_unavailable`.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._path = folder / "keys.json"
        self._used = folder / "used.json"
        self._clock = clock

    def read(self) -> tuple[ClientKey, ...]:
        """Return every key."""
        raw = read_private(self._path, MAX_BYTES)
        if raw is None:
            return ()
        keys = parse_keys(raw)
        if keys is None:
            raise Refused(Reason.CLIENT_KEYS_DAMAGED, str(self._path))
        return keys

    def add(
        self,
        name: str,
        *,
        models: tuple[str, ...] | None = None,
        requests_per_minute: int | None = None,
        delegate: bool = False,
    ) -> Secret:
        """Make a key and return it, the only time that it is told.

        Raises:
            UsageError: the name is taken or cannot be one, or there are too many.
        """
        if not is_client_name(name):
            raise UsageError(Reason.USAGE, "a key's name is a-z, 0-9, - and _, up to 32 characters")
        secret = secrets.token_urlsafe(_RANDOM_BYTES)
        key = ClientKey(
            name=name,
            digest=key_digest(secret),
            created=_moment(self._clock()),
            models=models,
            requests_per_minute=requests_per_minute,
            delegate=delegate,
        )
        with self._alone():
            keys = self.read()
            if any(each.name == name for each in keys):
                raise UsageError(
                    Reason.USAGE, f"there is a key {name}: companion keys revoke {name}"
                )
            if len(keys) >= MAX_KEYS:
                raise UsageError(Reason.USAGE, f"there are {MAX_KEYS} keys already; revoke one")
            raw = _encode(keys_document((*keys, key)))
            if parse_keys(raw) is None:
                raise UsageError(Reason.USAGE, "a key cannot have these models or this budget")
            write_private(self._path, raw)
        return Secret(secret)

    def revoke(self, name: str) -> None:
        """Take a key off the list.

        Raises:
            UsageError: there is none of that name.
        """
        with self._alone():
            keys = self.read()
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                names = ", ".join(key.name for key in keys) or "none at all"
                raise UsageError(Reason.USAGE, f"there is no key {name!r}; there is {names}")
            write_private(self._path, _encode(keys_document(left)))

    def forget(self) -> None:
        """Revoke every key, also where the file is damaged."""
        with self._alone():
            self._path.unlink(missing_ok=True)
            self._used.unlink(missing_ok=True)

    def last_used(self) -> Mapping[str, str]:
        """Return when each key was used last, as RFC 3339 writes it, as far as was noted."""
        found = parse_json(read_private(self._used, MAX_BYTES), limit=MAX_BYTES)
        if not isinstance(found, dict):
            return {}
        return {name: at for name, at in found.items() if is_client_name(name) and type(at) is str}

    def note_used(self, moments: Mapping[str, float]) -> None:
        """Note when keys were used.

        Args:
            moments: by name; seconds since the epoch.
        """
        if moments:
            with self._alone():
                noted = {name: _moment(at) for name, at in moments.items()}
                write_private(self._used, _encode({**self.last_used(), **noted}))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        private_folder(self._folder)
        with lacks_told(), lock_folder(self._folder, threading.Event()):
            yield


def _encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode("ascii")


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
