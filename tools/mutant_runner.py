"""Rules for this file: judge each faulty module in a process of its own.

The parent loads every module that the tests load, then forgets those of this repository. Each
fault gets a fork that imports the faulty module and runs the tests that load it, the likeliest to
fail first.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
from mutants import Mutant

__all__ = ["KILLED", "NO_PROGRAM", "PACKAGE", "ROOT", "SURVIVED", "TIMEOUT", "Runner", "path_of"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "companion_core.decisions"
TESTS = (ROOT / "tests" / "unit" / "decisions", ROOT / "tests" / "vectors")
SURVIVED, KILLED, TIMEOUT, NO_PROGRAM = "survived", "killed", "timeout", "no program"

_OURS = tuple(ROOT / folder for folder in ("companion_core", "tests", "tools"))
_SECONDS = 120  # of CPU for one fault; all tests together need a quarter of that
_BYTES = 8 * 2**30
_ANSWER = 1024  # characters: it must fit into the pipe, which is read after the process has ended
_NOTICED = frozenset({1, 2, 3})  # pytest: a test failed, a file could not be loaded, a fault


def path_of(module: str) -> Path:
    """Return the file of a module of the decision core, named without the package."""
    return ROOT.joinpath(*PACKAGE.split("."), *module.split(".")).with_suffix(".py")


class Runner:
    """Judges faults; learns which test finds those of a place, and which file those of a kind."""

    def __init__(self) -> None:
        self._finders: dict[str, str] = {}
        self._running: dict[int, tuple[int, str, Mutant]] = {}
        _warm_up()
        paths = [path for folder in TESTS for path in folder.rglob("test_*.py")]
        tried = sorted((_try_without_fault(path) for path in paths), key=lambda each: each.seconds)
        self._files = [each for each in tried if each.modules]

    def __len__(self) -> int:
        return len(self._running)

    def start(self, module: str, tree: ast.Module, mutant: Mutant) -> None:
        """Begin to judge one fault of `module`, whose tree is `tree`."""
        tests = self._tests_for(module, mutant)
        pid, reader = _fork(lambda: _judge(module, tree, mutant, tests))
        self._running[pid] = reader, module, mutant

    def finish(self) -> tuple[str, Mutant, str]:
        """Wait for one result; return the module, the fault and its status."""
        pid, code = os.waitpid(-1, 0)
        reader, module, mutant = self._running.pop(pid)
        status, finder = _answer(pid, reader, code)
        if finder:
            place, kind = _place_and_kind(module, mutant)
            self._finders[place] = finder
            self._finders[kind] = str(ROOT / finder.partition("::")[0])
        return module, mutant, status

    def _tests_for(self, module: str, mutant: Mutant) -> list[str]:
        """Return the tests in order: finders of similar faults, its own, then the quickest."""
        keys = _place_and_kind(module, mutant)
        likeliest = [self._finders[key] for key in keys if key in self._finders]
        loading = [file.path for file in self._files if module in file.modules]
        own = [path for path in loading if module.rpartition(".")[2] in path.stem]
        return list(dict.fromkeys([*likeliest, *map(str, own), *map(str, loading)]))


def _place_and_kind(module: str, mutant: Mutant) -> tuple[str, str]:
    place, _, change = mutant.name.partition(": ")
    return f"{module}.{place}", change.partition(" #")[0]


# --- in the parent --------------------------------------------------------------------------


def _warm_up() -> None:
    """Load all modules of the tests, then forget ours, so that each fault imports them again."""
    hypothesis.settings.register_profile(
        "mutation",
        parent=hypothesis.settings.get_profile("ci"),
        max_examples=50,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    sys.path.insert(0, str(ROOT))
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()):
        _pytest(["--collect-only", *map(str, TESTS)])
    for name in set(sys.modules) - before:
        path = Path(str(getattr(sys.modules[name], "__file__", None)))
        if any(path.is_relative_to(folder) for folder in _OURS):
            del sys.modules[name]
    gc.freeze()  # else the garbage collector of each child walks all of this again


@dataclass(frozen=True, slots=True)
class _TestFile:
    """A file of tests, the modules of the decision core that it loads, and its CPU time."""

    path: Path
    modules: frozenset[str]
    seconds: float


def _try_without_fault(path: Path) -> _TestFile:
    def run() -> str:
        passed = _pytest(["-x", str(path)]) == 0
        prefix = f"{PACKAGE}."
        loaded = " ".join(name.removeprefix(prefix) for name in sys.modules if prefix in name)
        return f"{time.process_time() if passed else 0}\n{loaded}"

    seconds, loaded = _answer(*_fork(run))
    if not float(seconds):
        raise SystemExit(f"{path.name} does not pass without a fault")
    return _TestFile(path, frozenset(loaded.split()), float(seconds))


def _fork(work: Callable[[], str]) -> tuple[int, int]:
    """Start `work` in a child; return its pid and the descriptor to read its answer from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):  # the child must not go on with the parent's code
            resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    return pid, reader


def _answer(pid: int, reader: int, code: int | None = None) -> tuple[str, str]:
    """Wait for the process to end; return its status and the test that found the fault."""
    if code is None:
        code = os.waitpid(pid, 0)[1]
    with os.fdopen(reader, encoding="utf-8") as answer:
        status, _, finder = answer.read().partition("\n")
    if os.WIFSIGNALED(code):
        return TIMEOUT if os.WTERMSIG(code) == signal.SIGXCPU else KILLED, ""
    return status or NO_PROGRAM, finder


# --- in the child ---------------------------------------------------------------------------


class _Import(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from code that is in no file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name = name
        self._path = path
        self._code = compile(tree, str(path), "exec")

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answer for the one module."""
        del path, target
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Run the faulty code."""
        exec(self._code, module.__dict__)  # noqa: S102 - a loader executes its module


class _Finder:
    """A pytest plugin that records the name of the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def _judge(module: str, tree: ast.Module, mutant: Mutant, tests: list[str]) -> str:
    mutant.apply(tree)
    name = f"{PACKAGE}.{module}"
    sys.meta_path.insert(0, _Import(name, path_of(module), tree))
    importlib.import_module(name)  # a fault that cannot be imported ends here, without an answer
    try:
        return _first_failure(tests)
    except BaseException:  # noqa: BLE001 - a fault that stops the run is found
        return KILLED


def _first_failure(tests: Sequence[str]) -> str:
    for test in tests:  # one by one: pytest loads all its arguments before it runs the first
        finder = _Finder()
        if _pytest(["-x", "--tb=no", test], finder) in _NOTICED:
            return f"{KILLED}\n{finder.name}"[:_ANSWER]
    return SURVIVED


def _pytest(arguments: Sequence[str], *more: object) -> int:
    plugins = ["-p", "no:randomly", "-p", "no:cacheprovider", "--hypothesis-profile=mutation"]
    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # pytest's plugins are loaded already
    return int(pytest.main(["-q", "--no-header", "-W", loaded, *plugins, *arguments], more))
