"""Find installed plugins without importing any of them.

Reads entry points, the installer's RECORD and the files it lists. An unreadable part is
reported as such; `rules.judge_found` decides what that means.
"""

from __future__ import annotations

import configparser
import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from companion_core.plugin_host.rules import (
    CodeFile,
    FoundPlugin,
    code_digest,
    is_bytecode_cache,
    is_litter,
    may_be_loaded,
    modules_of,
    normalized,
    sourceless,
)
from companion_core.plugin_host.scan import GROUPS, declaring_distributions

if TYPE_CHECKING:
    from importlib.metadata import Distribution, PackageMetadata

__all__ = ["GROUPS", "code_files", "find_plugins", "owner_of", "unlisted_code"]

_FACT_LENGTH = 100


class _EntryPointsFile(configparser.RawConfigParser):
    """Reads `entry_points.txt`, where only "=" separates and names keep their case."""

    def __init__(self) -> None:
        super().__init__(delimiters=("=",), comment_prefixes=("#",))

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def find_plugins(path: Sequence[str] | None = None) -> tuple[FoundPlugin, ...]:
    """Return every entry point of both groups, sorted by name; import nothing.

    A distribution that cannot be read is left out; the others are found.

    Args:
        path: the folders to search, in import order; None is `sys.path`.
    """
    search = list(sys.path if path is None else path)
    seen: set[tuple[str, str, str]] = set()
    found: list[FoundPlugin] = []
    for distribution in declaring_distributions(search):
        try:
            declared = _declared(distribution)
            if not declared:
                continue
            name, version = _fact(distribution, "Name"), _fact(distribution, "Version")
            root = Path(os.path.realpath(str(distribution.locate_file(""))))
            # The path may list one folder twice (lib and lib64): that is one claim. Two copies
            # in different folders are two claims.
            identity = (str(root), normalized(name), version)
            if identity in seen:
                continue
            seen.add(identity)
            found.extend(
                _plugins(
                    distribution,
                    declared,
                    name=name,
                    version=version,
                    root=root,
                    search=search,
                )
            )
        except Exception:  # noqa: BLE001, S112 - an unreadable distribution is never imported
            continue
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.group, plugin.distribution)))


def owner_of(module: str, path: Sequence[str] | None = None) -> str:
    """Say for a person which distribution installed `module`.

    It reads every distribution, so it is called for a refusal only.

    Args:
        module: a dotted name; its top-level package decides.
        path: the folders to search; None is `sys.path`.
    """
    from importlib import metadata  # noqa: PLC0415 - slow to import; only a refusal needs it

    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return "Python"
    for distribution in metadata.distributions(path=list(sys.path if path is None else path)):
        try:
            files = distribution.files or ()
            if any(file.parts[0] in {top, f"{top}.py"} for file in files):
                return f"{_fact(distribution, 'Name')} {_fact(distribution, 'Version')}"
        except Exception:  # noqa: BLE001, S112 - an unreadable distribution owns nothing
            continue
    return "nobody"


def code_files(root: Path, paths: Sequence[str]) -> tuple[CodeFile, ...]:
    """Hash the present content of the files at `paths` below `root`.

    Raises:
        OSError: one of them is missing, unreadable or not an ordinary file.
    """
    files = []
    for path in paths:
        if not (root / path).is_file():  # opening a named pipe would wait forever
            raise FileNotFoundError
        with (root / path).open("rb") as file:
            files.append(CodeFile(path, hashlib.file_digest(file, "sha256").hexdigest()))
    return tuple(files)


def _declared(distribution: Distribution) -> list[tuple[str, str, str]]:
    """Return (group, name, module) of our groups.

    A file that cannot be parsed yields one row: the distribution's name and no module.
    """
    text = distribution.read_text("entry_points.txt") or ""
    if not any(group in text for group in GROUPS):
        return []
    parser = _EntryPointsFile()
    try:
        parser.read_string(text)
    except configparser.Error:
        group = next(group for group in GROUPS if group in text)
        return [(group, _fact(distribution, "Name"), "")]
    return [
        (group, _shown(name), _shown(module))
        for group in GROUPS
        if parser.has_section(group)
        for name, module in parser.items(group)
    ]


