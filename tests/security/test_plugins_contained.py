"""Attacker: a plugin that is broken, sloppy or hostile. It costs itself, never its neighbour."""

from __future__ import annotations

import importlib
import importlib.util
import py_compile
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from companion_core.errors import CompanionError, PluginFault, Reason
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP, hookimpl
from companion_core.plugin_host import host as plugin_host
from companion_core.plugin_host import survey
from companion_core.plugin_host.host import CorePlugin, LoadedPlugins, load_plugins
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import FirstParty, Release, normalized
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import State
from companion_core.providers import HostInfo

pytestmark = pytest.mark.security

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")
SECRET = "a-foreign-secret"

GOOD = """
from companion_core import hookimpl

class Spawner:
    channels = frozenset({"unix"})
    formats = frozenset({"gguf"})
    env_names = child_env_names = option_names = frozenset()
    def locate(self):
        return ()
    def plan(self, request):
        raise NotImplementedError

class Health:
    path = "/health"
    def judge(self, response):
        return response.status == 200

@hookimpl
def companion_spawn(host):
    return Spawner()

@hookimpl
def companion_health():
    return Health()
"""

Install = Callable[..., Path]


class Zoo:
    """Installs a good plugin and one animal, both trusted, and loads them."""

    def __init__(self, install: Install) -> None:
        self._install = install
        self.site = self.add("good", GOOD)

    def add(self, name: str, text: str, **how: object) -> Path:
        files = {f"companion_zoo_{name}/__init__.py": text, **how.pop("files", {})}
        return self._install(f"zoo-{name}", files, {name: f"companion_zoo_{name}"}, **how)

    def trust_all(self) -> FirstParty:
        return {
            normalized(found.distribution): {
                found.version: Release(
                    digest=found.digest or "",
                    group=found.group,
                    entry_points={found.name: found.module},
                )
            }
            for found in find_plugins([str(self.site)])
        }

    def load(self, trusted: FirstParty | None = None, **how: object) -> LoadedPlugins:
        trusted = self.trust_all() if trusted is None else trusted
        return load_plugins(HOST, first_party=trusted, path=[str(self.site)], **how)

    def animal(self, loaded: LoadedPlugins, name: str = "animal") -> tuple[State, Reason]:
        """Return the animal's end, after proving that its neighbour is well."""
        states = {plugin.name: plugin for plugin in loaded.plugins}
        assert (states["good"].state, states["good"].reason) == (State.REGISTERED, Reason.OK)
        assert "good" in loaded.providers(Role.SPAWN)
        for role in Role:
            assert name not in loaded.providers(role)
        assert SECRET not in f"{states[name].detail}"
        assert states[name].advice
        return states[name].state, states[name].reason


@pytest.fixture
def zoo(install_distribution: Install, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zoo]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    zoo = Zoo(install_distribution)
    sys.path.insert(0, str(zoo.site))
    yield zoo
    for name in [name for name in sys.modules if name.startswith("companion_zoo_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "text",
    [
        "import companion_zoo_missing",
        f"raise ValueError({SECRET!r})",
        f"raise SystemExit({SECRET!r})",
        "import sys; sys.exit(0)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "from companion_core.providers import ResumeRefused\nraise ResumeRefused",
        "def broken(:",
        "\x00",
        # a module that puts another object, or another kind of module, in its place
        "import sys\nclass Other: pass\nsys.modules[__name__] = Other()",
        "import sys, types\nclass M(types.ModuleType): pass\nsys.modules[__name__].__class__ = M",
        "import sys, json\nsys.modules[__name__] = json",
        "import sys\ndel sys.modules[__name__]",
        "raise BaseExceptionGroup('g', [SystemExit(1)])",
    ],
)
def test_an_import_that_fails_in_any_way(zoo: Zoo, text: str):
    zoo.add("animal", text)
    assert zoo.animal(zoo.load()) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_an_import_that_hangs(zoo: Zoo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin_host, "LOAD_SECONDS", 0.5)
    zoo.add("animal", "import threading\nthreading.Event().wait(3)")
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)
    assert loaded.plugins[0].detail == "no answer in time"


