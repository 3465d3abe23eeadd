"""Run the known answers: every file of `reference/` and `stricter/`, one test per file.

A file's test reports all of its failing ids at once. Where both folders speak of one input,
the stricter answer wins. Cases whose input is a `scenario` text need real parts; the table
`scenarios.json` names the test that covers each.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.unit

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = sorted([*HERE.glob("reference/*.json"), *HERE.glob("stricter/*.json")])

# Reference answers that the adopted stricter rules replace, by tag.
SUPERSEDING_TAGS = frozenset({"superseded_by_stricter", "keep_on_device_noop"})

# Functions that have no translator yet. A translated function must leave this list, and a
# function that is in neither fails: the list can only shrink.
PENDING: frozenset[tuple[str, str]] = frozenset()


def _load_adapter() -> ModuleType:
    # Test folders are not packages: the adapter is found by its file.
    spec = importlib.util.spec_from_file_location("companion_vectors_adapter", HERE / "adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adapter = _load_adapter()


@functools.cache
def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def function_of(path: Path) -> tuple[str, str]:
    return load(path)["module"], load(path)["function"]


def is_scenario(case: dict[str, Any]) -> bool:
    return isinstance(case["input"], dict) and "scenario" in case["input"]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@functools.cache
def stricter_inputs() -> dict[tuple[str, str], frozenset[str]]:
    return {
        function_of(path): frozenset(canonical(case["input"]) for case in load(path)["cases"])
        for path in FILES
        if path.parent.name == "stricter"
    }


@functools.cache
def superseded() -> dict[str, frozenset[str]]:
    table = json.loads((HERE / "superseded.json").read_text(encoding="utf-8"))
    return {file: frozenset(row["id"] for row in rows) for file, rows in table.items()}


def cases_to_run(path: Path) -> Iterator[dict[str, Any]]:
    reference = path.parent.name == "reference"
    stricter = stricter_inputs().get(function_of(path), frozenset())
    replaced = superseded().get(name_of(path), frozenset())
    for case in load(path)["cases"]:
        if is_scenario(case) or case["id"] in replaced:
            continue
        if reference and (
            SUPERSEDING_TAGS.intersection(case.get("tags", ()))
            or canonical(case["input"]) in stricter
        ):
            continue
        yield case


def scalars_equal(expected: Any, actual: Any) -> bool:
    # JSON has no integer type: 5 equals 5.0, but True never equals 1.
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        return expected == actual or (math.isnan(expected) and math.isnan(actual))
    return type(expected) is type(actual) and expected == actual


# Members of an expectation that state a property instead of a value.
_ASSERTIONS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "timestamps_len_at_most": lambda most, actual: (
        len(actual.get("state", actual)["timestamps"]) <= most
    ),
    "query_must_have": lambda fields, actual: matches(fields, actual["query"]),
    "query_must_not_have": lambda names, actual: not set(names) & set(actual["query"]),
}


def matches(expected: Any, actual: Any, *, ignore_null: bool = False) -> bool:
    """Subset match on dicts, exact on everything else."""
    if isinstance(expected, dict):
        if expected.keys() == {"not"}:
            return not matches(expected["not"], actual)
        if not isinstance(actual, dict):
            return False
        if expected.get("raises") is True:
            return actual.get("raises") is True
        return all(
            _ASSERTIONS[key](item, actual)
            if key in _ASSERTIONS
            else key in actual and matches(item, actual[key], ignore_null=ignore_null)
            for key, item in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(actual, list | tuple)
            and len(expected) == len(actual)
            and all(
                (item is None and ignore_null) or matches(item, other, ignore_null=ignore_null)
                for item, other in zip(expected, actual, strict=True)
            )
        )
    return scalars_equal(expected, actual)


def passes(case: dict[str, Any], actual: Any, *, ignore_null: bool) -> bool:
    expected = adapter.decode(case["expect"])
    if "reason_depends_on_parser" in case.get("tags", ()):
        expected = {"ok": expected["ok"]}
    if matches(expected, actual, ignore_null=ignore_null):
        return True
    return "alternative" in case and matches(adapter.decode(case["alternative"]), actual)


RUNNABLE = [
    path
    for path in FILES
    if function_of(path) not in PENDING and not all(map(is_scenario, load(path)["cases"]))
]


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_known_answers(path: Path) -> None:
    module, function = function_of(path)
    assert adapter.known(module, function), f"no translator for {module}.{function}"
    # In this one file a null result means "do not compare" (README of the vectors).
    ignore_null = function == "integrity_accumulator"
    failures = []
    for case in cases_to_run(path):
        actual = adapter.call(module, function, case["input"])
        if not passes(case, actual, ignore_null=ignore_null):
            failures.append(f"{case['id']}: expected {case['expect']!r:.300}, got {actual!r:.300}")
    assert not failures, f"{len(failures)} known answers differ:\n" + "\n".join(failures)


def test_pending_functions_have_no_translator() -> None:
    done = sorted(pair for pair in PENDING if adapter.known(*pair))
    assert not done, f"translated, so take them out of PENDING: {done}"


def test_superseded_cases_exist_and_say_why() -> None:
    table = json.loads((HERE / "superseded.json").read_text(encoding="utf-8"))
    by_name = {name_of(path): path for path in FILES}
    for file, rows in table.items():
        assert file.startswith("reference/"), file
        ids = {case["id"] for case in load(by_name[file])["cases"]}
        for row in rows:
            assert row["id"] in ids, (file, row["id"])
            assert row["why"], (file, row["id"])


def _test_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_scenarios_name_tests_that_exist() -> None:
    table = json.loads((HERE / "scenarios.json").read_text(encoding="utf-8"))
    wanted = {
        path.stem: {case["id"] for case in load(path)["cases"] if is_scenario(case)}
        for path in FILES
        if any(map(is_scenario, load(path)["cases"]))
    }
    assert set(table) == set(wanted)
    for file, rows in table.items():
        assert set(rows) == wanted[file], file
        for scenario, test in rows.items():
            if test is None:  # open: no test covers it yet
                continue
            source, _, name = test.partition("::")
            assert (ROOT / source).is_file(), (file, scenario, source)
            assert name in _test_names(ROOT / source), (file, scenario, test)


def test_matching_tells_answers_apart() -> None:
    assert matches({"ok": False}, {"ok": False, "reason": "x"})
    assert not matches({"ok": False, "reason": "x"}, {"ok": False})
    assert not matches({"ok": True}, {"ok": 1})
    assert not matches({"n": 1}, {"n": True})
    assert matches(5, 5.0)
    assert matches(math.nan, math.nan)
    assert not matches("1", 1)
    assert not matches({"raises": True}, {"ok": False})
    assert not matches({"ok": False}, {"raises": True})
    assert not matches([1, 2], [1])
    assert not matches([None], [1])
    assert matches([None], [1], ignore_null=True)
    assert not matches({"not": "openrouter"}, "openrouter")
    assert matches({"not": "openrouter"}, "disabled")
