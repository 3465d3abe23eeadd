"""Writes the archive of a support request: the report without personal data.

No secret, token, prompt, digest, credential or home path goes in (I-15). The files are plain
JSON and text, so that the person can read them before sending the archive.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Final

from companion_core import __version__
from companion_core.control.client import ask
from companion_core.doctor.checks import Situation
from companion_core.doctor.findings import Section
from companion_core.doctor.redaction import Redactor
from companion_core.doctor.report import Report
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, UsageError

__all__ = ["new_bundle", "write_bundle"]

LOG_LINES: Final = 200
_TAIL_BYTES: Final = 256 * 1024
_DISTRIBUTIONS: Final = (
    "pluggy",
    "click",
    "cryptography",
    "psutil",
    "nvidia-ml-py",
    "uvloop",
    "httptools",
)
_INVENTORY: Final = (
    "name",
    "side",
    "distribution",
    "version",
    "state",
    "reason",
    "editable",
    "core",
    "hooks",
    "selected_for",
)
_NOTE: Final = """What `companion doctor --bundle` gathered for a support request.

Secrets, digests, credentials in addresses and the names of your folders were removed. Of the
logs, only lines that begin like those of a known program were kept. Read it before you send
it: it is plain text.
"""


@contextlib.contextmanager
def new_bundle(path: Path) -> Iterator[BinaryIO]:
    """Create the archive's file for its owner alone; an exception in the context removes it.

    Raises:
        UsageError: `usage` if something has that name already.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    except FileExistsError as error:
        raise UsageError(Reason.USAGE, f"{path} exists already; name another file") from error
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, str(path)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except OSError as error:
        path.unlink(missing_ok=True)
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, str(path)) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_bundle(file: BinaryIO, report: Report, situation: Situation) -> None:
    """Write the archive.

    Args:
        file: from `new_bundle`.
        report: what was found.
        situation: what the checks looked at.
    """
    redactor = _redactor(situation)
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in _files(report, situation, redactor):
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"companion-doctor/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))


def _redactor(situation: Situation) -> Redactor:
    """Return a redactor for the session's token and the person's folders."""
    secrets = []
    if situation.running is not None:
        with contextlib.suppress(CompanionError):
            secrets.append(str(ask(situation.running, situation.egress, "session")["token"]))
    places = [(str(situation.paths.root), "[state]")]
    with contextlib.suppress(CompanionError):
        places.append((str(situation.config_file().absolute().parent), "[configuration]"))
    homes = [situation.environ.get(name, "") for name in ("HOME", "USERPROFILE")]
    with contextlib.suppress(RuntimeError):
        homes.append(str(Path.home()))
    places += [(home, "[home]") for home in homes]
    return Redactor.of(secrets=secrets, places=places)


def _files(report: Report, situation: Situation, redactor: Redactor) -> Iterator[tuple[str, str]]:
    yield "README.txt", _NOTE
    yield "report.json", _json(redactor.document(report.document()))
    yield "versions.json", _json(_versions())
    yield "plugins.json", _json(redactor.document(_inventory(situation)))
    yield "configuration.json", _json(redactor.document(_configuration(report)))
    for path in _logs(situation.paths.logs):
        with contextlib.suppress(OSError):
            lines = [redactor.log_line(line, path.name) for line in _tail(path)]
            safe = [line for line in lines if line is not None]
            yield f"logs/{path.name}", "".join(f"{line}\n" for line in safe)


def _logs(folder: Path) -> list[Path]:
    try:
        return [
            path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()
        ]
    except OSError:
        return []


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _versions() -> dict[str, str]:
    versions = {"companion-core": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"system": platform.system(), "release": platform.release()}


def _inventory(situation: Situation) -> list[dict[str, Any]]:
    documents = situation.plugins.documents if situation.plugins is not None else ()
    return [{key: document[key] for key in _INVENTORY} for document in documents]


def _configuration(report: Report) -> dict[str, Any]:
    return {
        row.title: {"value": row.finding.value, "source": row.finding.source}
        for row in report.rows
        if row.section is Section.CONFIGURATION and row.finding.source is not None
    }


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()[-LOG_LINES:]