def _plugins(
    distribution: Distribution,
    declared: list[tuple[str, str, str]],
    *,
    name: str,
    version: str,
    root: Path,
    search: list[str],
) -> Iterator[FoundPlugin]:
    site = str(root)
    editable = _is_editable(distribution)
    if editable:
        root, paths = _linked_tree(distribution, declared, root)
    else:
        paths = tuple(sorted(_listed(distribution))) if root.is_dir() else ()
    missing: tuple[str, ...] = ()
    try:
        files = code_files(root, paths)
    except OSError:
        files = ()
        missing = tuple(path for path in paths if not _is_readable(root / path))
    strays = (*filter(sourceless, paths), *unlisted_code(root, set(paths)))
    intact = not strays and len(files) == len(paths)
    modules = modules_of(paths)
    for group, plugin, module in declared:
        yield FoundPlugin(
            name=plugin,
            group=group,
            module=module,
            distribution=name,
            version=version,
            root=str(root) if root.is_dir() else "",
            editable=editable,
            digest=code_digest(files) if files else None,
            files=files,
            modules=modules,
            intact=intact,
            missing=missing,
            strays=strays,
            site=site,
            first_on_path=_first_on_path(module.partition(".")[0], modules, root, search),
        )


def _fact(distribution: Distribution, key: str) -> str:
    facts = cast("PackageMetadata | None", distribution.metadata)
    return _shown(facts[key]) if facts is not None and key in facts else "unknown"


def _shown(text: str) -> str:
    """Return printable ASCII of bounded length: foreign text reaches terminals."""
    return text.encode("unicode_escape").decode("ascii")[:_FACT_LENGTH]


def _listed(distribution: Distribution) -> set[str]:
    """Return the code files that RECORD lists; empty without a readable RECORD."""
    try:
        text = distribution.read_text("RECORD")
        rows = list(csv.reader(text.splitlines())) if text else []
    except (ValueError, csv.Error):
        return set()
    listed = set()
    for row in rows:
        path = PurePosixPath(row[0] if row else "")
        # Scripts and data lie outside the import folder and name this machine's interpreter.
        if not path.parts or path.is_absolute() or ".." in path.parts:
            continue
        if path.parts[0].endswith(".dist-info") or is_bytecode_cache(str(path)):
            continue
        listed.add(str(path))
    return listed


def _is_readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def unlisted_code(root: Path, listed: set[str]) -> tuple[str, ...]:
    """Return the code in the folders of the distribution that RECORD does not list, sorted.

    A link to a folder counts: what it leads to could be imported.
    """
    tops = {PurePosixPath(path).parts[0] for path in listed if "/" in path}
    unlisted = []
    for top in tops:
        for folder, folders, names in os.walk(root / top):
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            code = [name for name in names if may_be_loaded(name)]
            for name in [*code, *links]:
                path = (Path(folder) / name).relative_to(root).as_posix()
                if path not in listed and not is_bytecode_cache(path):
                    unlisted.append(path)
    return tuple(sorted(unlisted))


def _origin(distribution: Distribution) -> dict[str, object]:
    """Return where the distribution was installed from (PEP 610), {} when it does not say."""
    text = distribution.read_text("direct_url.json")
    try:
        origin = json.loads(text) if text else None
    except ValueError:
        return {}  # not proved to be editable, so its files must be listed and known
    return origin if isinstance(origin, dict) else {}


def _is_editable(distribution: Distribution) -> bool:
    folder = _origin(distribution).get("dir_info")
    return isinstance(folder, dict) and folder.get("editable") is True


def _linked_tree(
    distribution: Distribution, declared: list[tuple[str, str, str]], root: Path
) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that an editable install leads to, and the code files in it.

    RECORD lists only the link, so every file of the packages that the entry points name
    counts as the plugin's code.
    """
    url = str(_origin(distribution).get("url", ""))
    if not url.startswith("file://"):
        return root, ()
    from urllib.request import url2pathname  # noqa: PLC0415 - slow; only editable installs need it

    project = Path(os.path.realpath(url2pathname(url.removeprefix("file://"))))
    tops = {module.partition(".")[0] for _, _, module in declared}
    for tree in (project / "src", project):
        if tops and all((tree / top / "__init__.py").is_file() for top in tops):
            files = [file for top in tops for file in (tree / top).rglob("*") if file.is_file()]
            paths = {file.relative_to(tree).as_posix() for file in files}
            left = {path for path in paths if is_bytecode_cache(path) or is_litter(path)}
            return tree, tuple(sorted(paths - left))
    return root, ()


def _first_on_path(top: str, modules: dict[str, str], root: Path, search: list[str]) -> bool:
    """Tell whether an import of `top` would load the distribution's own file."""
    if top not in modules or top in sys.stdlib_module_names:
        return False
    PathFinder.invalidate_caches()
    spec = PathFinder.find_spec(top, search)
    if spec is None or spec.origin is None:
        return False
    return os.path.realpath(spec.origin) == os.path.realpath(root / modules[top])
