"""Rules for this file: which of the installed plugins may be imported, and why the others not.

Takes what the inventory read and the table of first-party releases. It imports no I/O and
never trusts a name: a plugin is recognised by distribution, version, entry point and digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from companion_core.errors import Reason
from companion_core.plugin_host.pinned_imports import module_name

__all__ = [
    "PLUGIN_NAME",
    "CodeFile",
    "FirstParty",
    "FoundPlugin",
    "Release",
    "TrustRecord",
    "changes_since",
    "code_digest",
    "code_listing",
    "damage_of",
    "is_bytecode_cache",
    "is_litter",
    "judge_found",
    "may_be_loaded",
    "modules_of",
    "normalized",
    "parse_first_party",
    "parse_narrow",
    "record_of",
    "sourceless",
]

PLUGIN_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""What the name of a plugin looks like."""


# Python's suffixes, and those of libraries that extension modules load from beside themselves.
_LOADED: Final = re.compile(r"\.(py|pyw|pyc|pyo|pyd|dll|dylib|so(\.[0-9]+)*)$")
_LITTER: Final = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|.*~|\..*\.sw[a-p]|.*\.pyc\.[0-9]+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file of a distribution: `path` relative to its folder, with "/"; `sha256` in hex."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPlugin:
    """One entry point as installed, nothing of it imported.

    Attributes:
        name: the entry point's name, which is also the provider's.
        group: the entry-point group, which carries the side and the API version.
        module: the module that the entry point names; checked against `modules`.
        root: the folder that the files are relative to; "" without a folder.
        site: the folder of its metadata, resolved; that of a linked tree is where the link is.
        editable: installed as a link to a source tree.
        digest: over the code files; None when the distribution does not list them.
        modules: dotted name to path, of every module among the code files.
        intact: every listed file exists, and the plugin's folders hold no other code.
        missing: the listed files that are not there, or are no files that can be read.
        strays: code in the plugin's folders that is not listed, or that has no source.
        first_on_path: importing the top-level package would find the distribution's own file.
    """

    name: str
    group: str
    module: str
    distribution: str
    version: str
    root: str
    editable: bool
    digest: str | None
    files: tuple[CodeFile, ...]
    modules: Mapping[str, str]
    intact: bool
    first_on_path: bool
    missing: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A first-party release that the core recognises; `entry_points` is name to module."""

    digest: str
    group: str
    entry_points: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord:
    """What the person trusted: one plugin, exactly as it was then.

    Attributes:
        files: path to SHA-256, so that a later change can be named by its file.
        editable: trusted as a link to a source tree.
    """

    name: str
    group: str
    module: str
    distribution: str
    version: str
    digest: str
    editable: bool
    files: Mapping[str, str]


FirstParty = Mapping[str, Mapping[str, Release]]
"""Normalized distribution name to version to release."""


def normalized(distribution: str) -> str:
    """Return the name by which package indexes compare distributions (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def code_digest(files: Iterable[CodeFile]) -> str:
    """Return the SHA-256 (hex) over the sorted paths and contents of a plugin's code.

    Installer metadata is left out, so an equal rebuild has an equal digest.
    """
    return hashlib.sha256(code_listing(files)).hexdigest()


def code_listing(files: Iterable[CodeFile]) -> bytes:
    """Return what `code_digest` is taken of: a line of path, NUL and SHA-256 for each file."""
    rows = sorted(files, key=lambda file: file.path)
    return b"".join(f"{file.path}\0{file.sha256}\n".encode() for file in rows)


def is_bytecode_cache(path: str) -> bool:
    """Tell whether `path` is a cached `.pyc`, which the host neither hashes nor imports."""
    parts = PurePosixPath(path).parts
    return path.endswith(".pyc") and len(parts) > 1 and parts[-2] == "__pycache__"


def may_be_loaded(path: str) -> bool:
    """Tell whether Python or the system's loader could take the file at `path` for code.

    Nothing else is: what a file manager, an editor or an interrupted Python leaves in a folder
    (`.DS_Store`, `plugin.py~`, `plugin.cpython-311.pyc.140231`) is never imported.
    """
    return _LOADED.search(path.lower()) is not None


def is_litter(path: str) -> bool:
    """Tell whether other programs leave files of this name in any folder that they show or edit."""
    return _LITTER.fullmatch(PurePosixPath(path).name) is not None


def sourceless(path: str) -> bool:
    """Tell whether `path` is byte code that Python would import without any source."""
    return path.endswith((".pyc", ".pyo")) and not is_bytecode_cache(path)


def modules_of(paths: Iterable[str]) -> dict[str, str]:
    """Map the dotted name of every module among `paths` to its path."""
    names = ((module_name(path), path) for path in paths)
    return {name: path for name, path in names if name is not None}


def parse_first_party(text: str) -> FirstParty:
    """Read the table that `tools/write_first_party.py` writes."""
    return {
        distribution: {
            version: Release(
                digest=row["digest"], group=row["group"], entry_points=dict(row["entry_points"])
            )
            for version, row in entry["versions"].items()
        }
        for distribution, entry in json.loads(text).items()
    }


def parse_narrow(text: str | None) -> frozenset[str] | None:
    """Read COMPANION_PLUGINS: names separated by commas; None allows all, "" allows none."""
    if text is None:
        return None
    return frozenset(name.strip() for name in text.split(",")) - {""}


def record_of(plugin: FoundPlugin) -> TrustRecord:
    """Return the record that is stored when the person trusts `plugin` in its present state."""
    return TrustRecord(
        name=plugin.name,
        group=plugin.group,
        module=plugin.module,
        distribution=normalized(plugin.distribution),
        version=plugin.version,
        digest=plugin.digest or "",
        editable=plugin.editable,
        files={file.path: file.sha256 for file in plugin.files},
    )


def changes_since(record: TrustRecord, plugin: FoundPlugin) -> tuple[str, ...]:
    """Name each fact and file that differs from `record`; empty when nothing differs."""
    now = record_of(plugin)
    facts = [
        f"{fact}: {getattr(record, fact)} -> {getattr(now, fact)}"
        for fact in ("distribution", "version", "group", "module", "editable")
        if getattr(record, fact) != getattr(now, fact)
    ]
    files = [
        f"{_kind_of_change(path, record.files, now.files)}: {_printable(path)}"
        for path in sorted({*record.files, *now.files})
        if record.files.get(path) != now.files.get(path)
    ]
    return (*facts, *files)


def damage_of(plugin: FoundPlugin) -> tuple[str, ...]:
    """Name each file by which `plugin` is not what its installer listed; () if it is intact."""
    return (
        *(f"missing: {_printable(path)}" for path in plugin.missing),
        *(f"not of the distribution: {_printable(path)}" for path in plugin.strays),
    )


def _printable(path: str) -> str:
    return path.encode("unicode_escape").decode("ascii")


def _kind_of_change(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if path not in old:
        return "added"
    return "removed" if path not in new else "changed"


def judge_found(
    plugins: Sequence[FoundPlugin],
    *,
    first_party: FirstParty,
    trusted: Mapping[str, TrustRecord] = MappingProxyType({}),
    reserved: Collection[str] = (),
    narrow: Collection[str] | None = None,
) -> tuple[Reason, ...]:
    """Return one reason per plugin; only `Reason.OK` may be imported.

    Args:
        plugins: every plugin that was found, of both sides.
        first_party: the releases that the core recognises.
        trusted: what the person vouched for, by the plugin's name.
        reserved: names of the core's own plugins, which no installed plugin may claim.
        narrow: names that may load; None allows all. It never adds trust.
    """
    names = Counter(plugin.name for plugin in plugins)
    groups: dict[str, set[str]] = {}
    for plugin in plugins:
        groups.setdefault(normalized(plugin.distribution), set()).add(plugin.group)
    return tuple(
        _judge(
            plugin,
            duplicate=names[plugin.name] > 1 or plugin.name in reserved,
            both_sides=len(groups[normalized(plugin.distribution)]) > 1,
            versions=first_party.get(normalized(plugin.distribution)),
            record=trusted.get(plugin.name),
            narrow=narrow,
        )
        for plugin in plugins
    )


def _judge(
    plugin: FoundPlugin,
    *,
    duplicate: bool,
    both_sides: bool,
    versions: Mapping[str, Release] | None,
    record: TrustRecord | None,
    narrow: Collection[str] | None,
) -> Reason:
    if duplicate:
        return Reason.PLUGIN_DUPLICATE
    if both_sides:
        return Reason.PLUGIN_BOTH_SIDES
    if plugin.editable and not (record is not None and record.editable):
        return Reason.PLUGIN_EDITABLE
    top = plugin.module.partition(".")[0]
    if plugin.module not in plugin.modules or top not in plugin.modules:
        return Reason.PLUGIN_FOREIGN_MODULE
    if not plugin.intact:
        return Reason.PLUGIN_CHANGED
    if not plugin.first_on_path:
        return Reason.PLUGIN_SHADOWED
    if (versions is None and record is None) or not PLUGIN_NAME.fullmatch(plugin.name):
        return Reason.PLUGIN_UNTRUSTED
    shipped = versions is not None and _is_release(plugin, versions.get(plugin.version))
    vouched_for = record is not None and record_of(plugin) == record
    if plugin.digest is None or not (shipped or vouched_for):
        return Reason.PLUGIN_CHANGED
    if narrow is not None and plugin.name not in narrow:
        return Reason.PLUGIN_NARROWED
    return Reason.OK


def _is_release(plugin: FoundPlugin, release: Release | None) -> bool:
    return (
        release is not None
        and plugin.digest == release.digest
        and plugin.group == release.group
        and release.entry_points.get(plugin.name) == plugin.module
    )
