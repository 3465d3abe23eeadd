"""Attacker: a plugin that is broken, sloppy or hostile. It costs itself, never its neighbour."""

from __future__ import annotations

import sys

import pytest
from plugin_zoo import GOOD, SECRET, Zoo

from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import State

pytestmark = pytest.mark.security


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
def test_an_import_that_fails_in_any_way_costs_itself(zoo: Zoo, text: str):
    zoo.add("animal", text)
    assert zoo.animal(zoo.load()) == (State.TRUSTED, Reason.PLUGIN_IMPORT_FAILED)


def test_an_import_that_hangs_is_left_behind(zoo: Zoo):
    zoo.add("animal", "import threading\nthreading.Event().wait(3)")
    loaded = zoo.load(load_seconds=0.5)
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
def test_a_registration_with_tricks_is_refused(zoo: Zoo, text: str):
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
def test_a_hook_that_fails_costs_itself(zoo: Zoo, body: str):
    patience = {"load_seconds": 2.0} if "wait" in body else {}
    zoo.add("animal", GOOD.replace("return Spawner()", body))
    assert zoo.animal(zoo.load(**patience)) == (State.IMPORTED, Reason.PLUGIN_CALL_FAILED)


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
def test_a_result_that_is_no_provider_is_refused(zoo: Zoo, old: str, new: str):
    text = GOOD.replace(old, new)
    assert text != GOOD
    zoo.add("animal", text)
    assert zoo.animal(zoo.load()) == (State.IMPORTED, Reason.PLUGIN_RESULT_INVALID)


def test_a_provider_that_exits_when_it_is_inspected_costs_itself(zoo: Zoo):
    trap = "class Spawner:\n    def __getattribute__(self, name):\n        raise SystemExit\n"
    zoo.add("animal", GOOD.replace("class Spawner:\n", trap))
    state, reason = zoo.animal(zoo.load())
    assert state is State.IMPORTED
    assert reason in {Reason.PLUGIN_CALL_FAILED, Reason.PLUGIN_RESULT_INVALID}


def test_the_first_value_of_a_changing_attribute_stays(zoo: Zoo):
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


def test_with_every_plugin_broken_the_host_still_answers(zoo: Zoo):
    (zoo.site / "companion_zoo_good" / "__init__.py").write_text("raise SystemExit")
    loaded = zoo.load()
    assert [plugin.reason for plugin in loaded.plugins] == [Reason.PLUGIN_IMPORT_FAILED]
    with pytest.raises(CompanionError) as caught:
        loaded.select_runtime(None)
    assert caught.value.reason is Reason.PLUGIN_IMPORT_FAILED
