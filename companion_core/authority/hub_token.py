"""The person's token for a model hub, where its own programs keep it; read on request alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from companion_core.errors import Reason, UsageError
from companion_core.system.secret import Secret
from companion_core.system.state_files import open_ordinary

__all__ = ["find_hub_token"]

_MAX_BYTES: Final = 4096
_NAMES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def find_hub_token(environment: Mapping[str, str]) -> Secret:
    """Return the token, of the environment or of the file that the hub's own client writes.

    Source: huggingface.co/docs/huggingface_hub, "Environment variables".

    Raises:
        UsageError: there is none, or it cannot go into a request.
    """
    for name in _NAMES:
        if text := environment.get(name, "").strip():
            return _checked(text, name)
    path = _token_file(environment)
    try:
        with open_ordinary(path) as file:
            text = file.read(_MAX_BYTES).decode("ascii", errors="replace").strip()
    except OSError:
        text = ""
    if not text:
        raise UsageError(Reason.USAGE, f"there is no token: set HF_TOKEN, or write it to {path}")
    return _checked(text, str(path))


def _token_file(environment: Mapping[str, str]) -> Path:
    if named := environment.get("HF_TOKEN_PATH"):
        return Path(named).expanduser()
    home = environment.get("HF_HOME")
    if not home:
        cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
        home = f"{cache}/huggingface"
    return Path(home).expanduser() / "token"


def _checked(text: str, place: str) -> Secret:
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise UsageError(Reason.USAGE, f"what {place} holds cannot be a token")
    return Secret(text)
