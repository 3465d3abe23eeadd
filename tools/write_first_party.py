"""Write the table of first-party plugins that the core recognises.

For each distribution under `plugins/` it records version, group, entry points and the digest
over the files of its package, which equals that of an installed wheel of the tree. Versions
recorded before stay. With `--check` nothing is written; the exit code is 1 if the table is out of
date.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from companion_core.plugin_host.inventory import GROUPS, code_files
from companion_core.plugin_host.rules import code_digest, is_bytecode_cache, normalized

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "companion_core" / "plugin_host" / "first_party.json"

Table = dict[str, dict[str, dict[str, Any]]]


def package_root(folder: Path, package: str) -> Path:
    """Return the folder that holds `package`: the project's own or its `src`."""
    for root in (folder, folder / "src"):
        if (root / package / "__init__.py").is_file():
            return root
    raise SystemExit(f"{folder.name}: no package {package}")


def release_of(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Return distribution, version and row of the plugin whose source tree is `folder`."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project.get("entry-points", {})
    groups = [group for group in GROUPS if group in declared]
    if len(groups) != 1:
        raise SystemExit(f"{folder.name}: exactly one of {', '.join(GROUPS)} is needed")
    entry_points = dict(sorted(declared[groups[0]].items()))
    paths: list[str] = []
    root = folder
    for package in sorted({module.partition(".")[0] for module in entry_points.values()}):
        root = package_root(folder, package)
        for file in sorted((root / package).rglob("*")):
            path = file.relative_to(root).as_posix()
            if file.is_file() and not is_bytecode_cache(path):
                paths.append(path)
    row = {
        "digest": code_digest(code_files(root, paths)),
        "entry_points": entry_points,
        "group": groups[0],
    }
    return normalized(project["name"]), project["version"], row


def table_of(plugins: Path, recorded: Table) -> Table:
    """Return the table for the trees under `plugins`, with the versions recorded before."""
    table: Table = {}
    for file in sorted(plugins.glob("*/pyproject.toml")):
        distribution, version, row = release_of(file.parent)
        versions = dict(recorded.get(distribution, {}).get("versions", {}))
        versions[version] = row
        table[distribution] = {"versions": dict(sorted(versions.items()))}
    return dict(sorted(table.items()))


def main() -> int:
    """Write or check the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    old = TABLE.read_text(encoding="utf-8") if TABLE.exists() else "{}"
    new = json.dumps(table_of(ROOT / "plugins", json.loads(old)), indent=2) + "\n"
    if check and new != old:
        print("first_party.json differs from plugins/: run tools/write_first_party.py")
        return 1
    if not check:
        TABLE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
