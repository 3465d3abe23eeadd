"""What a person records of a model, as values; `personal_manifest` signs them."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from companion_core.decisions.manifest_kind import Role
from companion_core.decisions.source import HttpsUrl, parse_https_url

__all__ = ["ADDED", "ASKED", "ORIGIN", "OwnFile", "OwnModel", "rfc3339", "sources_of"]

# Fields of an entry that the rule of a manifest ignores; they are signed with the rest.
ORIGIN: Final = "x-origin"
ADDED: Final = "x-added"
ASKED: Final = "x-asked"
_HOPS: Final = "x-hops"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """One file of a model that the person records.

    Attributes:
        name: as the runtime sees it.
        size: in bytes.
        sha256: 64 lower-case hex digits, of the bytes that were hashed.
        urls: where it can be fetched again; empty if only the stored bytes can prove it.
        role: what a runtime does with it.
        piece_size: bytes of a piece.
        pieces: the SHA-256 of each piece, one after the other; empty if there are none.
    """

    name: str
    size: int
    sha256: str
    urls: Sequence[str] = ()
    role: Role = Role.MODEL
    piece_size: int = 0
    pieces: bytes = b""

    def entry(self) -> dict[str, Any]:
        """Return the file as a manifest has it."""
        entry: dict[str, Any] = {
            "name": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "urls": list(self.urls),
        }
        if self.role is not Role.MODEL:
            entry["role"] = self.role.value
        if self.pieces:
            entry["pieces"] = {
                "size": self.piece_size,
                "sha256": base64.b64encode(self.pieces).decode("ascii"),
            }
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModel:
    """A model that the person records.

    Attributes:
        format: of its files, such as "gguf".
        licence: as its source says; None if it says none.
        origin: where it came from, in the words that `companion models show` prints.
        also_allowed: addresses that its downloads may be redirected to, besides the folders of
            its own addresses.
        asked: the source that the person named, if it is to be known again.
    """

    id: str
    format: str
    files: Sequence[OwnFile]
    origin: str
    licence: str | None = None
    chat_template: str | None = None
    also_allowed: Sequence[str] = ()
    asked: str = ""

    def entry(self, added: dt.datetime) -> dict[str, Any]:
        """Return the model as a manifest has it."""
        return {
            "id": self.id,
            "format": self.format,
            "licence": self.licence,
            "chat_template": self.chat_template,
            "files": [file.entry() for file in self.files],
            ORIGIN: self.origin,
            ADDED: rfc3339(added),
            ASKED: self.asked,
            _HOPS: list(self.also_allowed),
        }


def sources_of(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what the downloads of these entries need, and nothing that only others needed."""
    return sorted({source for entry in entries for source in _sources(entry)})


def _sources(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the folder of each address of a model, and where a redirect of it may lead."""
    yield from entry.get(_HOPS, ())
    for file in entry["files"]:
        for url in file["urls"]:
            parsed = parse_https_url(url)
            if isinstance(parsed, HttpsUrl):  # any other is refused with the whole list
                folder = parsed.path.rpartition("/")[0] + "/"
                yield HttpsUrl(parsed.host, parsed.port, folder, "").text


def rfc3339(moment: dt.datetime) -> str:
    """Return an aware moment as a manifest writes it, cut to the second."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
