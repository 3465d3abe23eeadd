"""Rules for this file: which programs read their address from files, whatever the environment says.

`companion exec` cannot reach those; it says which of them there are before it starts the program.
Sources: each program's own documentation, as docs/clients.md has it. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["FILES", "ClientFiles", "client_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFiles:
    """What a program reads.

    Attributes:
        before: files that come before the environment; "~/" is the person's home, and any other
            is in the folder that the program is started in.
        alone: the program takes its address from its settings alone.
        connect: its name for `companion connect`; "" if that does not know it.
    """

    before: tuple[str, ...] = ()
    alone: bool = False
    connect: str = ""


_NOTHING: Final = ClientFiles()
# By the name of the program, without the ending that Windows gives it.
FILES: Final[Mapping[str, ClientFiles]] = MappingProxyType(
    {
        "aider": ClientFiles(
            before=(".env", "~/.env", ".aider.conf.yml", "~/.aider.conf.yml"), connect="aider"
        ),
        "opencode": ClientFiles(
            before=("opencode.json", "opencode.jsonc", "~/.config/opencode/opencode.json"),
            connect="opencode",
        ),
        "gemini": ClientFiles(before=(".gemini/.env", "~/.gemini/.env", ".env", "~/.env")),
        "codex": ClientFiles(alone=True, connect="codex"),
        "cn": ClientFiles(alone=True, connect="continue"),
        "cline": ClientFiles(alone=True, connect="cline"),
        "zed": ClientFiles(alone=True, connect="zed"),
        "crush": ClientFiles(alone=True),
    }
)
_PROGRAM: Final = re.compile(
    r"(?:.*[/\\])?([a-z]+)(?:\.(?:exe|cmd|ps1))?", re.IGNORECASE | re.DOTALL
)


def client_files(program: object) -> ClientFiles:
    """Return what a program reads, by its name or path; nothing for one that is not known."""
    found = _PROGRAM.fullmatch(program) if isinstance(program, str) else None
    return _NOTHING if found is None else FILES.get(found[1].lower(), _NOTHING)