@pytest.mark.parametrize(
    "text",
    [
        # the wrapper that would turn another plugin's refusal into an approval
        GOOD.replace(
            "@hookimpl\ndef companion_spawn(host):\n    return",
            "@hookimpl(wrapper=True)\ndef companion_spawn(host):\n    yield\n    return",
        ),
        GOOD.replace(
            "@hookimpl\ndef companion_spawn", "@hookimpl(tryfirst=True)\ndef companion_spawn"
        ),
        GOOD.replace(
            "@hookimpl\ndef companion_spawn", "@hookimpl(trylast=True)\ndef companion_spawn"
        ),
        GOOD.replace(
            "@hookimpl\ndef companion_health", "@hookimpl(optionalhook=True)\ndef companion_heath"
        ),
        GOOD.replace(
            "@hookimpl\ndef companion_health", "@hookimpl(specname='companion_probe')\ndef mine"
        ),
        GOOD + "@hookimpl\ndef companion_keychain():\n    return Spawner()\n",
        GOOD + "@hookimpl\ndef companion_spawned():\n    return Spawner()\n",
        GOOD.replace("companion_spawn(host)", "companion_spawn(host, token)"),
        "x = 1",
        f"def __dir__():\n    raise SystemExit({SECRET!r})",
    ],
)
def test_a_registration_with_tricks(zoo: Zoo, text: str):
    assert text != GOOD
    zoo.add("animal", text)
    assert zoo.animal(zoo.load()) == (State.IMPORTED, Reason.PLUGIN_REGISTRATION_REFUSED)


@pytest.mark.parametrize(
    "body",
    [
        f"raise SystemExit({SECRET!r})",
        f"raise ValueError({SECRET!r})",
        "raise __import__('companion_core.providers').providers.ProbeFailed",
        "return 1 / 0",
        "import threading\n    threading.Event().wait(6)",
    ],
)
def test_a_hook_that_fails(zoo: Zoo, body: str, monkeypatch: pytest.MonkeyPatch):
    if "wait" in body:
        monkeypatch.setattr(plugin_host, "LOAD_SECONDS", 2.0)
    zoo.add("animal", GOOD.replace("return Spawner()", body))
    assert zoo.animal(zoo.load()) == (State.IMPORTED, Reason.PLUGIN_CALL_FAILED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return Spawner()", "return None"),
        ("return Spawner()", "pass"),
        ("return Spawner()", "yield Spawner()"),
        ("return Spawner()", "return [Spawner()]"),
        ("return Spawner()", "return Spawner"),
        ("return Spawner()", "return 'spawner'"),
        ("def companion_spawn", "async def companion_spawn"),
        ("def plan", "async def plan"),
        ('frozenset({"unix"})', '{"unix"}'),
        ('frozenset({"unix"})', 'frozenset({"unix", "0.0.0.0"})'),
        ('frozenset({"unix"})', "type('F', (frozenset,), {})({'unix'})"),
        ('channels = frozenset({"unix"})', "channels = property(lambda self: 1 / 0)"),
        (
            'channels = frozenset({"unix"})',
            "channels = property(lambda self: __import__('sys').exit())",
        ),
        ('"/health"', '"health"'),
        ('"/health"', '"/health\\r\\nHost: evil"'),
        ("return Health()", "return None"),
    ],
)
def test_a_result_that_is_no_provider(zoo: Zoo, old: str, new: str):
    text = GOOD.replace(old, new)
    assert text != GOOD
    zoo.add("animal", text)
    assert zoo.animal(zoo.load()) == (State.IMPORTED, Reason.PLUGIN_RESULT_INVALID)


def test_a_provider_that_ends_the_program_when_it_is_looked_at(zoo: Zoo):
    trap = "class Spawner:\n    def __getattribute__(self, name):\n        raise SystemExit\n"
    zoo.add("animal", GOOD.replace("class Spawner:\n", trap))
    state, reason = zoo.animal(zoo.load())
    assert state is State.IMPORTED
    assert reason in {Reason.PLUGIN_CALL_FAILED, Reason.PLUGIN_RESULT_INVALID}


