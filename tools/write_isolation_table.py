"""Write docs/isolation-attempts.md: what a hostile runtime tries in each tier, and what succeeds.

    python tools/write_isolation_table.py

Runs every attempt of tests/support/hostile_attempts.py in each tier, with and without namespaces of
its own, as root and as an ordinary user; so it needs root and bubblewrap. It takes a minute.
`tests/security/test_hostile_attempts.py` makes the same attempts and compares.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
try:
    import hostile_attempts
    import runtime_parts
finally:
    sys.path.pop(0)

PAGE: Final = ROOT / "docs" / "isolation-attempts.md"
RUNNER: Final = ROOT / "tests" / "support" / "attempt_runner.py"
# The columns of the table, and how the runner is asked for each.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "bubblewrap": ("bubblewrap",),
    "Landlock and seccomp": ("landlock",),
    "the same, no namespaces to be had": ("landlock", "alone"),
    "no tier": ("none",),
    "no tier, no namespaces to be had": ("none", "alone"),
}
USERS: Final = {"root": 0, "an ordinary user": runtime_parts.ORDINARY_USER}
HEADINGS: Final = {
    "files": "Files",
    "processes": "Other processes",
    "sockets": "Sockets and networks",
    "keys": "Keys and shared memory",
    "kernel": "The kernel",
    "end": "Its end",
}
THROUGH: Final = "through"
_SECONDS: Final = 120


def attempt_all(column: str, user: int) -> dict[str, str]:
    """Return how each attempt ended; "through" if it had the effect that it was to have."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(RUNNER), *COLUMNS[column]]
        child = runtime_parts.run_as(
            user, arguments, Path(folder), stdout=subprocess.PIPE, text=True
        )
        if child is None:
            raise RuntimeError("no Python for this user")
        output, _ = child.communicate(timeout=_SECONDS)
    results: dict[str, str] = json.loads(output)
    return results


def cell(root: str, ordinary: str) -> str:
    """Return what the table says of one attempt in one column."""
    got = (root == THROUGH, ordinary == THROUGH)
    return {(False, False): "no", (True, True): "**yes**", (True, False): "as root"}.get(
        got, "as an ordinary user"
    )


def page(results: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Iterator[str]:
    """Yield the lines of the page; `results` are by column, user and attempt."""
    yield "# What a hostile runtime tried"
    yield ""
    yield "<!-- Written by tools/write_isolation_table.py, which makes the attempts. -->"
    yield ""
    yield "Each row was tried by a runtime that was taken over, in each tier, once as root and once"
    yield "as an ordinary user. *no*: it had no effect; **yes**: it got through, for both; else for"
    yield "whom. In the columns that say so the keeper was told that there are no namespaces. What"
    yield "got through in no column is nothing that this machine has. `docs/isolation.md` says what"
    yield "the tiers are; on a kernel older than this one Landlock stops less than here."
    yield ""
    yield f"Linux {platform.release().split('-')[0]}, {platform.machine()}."
    for group, heading in HEADINGS.items():
        yield ""
        yield f"## {heading}"
        yield ""
        yield "| the runtime | " + " | ".join(COLUMNS) + " |"
        yield "|---" * (len(COLUMNS) + 1) + "|"
        for name, of in hostile_attempts.GROUPS.items():
            if of == group:
                cells = (
                    cell(*(results[column][user][name] for user in USERS)) for column in COLUMNS
                )
                yield f"| {name[0].lower()}{name[1:]} | {' | '.join(cells)} |"
    yield ""
    total = len(hostile_attempts.GROUPS)
    for column in COLUMNS:
        got = {user: list(results[column][user].values()).count(THROUGH) for user in USERS}
        counts = ", ".join(f"{number} as {user}" for user, number in got.items())
        yield f"* {column}: of {total} attempts {counts} got through."


def read_page() -> dict[str, dict[str, str]]:
    """Return the table that is written down: by attempt and column."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        name, *cells = [part.strip() for part in line.strip("|").split(" | ")]
        if len(cells) == len(COLUMNS) and name != "the runtime":
            found[name[0].upper() + name[1:]] = dict(zip(COLUMNS, cells, strict=True))
    return found


def main() -> None:
    """Make the attempts and write the page."""
    if os.geteuid() != 0:
        sys.exit("needs root, to make the attempts as root too")
    results = {
        column: {user: attempt_all(column, number) for user, number in USERS.items()}
        for column in COLUMNS
    }
    PAGE.write_text("\n".join(page(results)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
