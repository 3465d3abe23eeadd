"""Attacker: other code in the place of a plugin's that the person trusted. It is not run."""

from __future__ import annotations

import importlib
import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest
from plugin_zoo import GOOD, HOST, Zoo

from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import survey
from companion_core.plugin_host.host import load_plugins
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import State

pytestmark = pytest.mark.security


def test_nothing_of_an_untrusted_plugin_is_imported(zoo: Zoo):
    trusted = zoo.trust_all()
    zoo.add("animal", GOOD)
    loaded = zoo.load(trusted)
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_UNTRUSTED)
    assert "companion_zoo_animal" not in sys.modules
    with pytest.raises(CompanionError) as caught:
        loaded.select_runtime(None)
    assert caught.value.detail == "download: good"  # it is no rival of the trusted one


def test_one_changed_byte_is_refused_before_import(zoo: Zoo):
    site = zoo.add("animal", GOOD)
    trusted = zoo.trust_all()
    file = site / "companion_zoo_animal" / "__init__.py"
    file.write_text(file.read_text() + " ")
    assert zoo.animal(zoo.load(trusted)) == (State.FOUND, Reason.PLUGIN_CHANGED)
    assert "companion_zoo_animal" not in sys.modules


def test_a_byte_that_changes_between_check_and_import_is_refused(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
):
    site = zoo.add("animal", GOOD)
    real = survey.judge_found

    def swap(*args: object, **kwargs: object) -> object:
        reasons = real(*args, **kwargs)
        (site / "companion_zoo_animal" / "__init__.py").write_text(GOOD + "swapped = 1\n")
        return reasons

    trusted = zoo.trust_all()
    # The byte has to change between the check and the import.
    monkeypatch.setattr(survey, "judge_found", swap)
    assert zoo.animal(zoo.load(trusted)) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_a_module_that_changes_before_its_later_import_is_refused(zoo: Zoo):
    site = zoo.add("lazy", GOOD, files={"companion_zoo_lazy/server.py": "x = 1\n"})
    loaded = zoo.load()
    assert "lazy" in loaded.providers(Role.SPAWN)
    (site / "companion_zoo_lazy" / "server.py").write_text("x = 2\n")
    with pytest.raises(ImportError):
        importlib.import_module("companion_zoo_lazy.server")
    (site / "companion_zoo_lazy" / "server.py").write_text("x = 1\n")
    assert importlib.import_module("companion_zoo_lazy.server").x == 1


def test_byte_code_that_differs_from_its_source_is_not_run(zoo: Zoo, tmp_path: Path):
    site = zoo.add("animal", GOOD)
    source = site / "companion_zoo_animal" / "__init__.py"
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit\n")
    cache = importlib.util.cache_from_source(str(source))
    py_compile.compile(
        str(evil), cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    # The trick works on Python's own import ...
    spec = importlib.util.spec_from_file_location("companion_zoo_proof", source)
    with pytest.raises(SystemExit):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    # ... and not here.
    assert "animal" in zoo.load().providers(Role.SPAWN)


def test_a_module_found_earlier_on_the_path_is_not_taken(zoo: Zoo, tmp_path: Path):
    zoo.add("animal", GOOD)
    trusted = zoo.trust_all()
    shadow = tmp_path / "shadow"
    (shadow / "companion_zoo_animal").mkdir(parents=True)
    (shadow / "companion_zoo_animal" / "__init__.py").write_text(GOOD)
    loaded = load_plugins(HOST, first_party=trusted, path=[str(shadow), str(zoo.site)])
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_SHADOWED)


def test_a_module_of_that_name_imported_before_is_not_taken(zoo: Zoo, tmp_path: Path):
    zoo.add("animal", GOOD)
    other = tmp_path / "other.py"
    other.write_text(GOOD)
    spec = importlib.util.spec_from_file_location("companion_zoo_animal", other)
    sys.modules["companion_zoo_animal"] = importlib.util.module_from_spec(spec)
    assert zoo.animal(zoo.load()) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_by_default_only_the_shipped_table_is_trusted(zoo: Zoo):
    loaded = load_plugins(HOST, path=[str(zoo.site)])
    assert [(p.state, p.reason) for p in loaded.plugins] == [(State.FOUND, Reason.PLUGIN_UNTRUSTED)]