def test_a_provider_that_changes_its_mind_is_held_to_its_first_word(zoo: Zoo):
    fickle = """
    answers = 0
    @property
    def channels(self):
        type(self).answers += 1
        return frozenset({"unix"}) if self.answers == 1 else frozenset({"0.0.0.0"})
"""
    zoo.add("animal", GOOD.replace('    channels = frozenset({"unix"})', fickle))
    spawner = zoo.load().providers(Role.SPAWN)["animal"]
    assert [spawner.channels, spawner.channels] == [{"unix"}] * 2


def test_a_late_registration_is_refused(zoo: Zoo):
    zoo.add(
        "animal",
        GOOD.replace(
            "return Spawner()",
            "import gc, pluggy\n    managers.extend(m for m in gc.get_objects() "
            "if isinstance(m, pluggy.PluginManager))\n    return Spawner()",
        )
        + "managers = []\n",
    )
    loaded = zoo.load()
    managers = sys.modules["companion_zoo_animal"].managers
    for manager in [m for m in managers if type(m).__name__ == "SealedPluginManager"]:
        with pytest.raises(Exception, match="already loaded"):
            manager.register(type("Late", (), {})(), "late")
    assert {plugin.name for plugin in loaded.plugins} == {"good", "animal"}


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


def test_a_byte_that_changes_between_the_check_and_the_import(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
):
    site = zoo.add("animal", GOOD)
    real = survey.judge_found

    def swap(*args: object, **kwargs: object) -> object:
        reasons = real(*args, **kwargs)
        (site / "companion_zoo_animal" / "__init__.py").write_text(GOOD + "swapped = 1\n")
        return reasons

    trusted = zoo.trust_all()
    monkeypatch.setattr(survey, "judge_found", swap)
    assert zoo.animal(zoo.load(trusted)) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_a_module_that_changes_before_it_is_imported_later(zoo: Zoo):
    site = zoo.add("lazy", GOOD, files={"companion_zoo_lazy/server.py": "x = 1\n"})
    loaded = zoo.load()
    assert "lazy" in loaded.providers(Role.SPAWN)
    (site / "companion_zoo_lazy" / "server.py").write_text("x = 2\n")
    with pytest.raises(ImportError):
        importlib.import_module("companion_zoo_lazy.server")
    (site / "companion_zoo_lazy" / "server.py").write_text("x = 1\n")
    assert importlib.import_module("companion_zoo_lazy.server").x == 1


def test_byte_code_that_does_other_things_than_its_source_is_not_run(zoo: Zoo, tmp_path: Path):
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


def test_a_module_that_somebody_else_imported_already_is_not_taken(zoo: Zoo, tmp_path: Path):
    zoo.add("animal", GOOD)
    other = tmp_path / "other.py"
    other.write_text(GOOD)
    spec = importlib.util.spec_from_file_location("companion_zoo_animal", other)
    sys.modules["companion_zoo_animal"] = importlib.util.module_from_spec(spec)
    assert zoo.animal(zoo.load()) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_a_squatter_on_a_foreign_module(zoo: Zoo, install_distribution: Install):
    install_distribution("squat", {"squat/__init__.py": ""}, {"animal": "companion_zoo_good"})
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_FOREIGN_MODULE)
    (detail,) = [plugin.detail for plugin in loaded.plugins if plugin.name == "animal"]
    assert detail == "squat 0.1.0 names companion_zoo_good, of zoo-good 0.1.0"


@pytest.mark.parametrize(("module", "owner"), [("json.tool", "Python"), ("zoo_none", "nobody")])
def test_a_squatter_on_what_no_plugin_owns(
    zoo: Zoo, install_distribution: Install, module: str, owner: str
):
    install_distribution("squat", {"squat/__init__.py": ""}, {"animal": module})
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_FOREIGN_MODULE)
    (detail,) = [plugin.detail for plugin in loaded.plugins if plugin.name == "animal"]
    assert detail == f"squat 0.1.0 names {module}, of {owner}"


