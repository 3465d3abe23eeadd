"""Plant faults in the decision core and count those that its tests find.

python tools/mutation.py                  every module
python tools/mutation.py oauth.token ...  these modules; the others keep their recorded result
python tools/mutation.py --report         no module; judge the recorded results

Two tools take turns: mutmut changes the functions, tools/mutants.py everything that mutmut leaves
alone. A fault is found if a test fails or does not end. The result is recorded in
docs/mutation.json and written into docs/mutation.md. The exit code is 1 for a survivor that
tools/mutation.toml does not explain, an entry there that no longer survives, a module without a
result, or too low a score.
"""

from __future__ import annotations

import ast
import datetime as dt
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutant_runner import KILLED, NO_PROGRAM, PACKAGE, ROOT, SURVIVED, TIMEOUT, Runner, path_of
from mutants import Mutant, mutants_of, pattern_names

FOLDER = Path(*PACKAGE.split("."))
WORK = ROOT / "mutants"  # where mutmut works; its name is fixed
PAGE = ROOT / "docs" / "mutation.md"
BEGIN, END = "<!-- tables: written by `make mutation` -->", "<!-- end of the tables -->"
LEAST_SCORE = 95.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and its status; `name` is its place in `module` and the change."""

    module: str
    name: str
    status: str
    by_mutmut: bool

    @property
    def title(self) -> str:
        """The name in reports and in tools/mutation.toml."""
        return f"{self.module}.{self.name}"


# --- functions: mutmut ----------------------------------------------------------------------

# Exit codes of a mutant's tests, as mutmut records them: a test failed; the CPU limit was reached.
_MUTMUT_KILLED = frozenset({1, 3})
_MUTMUT_TIMEOUT = frozenset({-24, 24, 36, 152, 255})


def run_mutmut(modules: Sequence[str], jobs: int) -> Iterator[Fault]:
    """Return mutmut's faults in `modules`, from a fresh run."""
    shutil.rmtree(WORK, ignore_errors=True)
    only = [f"{PACKAGE}.{module}.*" for module in modules]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *only]
    # Its progress is shown on a terminal only.
    sink = None if sys.stdout.isatty() else subprocess.DEVNULL
    subprocess.run(command, cwd=ROOT, check=True, stdout=sink)
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
    """Return what a version of a function changes; mutmut's number would not survive an edit."""
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
    """Return the differing part of two lines with a little text around it."""
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    before = old[max(0, start - around) : start]
    after = old[len(old) - end :][:around]
    return f"{before}[{old[start : len(old) - end]} -> {new[start : len(new) - end]}]{after}"


def _common(a: str, b: str) -> int:
    """Return the length of the longest common beginning of two texts."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


# --- the rest: tools/mutants.py -------------------------------------------------------------


def run_tables(modules: Sequence[str], jobs: int) -> Iterator[Fault]:
    """Yield the faults of tools/mutants.py in `modules`."""
    trees = {module: ast.parse(path_of(module).read_text("utf-8")) for module in _modules()}
    patterns = pattern_names(trees.values())
    runner = Runner()
    planned = [(module, each) for module in modules for each in mutants_of(trees[module], patterns)]
    for number, (module, mutant) in enumerate(planned, 1):
        if sys.stdout.isatty():
            print(f"\r{number}/{len(planned)} in tables", end="", flush=True)
        if len(runner) >= jobs:
            yield _fault(*runner.finish())
        runner.start(module, trees[module], mutant)
    while len(runner):
        yield _fault(*runner.finish())


def _fault(module: str, mutant: Mutant, status: str) -> Fault:
    return Fault(module, mutant.name, status, by_mutmut=False)


# --- the record -----------------------------------------------------------------------------

RECORD = ROOT / "docs" / "mutation.json"
Row = dict[str, Any]  # of one module: when, how many faults of each tool, which survived


def _modules() -> list[str]:
    paths = sorted((ROOT / FOLDER).rglob("*.py"))
    parts = (path.relative_to(ROOT / FOLDER).with_suffix("").parts for path in paths)
    return [".".join(part) for part in parts if part[-1] != "__init__"]


def read_record() -> dict[str, Row]:
    """Return the recorded rows of the modules that still exist."""
    rows = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    return {module: rows[module] for module in _modules() if module in rows}


def add_to_record(modules: Sequence[str], faults: Sequence[Fault]) -> None:
    """Replace the rows of `modules` with the results of their faults."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    record = read_record()
    for module in modules:
        counted = [f for f in faults if f.module == module and f.status != NO_PROGRAM]
        record[module] = {
            "judged": today,
            "functions": _made_and_found(f for f in counted if f.by_mutmut),
            "tables": _made_and_found(f for f in counted if not f.by_mutmut),
            "survivors": sorted(f.title for f in counted if f.status == SURVIVED),
        }
    text = json.dumps(dict(sorted(record.items())), indent=1)
    RECORD.write_text(f"{text}\n", encoding="utf-8")


