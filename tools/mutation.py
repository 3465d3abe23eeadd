"""Plant faults in the decision core and count those that its tests find.

python tools/mutation.py                  everything; writes the tables of docs/mutation.md
python tools/mutation.py oauth.token ...  these modules only; writes nothing

Two tools take turns: mutmut changes the functions, tools/mutants.py what mutmut leaves alone. A
fault is found when a test fails, or when it would run on without an end. Exit 1: a survivor that
tools/mutation.toml does not explain, a line there that no longer survives, or too low a score.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutant_runner import (
    KILLED,
    NO_PROGRAM,
    PACKAGE,
    ROOT,
    SURVIVED,
    TIMEOUT,
    Runner,
    path_of,
)
from mutants import Mutant, mutants_of, pattern_names

FOLDER = Path(*PACKAGE.split("."))
WORK = ROOT / "mutants"  # where mutmut works; its name is fixed
PAGE = ROOT / "docs" / "mutation.md"
BEGIN, END = "<!-- tables: written by `make mutation` -->", "<!-- end of the tables -->"
LEAST_SCORE = 95.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and what became of it; `name` is the change, at its place in `module`."""

    module: str
    name: str
    status: str
    by_mutmut: bool

    @property
    def title(self) -> str:
        """The name in reports and in tools/mutation.toml."""
        return f"{self.module}.{self.name}"


# --- functions: mutmut ----------------------------------------------------------------------

# Exit codes of a mutant's tests, as mutmut keeps them: a test failed, or the CPU limit struck.
_MUTMUT_KILLED = frozenset({1, 3})
_MUTMUT_TIMEOUT = frozenset({-24, 24, 36, 152, 255})


def run_mutmut(modules: Sequence[str], jobs: int) -> Iterator[Fault]:
    """Return mutmut's faults in `modules`, from a fresh run."""
    shutil.rmtree(WORK, ignore_errors=True)
    only = [f"{PACKAGE}.{module}.*" for module in modules]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *only]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return _read_mutmut(modules)


def _read_mutmut(modules: Sequence[str]) -> Iterator[Fault]:
    for module in modules:
        path = WORK / FOLDER.joinpath(*module.split(".")).with_suffix(".py")
        if not path.with_suffix(".py.meta").exists():
            continue
        results = json.loads(path.with_suffix(".py.meta").read_text("utf-8"))["exit_code_by_key"]
        versions = {
            node.name: ast.unparse(node).splitlines()
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef)
        }
        seen: dict[str, int] = {}
        for key, code in results.items():
            name = _change(versions, key.rpartition(".")[2])
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                name += f" #{seen[name]}"
            yield Fault(module, name, _mutmut_status(code), by_mutmut=True)


def _mutmut_status(code: int | None) -> str:
    if code in _MUTMUT_TIMEOUT:
        return TIMEOUT
    return KILLED if code in _MUTMUT_KILLED else SURVIVED


def _change(versions: Mapping[str, list[str]], name: str) -> str:
    """Return what a version of a function changes: its number would not outlive an edit."""
    stem = name.rpartition("__mutmut_")[0]
    place = stem.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    before = [line for line in versions[f"{stem}__mutmut_orig"] if "__mutmut_" not in line]
    after = [line for line in versions[name] if "__mutmut_" not in line]
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if kind != "equal":
            old, new = (" ".join(map(str.strip, x)) for x in (before[a:b], after[c:d]))
            parts.append(_shortest(old, new))
    return f"{place}: {'; '.join(parts)}"


def _shortest(old: str, new: str, around: int = 24) -> str:
    """Return the differing part of two lines with a little of what stands around it."""
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    before = old[max(0, start - around) : start]
    after = old[len(old) - end :][:around]
    return f"{before}[{old[start : len(old) - end]} -> {new[start : len(new) - end]}]{after}"


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


# --- the rest: tools/mutants.py -------------------------------------------------------------


