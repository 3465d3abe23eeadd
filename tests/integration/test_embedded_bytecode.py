"""An embedded runtime's interpreter: whose byte code it reads, and whose sources it compiles."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import py_compile
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from companion_core.plugin_host import PINNED_IMPORTS
from companion_core.runtime.isolation import with_fresh_bytecode

pytestmark = pytest.mark.integration

PLUGIN = """
import sys
sys.path[:0] = [LIBRARY]
import inner, package.deep, json
print(json.dumps({
    "inner": inner.VALUE,
    "deep": package.deep.VALUE,
    "json": [type(json.__loader__).__module__, type(json.__loader__).__name__],
    "prefix": sys.pycache_prefix,
    "writes": not sys.dont_write_bytecode,
}))
"""


def poisoned(source: Path) -> None:
    """Write a module, and beside it the byte code of another one, which Python would run."""
    other = source.with_name("other_source.py")
    other.write_text("VALUE = 'cached'\n")
    source.write_text("VALUE = 'source'\n")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    cache = importlib.util.cache_from_source(str(source))
    py_compile.compile(str(other), cache, doraise=True, invalidation_mode=unchecked)
    other.unlink()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Modules of another distribution, whose sources are proved and whose caches are not."""
    folder = tmp_path / "site-packages"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").touch()
    for name in ("inner.py", "package/deep.py"):
        poisoned(folder / name)
    return folder


def start(tmp_path: Path, library: Path) -> dict[str, object]:
    root = tmp_path / "root"
    root.mkdir()
    code = PLUGIN.replace("LIBRARY", repr(str(library))).encode()
    (root / "plugin.py").write_bytes(code)
    listing = f"plugin.py\0{sha256(code).hexdigest()}".encode()
    (tmp_path / "code.list").write_bytes(listing)
    pinned = (PINNED_IMPORTS, sha256(listing).hexdigest(), str(tmp_path / "code.list"), str(root))
    command = with_fresh_bytecode((sys.executable, "-I", *pinned, "plugin"), tmp_path, pinned=True)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


def test_a_library_is_compiled_from_its_source_whatever_lies_in_its_cache(
    tmp_path: Path, library: Path
) -> None:
    # The caches are such that Python itself would run them.
    plain = f"import sys; sys.path[:0] = [{str(library)!r}]; import inner; print(inner.VALUE)"
    argv = [sys.executable, "-I", "-c", plain]
    assert subprocess.check_output(argv, text=True, timeout=60) == "cached\n"
    told = start(tmp_path, library)
    assert (told["inner"], told["deep"]) == ("source", "source")
    assert told["writes"] is False


def test_the_interpreters_own_library_is_not_compiled_again(tmp_path: Path, library: Path) -> None:
    told = start(tmp_path, library)
    loader = importlib.machinery.SourceFileLoader
    assert told["json"] == [loader.__module__, loader.__name__]
    assert told["prefix"] is None


def test_without_a_list_of_trusted_files_everything_is_compiled(tmp_path: Path) -> None:
    command = with_fresh_bytecode((sys.executable, "-I", "-c", ""), tmp_path)
    assert f"pycache_prefix={tmp_path / 'bytecode'}" in command