def _made_and_found(faults: Iterable[Fault]) -> list[int]:
    survived = [fault.status == SURVIVED for fault in faults]
    return [len(survived), survived.count(False)]


# --- the report -----------------------------------------------------------------------------


def _explained() -> dict[str, tuple[str, bool]]:
    """Return the reviewed survivors: why each survives, and whether it changes nothing."""
    document = tomllib.loads((ROOT / "tools" / "mutation.toml").read_text("utf-8"))
    return {
        title: (row["why"], kind == "equivalent")
        for kind, rows in document.items()
        for row in rows
        for title in row["faults"]
    }


def _percent(made: int, found: int) -> float:
    return 100.0 * found / made if made else 100.0


def _tables(record: Mapping[str, Row], explained: Mapping[str, tuple[str, bool]]) -> Iterator[str]:
    yield "| module | judged | functions | found | tables | found | score | less equivalents |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for module in (*record, None):
        rows = list(record.values()) if module is None else [record[module]]
        functions, tables = (
            [sum(row[tool][place] for row in rows) for place in (0, 1)]
            for tool in ("functions", "tables")
        )
        made, found = functions[0] + tables[0], functions[1] + tables[1]
        same = sum(explained.get(t, ("", False))[1] for row in rows for t in row["survivors"])
        counts = (*functions, *tables)
        scores = (_percent(made, found), _percent(made - same, found))
        cells = (
            "**all**" if module is None else f"`{module}`",
            "" if module is None else rows[0]["judged"],
            *map(str, counts),
            *(f"{score:.1f} %" for score in scores),
        )
        yield f"| {' | '.join(cells)} |"
    survivors = {title for row in record.values() for title in row["survivors"]}
    for heading, equivalent in (("Equivalent", True), ("Not told apart", False)):
        kinds = {t: why for t, (why, kind) in explained.items() if kind is equivalent}
        if not survivors.isdisjoint(kinds):
            yield from ("", f"### {heading}", "")
        for why in dict.fromkeys(kinds.values()):
            titles = [title for title in kinds if kinds[title] == why and title in survivors]
            if titles:
                yield from (why, "", *(f"* ``{title}``" for title in titles), "")


def _complaints(record: Mapping[str, Row], explained: Iterable[str]) -> Iterator[str]:
    for module in _modules():
        if module not in record:
            yield f"never judged: {module}"
    survivors = {title for row in record.values() for title in row["survivors"]}
    for title in sorted(survivors.difference(explained)):
        yield f"unexplained survivor: {title}"
    for title in sorted(set(explained) - survivors):
        yield f"explained, but no survivor: {title}"
    made, found = (
        sum(row[tool][place] for row in record.values() for tool in ("functions", "tables"))
        for place in (0, 1)
    )
    print(f"{found} of {made} faults found: {_percent(made, found):.1f} %")
    if _percent(made, found) < LEAST_SCORE:
        yield f"fewer than {LEAST_SCORE} % of the faults are found"


def report() -> int:
    """Write the page from the record; return 1 if the record is not acceptable."""
    record, explained = read_record(), _explained()
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = "\n".join([f"{before}{BEGIN}", "", *_tables(record, explained), f"{END}{after}"])
    PAGE.write_text(text, encoding="utf-8")
    complaints = list(_complaints(record, explained))
    print("\n".join(complaints))
    return int(bool(complaints))


def main(arguments: Sequence[str]) -> int:
    """Run both tools on the modules, record what became of the faults, and report."""
    os.chdir(ROOT)
    if list(arguments) == ["--report"]:
        return report()
    modules = list(arguments) or _modules()
    if unknown := set(modules) - set(_modules()):
        print(f"no such module: {', '.join(sorted(unknown))}")
        return 2
    jobs = int(os.environ.get("MUTATION_JOBS") or os.cpu_count() or 1)
    began = time.monotonic()
    faults = [*run_mutmut(modules, jobs), *run_tables(modules, jobs)]
    for status in (KILLED, TIMEOUT, SURVIVED, NO_PROGRAM):
        print(f"{status}: {sum(fault.status == status for fault in faults)}")
    print(f"{time.monotonic() - began:.0f} s on {jobs} processes")
    add_to_record(modules, faults)
    return report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