def run_tables(modules: Sequence[str], jobs: int) -> Iterator[Fault]:
    """Yield the faults of tools/mutants.py in `modules`."""
    trees = {module: ast.parse(path_of(module).read_text("utf-8")) for module in _modules()}
    patterns = pattern_names(trees.values())
    runner = Runner()
    for module in modules:
        for mutant in mutants_of(trees[module], patterns):
            if len(runner) >= jobs:
                yield _fault(*runner.finish())
            runner.start(module, trees[module], mutant)
    while len(runner):
        yield _fault(*runner.finish())


def _fault(module: str, mutant: Mutant, status: str) -> Fault:
    return Fault(module, mutant.name, status, by_mutmut=False)


# --- the report -----------------------------------------------------------------------------


def _modules() -> list[str]:
    paths = sorted((ROOT / FOLDER).rglob("*.py"))
    parts = (path.relative_to(ROOT / FOLDER).with_suffix("").parts for path in paths)
    return [".".join(part) for part in parts if part[-1] != "__init__"]


def _explained() -> dict[str, tuple[str, bool]]:
    """Return the reviewed survivors: why each survives, and whether it changes nothing."""
    document = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text("utf-8"))
    return {
        title: (row["why"], kind == "equivalent")
        for kind, rows in document.items()
        for row in rows
        for title in row["faults"]
    }


def _score(faults: Sequence[Fault]) -> float:
    counted = [fault for fault in faults if fault.status != NO_PROGRAM]
    survived = sum(fault.status == SURVIVED for fault in counted)
    return 100.0 * (len(counted) - survived) / len(counted) if counted else 100.0


def _tables(faults: Sequence[Fault], explained: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    yield "| module | functions | found | tables | found | score | less equivalents |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for module in [*sorted({fault.module for fault in faults}), "all"]:
        counted = [
            fault
            for fault in faults
            if module in {fault.module, "all"} and fault.status != NO_PROGRAM
        ]
        cells = [f"`{module}`" if module != "all" else "**all**"]
        for by_mutmut in (True, False):
            part = [fault for fault in counted if fault.by_mutmut is by_mutmut]
            survived = sum(fault.status == SURVIVED for fault in part)
            cells += [str(len(part)), str(len(part) - survived)]
        able = [
            fault
            for fault in counted
            if fault.status != SURVIVED or not explained.get(fault.title, ("", False))[1]
        ]
        cells += [f"{_score(counted):.1f} %", f"{_score(able):.1f} %"]
        yield f"| {' | '.join(cells)} |"
    survivors = {fault.title for fault in faults if fault.status == SURVIVED}
    for heading, equivalent in (("Equivalent", True), ("Not told apart", False)):
        reasons = {
            why: [t for t, row in explained.items() if row == (why, equivalent) and t in survivors]
            for why, kind in explained.values()
            if kind is equivalent
        }
        yield from ("", f"### {heading}", "")
        for why, titles in reasons.items():
            if titles:
                yield from (f"{why}", "", *(f"* ``{title}``" for title in titles), "")


def main(arguments: Sequence[str]) -> int:
    """Run both tools, report, and judge the score and the list of survivors."""
    modules = list(arguments) or _modules()
    jobs = int(os.environ.get("MUTATION_JOBS") or os.cpu_count() or 1)
    os.chdir(ROOT)
    began = time.monotonic()
    faults = [*run_mutmut(modules, jobs), *run_tables(modules, jobs)]
    explained = _explained()
    lines = list(_tables(faults, explained))
    print("\n".join(lines))
    for status in (KILLED, TIMEOUT, SURVIVED, NO_PROGRAM):
        print(f"{status}: {sum(fault.status == status for fault in faults)}")
    print(f"{time.monotonic() - began:.0f} s on {jobs} processes")

    survivors = {fault.title for fault in faults if fault.status == SURVIVED}
    known = {title for title in explained if any(title.startswith(f"{m}.") for m in modules)}
    for title in sorted(survivors - known):
        print(f"unexplained survivor: {title}")
    for title in sorted(known - survivors):
        print(f"explained, but no survivor: {title}")
    if not arguments:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = "\n".join([f"{before}{BEGIN}", "", *lines, f"{END}{after}"])
        PAGE.write_text(text, encoding="utf-8")
    return int(survivors != known or _score(faults) < LEAST_SCORE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
