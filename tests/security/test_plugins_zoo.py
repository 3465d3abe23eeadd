"""Attacker: every animal of the zoo, as a real distribution that pip installed.

All of them live in one temporary environment, trusted as they were installed, beside a neighbour
that has to keep working.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zoo_keeper
from zoo_animals import ANIMALS, SECRET, Animal

from companion_core.egress.live import LiveEgress
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import TrustRecord, record_of
from companion_core.plugin_host.survey import survey_plugins
from companion_core.plugin_host.trust_store import TrustStore
from companion_core.plugin_trial.trial import Trial, row_of

pytestmark = [pytest.mark.security, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
KEEPER = Path(zoo_keeper.__file__)
CORE = {"https", "memory", "process"}
QUIET = [animal for animal in ANIMALS if not animal.deadly]
DEADLY = [animal for animal in ANIMALS if animal.deadly]


class Zoo:
    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.state = folder / "state"
        wheels = folder / "wheels"
        wheels.mkdir()
        paths = [
            str(zoo_keeper.write_wheel(wheels, animal)) for animal in zoo_keeper.twins(ANIMALS)
        ]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        offline = ["--no-deps", "--no-index", "--no-compile", "--target", str(self.site)]
        subprocess.run([*pip, *offline, *paths], check=True, timeout=200)
        strangers = {animal.name for animal in ANIMALS if not animal.trusted}
        self.records: dict[str, TrustRecord] = {}
        for plugin in find_plugins([str(self.site)]):
            if plugin.name not in strangers:
                self.records[plugin.name] = record_of(plugin)
        for animal in ANIMALS:
            for path, text in {**animal.damage, **animal.unlisted}.items():
                (self.site / path).write_text(text)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.site), str(ROOT)]),
            "HOME": str(folder),
        }

    def survey(self) -> dict[str, tuple[str, str]]:
        path = [str(self.site), *sys.path]
        found = survey_plugins(trusted=self.records, reserved=CORE, path=path)
        return {state.name: (state.state.value, state.reason.value) for _, state in found}

    def meet(self, names: list[str]) -> dict:
        request = {
            "records": [asdict(record) for record in self.records.values()],
            "names": names,
            "runtime": None,
            "keychain": None,
            "check": None,
        }
        done = subprocess.run(
            [sys.executable, "-P", str(KEEPER)],
            input=json.dumps(request).encode(),
            env={
                **self.environment,
                "PYTHONPATH": f"{self.environment['PYTHONPATH']}:{KEEPER.parent}",
            },
            capture_output=True,
            timeout=200,
            check=True,
        )
        return json.loads(done.stdout)

    def companion(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        root = ["--state-dir", str(self.state), "--config", str(self.state / "none.toml")]
        return subprocess.run(
            [sys.executable, "-P", "-m", "companion_core", *root, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, require_real: Any) -> Zoo:
    require_real("pip", importlib.util.find_spec("pip") is not None)
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def report(zoo: Zoo) -> dict:
    """What became of all the animals that leave the process alive, in one process."""
    return zoo.meet([animal.name for animal in QUIET] + ["neighbour"])


def test_there_are_enough_animals_and_each_is_another():
    assert len(ANIMALS) >= 24
    assert len({animal.name for animal in ANIMALS}) == len(ANIMALS)


@pytest.mark.parametrize("animal", QUIET, ids=lambda animal: animal.name)
def test_an_animal_costs_itself_alone(zoo: Zoo, report: dict, animal: Animal):
    if animal.state == "found":
        assert zoo.survey()[animal.name] == (animal.state, animal.reason)
    row = row_of(report, animal.name)
    state = "registered" if row["state"] == "selected" else row["state"]
    assert (state, row["reason"]) == (animal.state, animal.reason)
    assert bool(row["hooks"]) == (animal.state == "registered")
    if animal.plan is not None:
        assert report["plans"][animal.name] == animal.plan
    if animal.healthy is not None:
        assert report["healthy"][animal.name] is animal.healthy
    if animal.state != "registered":
        assert animal.name not in report["plans"]
        assert animal.name not in report["healthy"]


def test_the_neighbour_is_well(report: dict):
    row = row_of(report, "neighbour")
    assert (row["reason"], row["hooks"]) == ("ok", ["companion_health", "companion_spawn"])
    assert report["plans"]["neighbour"] == "ok"
    assert report["healthy"]["neighbour"] is True


def test_no_foreign_text_is_in_the_report(report: dict):
    assert SECRET not in json.dumps(report)


@pytest.fixture
def trial(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    monkeypatch.setattr(os, "environ", zoo.environment)
    return Trial(egress=LiveEgress(), records=list(zoo.records.values()))


@pytest.mark.parametrize("animal", DEADLY, ids=lambda animal: animal.name)
def test_a_deadly_animal_ends_its_child_and_no_more(trial: Trial, animal: Animal):
    report = trial.run([animal.name], seconds=5)
    row = row_of(report, animal.name)
    assert (row["state"], row["reason"]) == (animal.state, animal.reason)
    assert report is None


def test_with_every_plugin_broken_the_commands_still_answer(zoo: Zoo):
    kept = {"hard-exit", "self-killer", "raiser", "shapeshifter", "quitter", "hook-quitter"}
    store = TrustStore(zoo.state / "plugins.json")
    for name in sorted(kept):
        store.trust(zoo.records[name])
    helped = zoo.companion("--help")
    assert helped.returncode == 0
    assert "plugins" in helped.stdout
    listed = zoo.companion("plugins", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {row["name"]: row for row in json.loads(listed.stdout)["plugins"]}
    for name in kept:
        expected = next(animal for animal in ANIMALS if animal.name == name)
        assert rows[name]["reason"] == expected.reason
        assert rows[name]["fix"]
    assert rows["https"]["hooks"] == ["companion_download"]
    examined = zoo.companion("doctor", "--json")
    assert examined.returncode == 3, examined.stderr
    assert examined.stderr.splitlines()[-1].startswith("companion: plugin_")
    looked_at = {row["id"]: row for row in json.loads(examined.stdout)["rows"]}
    for name in kept:
        expected = next(animal for animal in ANIMALS if animal.name == name)
        row = looked_at[f"plugin.{name}"]
        assert (row["status"], row["reason"]) == ("fail", expected.reason)
        assert row["detail"].startswith(f"zoo-{name} 1.0")
        assert row["advice"]
        assert row["fix"]
    assert looked_at["plugin.https.companion-core"]["status"] == "ok"
    assert {f"I-{number:02}" for number in range(1, 19)} <= set(looked_at)
    assert SECRET not in examined.stdout + examined.stderr
    assert zoo.companion("status").returncode == 5
    told = zoo.companion("plugins", "info", "twin").stdout
    assert "zoo-twin-a 1.0" in told
    assert "zoo-twin-b 1.0" in told
