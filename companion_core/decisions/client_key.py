"""Rules: the keys of programs that keep one in their settings, as they are stored.

Only a digest of a key is kept. Everything read back is checked as a stranger's text. Imports no
I/O, no clock and no randomness; never raises on bad input.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from companion_core.decisions.strict_json import parse_json

__all__ = [
    "MAX_BYTES",
    "MAX_KEYS",
    "MAX_PER_MINUTE",
    "ClientKey",
    "is_client_name",
    "key_digest",
    "keys_document",
    "parse_keys",
]

MAX_KEYS: Final = 64
MAX_BYTES: Final = 64 * 1024
MAX_PER_MINUTE: Final = 1_000_000
MAX_MODELS: Final = 64
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}")  # as a model's id is


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """What is known of a key that a person gave to a program.

    Attributes:
        name: that the person gave it.
        digest: the SHA-256 of the key, in lower-case hex; the key has 256 random bits.
        created: as RFC 3339 writes it, in UTC.
        models: that it may ask for; None for every one that is served.
        requests_per_minute: its own budget; None for the owner's number.
        delegate: it acts for somebody else than the owner, which bounds what may leave the device.
    """

    name: str
    digest: str
    created: str
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    delegate: bool

    def document(self) -> dict[str, Any]:
        """Return what is stored of it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "created": self.created,
            "models": None if self.models is None else list(self.models),
            "requests_per_minute": self.requests_per_minute,
            "delegate": self.delegate,
        }

    def is_of(self, digest: str) -> bool:
        """Tell whether this is the key of that digest, in constant time."""
        return hmac.compare_digest(self.digest.encode(), digest.encode())


def is_client_name(text: object) -> bool:
    """Tell whether a key may have this name: a-z, 0-9, - and _, up to 32 characters."""
    return type(text) is str and _NAME.fullmatch(text) is not None


def key_digest(key: str) -> str:
    """Return the digest under which a key is stored."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def keys_document(keys: Iterable[ClientKey]) -> dict[str, Any]:
    """Return what is stored of all keys."""
    return {"keys": [key.document() for key in keys]}


def parse_keys(raw: object) -> tuple[ClientKey, ...] | None:
    """Return the stored keys; None if the bytes are anything else."""
    if not isinstance(raw, bytes):
        return None
    document = parse_json(raw, limit=MAX_BYTES)
    match document:
        case {"keys": list(entries)} if len(entries) <= MAX_KEYS and len(document) == 1:
            keys = tuple(key for entry in entries if (key := _parse_key(entry)) is not None)
            whole = len(keys) == len(entries) == len({key.name for key in keys})
            return keys if whole and len({key.digest for key in keys}) == len(keys) else None
    return None


def _parse_key(entry: object) -> ClientKey | None:
    match entry:
        case {
            "name": str(name),
            "digest": str(digest),
            "created": str(created),
            "models": list() | None as models,
            "requests_per_minute": int() | None as per_minute,
            "delegate": bool(delegate),
        } if (
            is_client_name(name)
            and _DIGEST.fullmatch(digest)
            and _MOMENT.fullmatch(created)
            and _are_models(models)
            and _is_budget(per_minute)
        ):
            return ClientKey(
                name=name,
                digest=digest,
                created=created,
                models=None if models is None else tuple(models),
                requests_per_minute=per_minute,
                delegate=delegate,
            )
    return None


def _are_models(models: list[Any] | None) -> bool:
    if models is None:
        return True
    named = [each for each in models if type(each) is str and _MODEL.fullmatch(each)]
    return 0 < len(named) == len(models) <= MAX_MODELS


def _is_budget(per_minute: int | None) -> bool:
    return per_minute is None or (type(per_minute) is int and 0 < per_minute <= MAX_PER_MINUTE)
