"""Write the distribution of a new plugin from the templates beside this file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from companion_core.errors import Reason, UsageError
from companion_core.system.lacks import lack_of

__all__ = ["write_plugin"]

_TEMPLATES: Final = Path(__file__).with_name("templates")
_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MAX_NAME: Final = 64


def write_plugin(kind: str, name: str, into: Path) -> tuple[Path, list[str]]:
    """Write a plugin that builds, passes the conformance kit and serves a stand-in.

    Args:
        kind: "runtime" or "keychain", a folder of templates.
        name: the plugin's name, which its entry point will have.
        into: the folder in which the distribution's folder is made.

    Returns:
        the distribution's folder, and the paths of its files relative to it.

    Raises:
        UsageError: `usage` for a name that no plugin can have, or a folder that exists.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        hint = "a plugin's name is lower-case letters and digits, with - or _ between them"
        raise UsageError(Reason.USAGE, hint)
    words = re.split(r"[-_]", name)
    package = f"companion_{kind}_{'_'.join(words)}"
    facts = {
        "name": name,
        "package": package,
        "distribution": package.replace("_", "-"),
        "variable": package.upper(),
        "class": "".join(word.capitalize() for word in words),
        "title": " ".join(word.capitalize() for word in words),
    }
    folder = into / facts["distribution"]
    if folder.exists():
        raise UsageError(Reason.USAGE, f"{folder} is there already")
    template = _TEMPLATES / kind
    written = []
    try:
        for source in sorted(template.rglob("*.tmpl")):
            path = source.relative_to(template).with_suffix("").as_posix()
            path = path.replace("package/", f"{package}/", 1)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            for key, value in facts.items():
                text = text.replace("{{" + key + "}}", value)
            (folder / path).write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise lack_of(error) from error
    return folder, written