def test_two_claims_of_one_name_are_named(zoo: Zoo, install_distribution: Install):
    zoo.add("animal", GOOD)
    trusted = zoo.trust_all()
    install_distribution("rival", {"rival/__init__.py": GOOD}, {"animal": "rival"})
    loaded = zoo.load(trusted)
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_DUPLICATE)
    details = {plugin.detail for plugin in loaded.plugins if plugin.name == "animal"}
    assert details == {"rival 0.1.0, zoo-animal 0.1.0"}
    with pytest.raises(PluginFault) as caught:
        loaded.select_runtime("animal")
    assert caught.value.reason is Reason.PLUGIN_DUPLICATE


def test_a_distribution_on_both_sides(zoo: Zoo):
    zoo.add("animal", GOOD)
    files = zoo.site / "zoo_animal-0.1.0.dist-info" / "entry_points.txt"
    files.write_text(files.read_text() + f"[{AUTHORITY_GROUP}]\nvault = companion_zoo_animal\n")
    assert zoo.animal(zoo.load()) == (State.FOUND, Reason.PLUGIN_BOTH_SIDES)


def test_a_keychain_that_serves_runtime_hooks(zoo: Zoo):
    zoo.add("animal", GOOD, group=AUTHORITY_GROUP)
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.IMPORTED, Reason.PLUGIN_REGISTRATION_REFUSED)


class CoreDownload:
    def open(self, request: object) -> object:
        return request


class CorePlugins:
    @hookimpl
    def companion_download(self) -> CoreDownload:
        return CoreDownload()


def test_the_cores_own_name_cannot_be_taken(zoo: Zoo):
    zoo.add("https", GOOD)
    loaded = zoo.load(core_plugins=[CorePlugin(name="https", plugin=CorePlugins())])
    states = {(p.name, p.core): (p.state, p.reason) for p in loaded.plugins}
    assert states["https", True] == (State.REGISTERED, Reason.OK)
    assert states["https", False] == (State.FOUND, Reason.PLUGIN_DUPLICATE)
    assert set(loaded.providers(Role.DOWNLOAD)) == {"https"}
    assert "https" not in loaded.providers(Role.SPAWN)


def test_the_environment_narrows_and_cannot_add(zoo: Zoo):
    trusted = zoo.trust_all()
    zoo.add("animal", GOOD)
    loaded = zoo.load(trusted, narrow={"animal"})
    reasons = {plugin.name: plugin.reason for plugin in loaded.plugins}
    assert reasons == {"animal": Reason.PLUGIN_UNTRUSTED, "good": Reason.PLUGIN_NARROWED}
    assert not any(loaded.providers(role) for role in Role)


def test_with_every_plugin_broken_the_host_still_answers(zoo: Zoo):
    (zoo.site / "companion_zoo_good" / "__init__.py").write_text("raise SystemExit")
    loaded = zoo.load()
    assert [plugin.reason for plugin in loaded.plugins] == [Reason.PLUGIN_IMPORT_FAILED]
    with pytest.raises(CompanionError) as caught:
        loaded.select_runtime(None)
    assert caught.value.reason is Reason.PLUGIN_IMPORT_FAILED


def test_by_default_only_the_shipped_table_is_trusted(zoo: Zoo):
    loaded = load_plugins(HOST, path=[str(zoo.site)])
    assert [(p.state, p.reason) for p in loaded.plugins] == [(State.FOUND, Reason.PLUGIN_UNTRUSTED)]


def test_the_sides_hand_out_disjoint_objects(zoo: Zoo):
    loaded = zoo.load()
    (state,) = loaded.plugins
    assert state.group == RUNTIME_GROUP
    assert state.roles == {Role.SPAWN, Role.HEALTH}
    assert not loaded.providers(Role.KEYCHAIN)
    assert state.modules == {"companion_zoo_good"}
