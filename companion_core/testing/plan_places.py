"""What a plan says of places: the address to listen at, and the interpreter of a script."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime import SandboxPolicy

__all__ = ["foreign_addresses", "hidden_interpreter"]

_SEARCHED: Final = "/usr/bin:/bin"  # PATH of every runtime
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")
_IPV6: Final = re.compile(
    r"\[([0-9a-fA-F:.]*:[0-9a-fA-F:.]*)\]|(?<![^=\"\s])(::[0-9a-fA-F]*)(?![^\"\s])"
)
_LINE_BYTES: Final = 4096


def foreign_addresses(plan: SpawnPlan, channel: UnixChannel | TcpChannel) -> tuple[str, ...]:
    """Return what in the plan's arguments and environment is another address than the channel's.

    On TCP the channel's own has to be there: without it the program's default decides. Every
    address counts, in whatever argument: one for metrics is reached as easily.
    """
    texts = (*plan.argv[1:], *plan.env.values())
    found = [address for text in texts for address in _addresses(text)]
    if isinstance(channel, UnixChannel):
        return tuple(found)
    foreign = [address for address in found if address != channel.host]
    foreign += [name for text in texts for name in _names_before(text, channel)]
    if channel.host not in found:
        foreign.append("an address that it does not name")
    return tuple(foreign)


def _addresses(text: str) -> Iterator[str]:
    yield from _IPV4.findall(text)
    for bracketed, bare in _IPV6.findall(text):
        yield bracketed or bare


def _names_before(text: str, channel: TcpChannel) -> Iterator[str]:
    """Yield each host that stands before the channel's port and is no address in figures."""
    for host in re.findall(rf"([^\s=\"/,@]*):{channel.port}(?!\d)", text):
        if not _IPV4.fullmatch(host) and not host.endswith("]"):
            yield host or "every address"


def hidden_interpreter(program: str, plan: SpawnPlan) -> str:
    """Return the interpreter of a script that isolation would not leave readable; "" if none.

    Args:
        program: the file that the plan starts.
        plan: its `read_paths` count.
    """
    interpreter = _interpreter(program)
    if interpreter is None:
        return ""
    if not os.path.exists(interpreter):  # noqa: PTH110 - may be empty, which is no path
        return interpreter or "none"
    readable = (*SandboxPolicy.of_program(program).read, *plan.read_paths)
    for path in (interpreter, os.path.realpath(interpreter)):
        if not any(Path(path).is_relative_to(folder) for folder in readable):
            return path
    return ""


def _interpreter(program: str) -> str | None:
    """Return what the first line of a script names; None for a file that is no script."""
    try:
        with open(program, "rb") as file:  # noqa: PTH123 - a path that the plugin gave
            line = file.readline(_LINE_BYTES)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    words = os.fsdecode(line[2:]).split()
    if words and Path(words[0]).name == "env":
        named = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        name = named[0] if named else ""
        return shutil.which(name, path=_SEARCHED) or name
    return words[0] if words else ""
