"""The zoo: plugins that are broken, sloppy or hostile, each in one way.

Every animal becomes a distribution of its own. `SOUND` is a plugin without a fault; most animals
are that plugin with one thing replaced, so that nothing else explains their end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RUNTIME, AUTHORITY = "companion.runtime.v1", "companion.authority.v1"
SECRET = "a-foreign-secret"

SOUND = """
from companion_core import hookimpl
from companion_core.providers import SpawnPlan, UnixChannel

class Spawner:
    channels = frozenset({"unix", "tcp"})
    formats = frozenset({"gguf"})
    env_names = frozenset({"ZOO_KEY", "ZOO_MODE"})
    child_env_names = option_names = frozenset()

    def locate(self):
        return ()

    def plan(self, request):
        channel = request.channel
        unix = isinstance(channel, UnixChannel)
        address = channel.path if unix else f"{channel.host}:{channel.port}"
        fields = dict(
            argv=(request.binary, request.model_path, address),
            served_model="zoo",
            backend_key_env=None if unix else "ZOO_KEY",
        )
        return SpawnPlan(**fields)

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


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One distribution, and what becomes of it.

    Attributes:
        text: the source of its module.
        state: the last state that it may reach.
        reason: why it comes no further.
        plan: why its plan is refused; None if it never plans.
        healthy: the core's verdict on its health check; None if it is never asked.
        deadly: it ends or stalls the process that imports it.
        trusted: the person trusts it as it was installed.
        damage: files that are changed after it was trusted.
        unlisted: files beside it that RECORD does not list.
        files: further modules.
        module: what its entry point names in place of its own package.
        more: another group's entry points.
    """

    name: str
    text: str = SOUND
    state: str = "found"
    reason: str = "ok"
    plan: str | None = None
    healthy: bool | None = None
    deadly: bool = False
    trusted: bool = True
    distribution: str = ""
    version: str = "1.0"
    group: str = RUNTIME
    module: str = ""
    damage: Mapping[str, str] = field(default_factory=dict)
    unlisted: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        return f"zoo_{self.name.replace('-', '_')}"


def altered(old: str, new: str) -> str:
    text = SOUND.replace(old, new)
    if text == SOUND:
        raise AssertionError(f"nothing to replace: {old}")
    return text


def _import(name: str, text: str, **how) -> Animal:
    how = {"state": "trusted", "reason": "plugin_import_failed", **how}
    return Animal(name=name, text=text, **how)


def _register(name: str, old: str, new: str) -> Animal:
    text = altered(old, new)
    return Animal(name=name, text=text, state="imported", reason="plugin_registration_refused")


def _result(name: str, old: str, new: str, reason: str = "plugin_result_invalid") -> Animal:
    return Animal(name=name, text=altered(old, new), state="imported", reason=reason)


def _plan(name: str, old: str, new: str, reason: str = "plan_refused") -> Animal:
    return Animal(name=name, text=altered(old, new), state="registered", plan=reason)


def _health(name: str, new: str) -> Animal:
    text = altered("return response.status == 200", new)
    return Animal(name=name, text=text, state="registered", healthy=False)


# Writes a forged report to every open descriptor, and exits.
FORGERY = """
import os
for descriptor in range(3, 100):
    try:
        os.write(descriptor, {!r}.encode())
    except OSError:
        pass
os._exit(0)
"""
PLAN = "return SpawnPlan(**fields)"
FIELD = 'served_model="zoo",'
HOOK = "@hookimpl\ndef companion_spawn(host):\n    return Spawner()"

ANIMALS: tuple[Animal, ...] = (
    # --- before anything is imported ---
    Animal(name="stranger", reason="plugin_untrusted", trusted=False),
    Animal(
        name="impostor",
        distribution="companion-runtime-llamacpp",
        version="0.1.0",
        reason="plugin_changed",
        trusted=False,
    ),
    Animal(
        name="shapeshifter",
        damage={"zoo_shapeshifter/__init__.py": SOUND + "#"},
        reason="plugin_changed",
    ),
    Animal(
        name="parasite",
        unlisted={"zoo_parasite/extra.py": "raise SystemExit"},
        reason="plugin_changed",
    ),
    Animal(
        name="sourceless",
        files={"zoo_sourceless/hidden.pyc": "not even byte code"},
        reason="plugin_changed",
    ),
    Animal(name="squatter", module="json", reason="plugin_foreign_module"),
    Animal(name="twin", distribution="zoo-twin-a", reason="plugin_duplicate"),
    Animal(name="https", distribution="zoo-core-twin", reason="plugin_duplicate"),
    Animal(
        name="amphibian",
        more={AUTHORITY: "amphibian-vault = zoo_amphibian"},
        reason="plugin_both_sides",
    ),
    # --- while it is imported ---
    _import("no-module", "import zoo_missing"),
    _import("raiser", f"raise ValueError({SECRET!r})"),
    _import("quitter", f"raise SystemExit({SECRET!r})"),
    _import("interrupter", "raise KeyboardInterrupt"),
    _import("garbled", "def broken(:"),
    _import("sleeper", "import threading\nthreading.Event().wait(60)"),
    _import("body-double", "import sys, json\nsys.modules[__name__] = json"),
    _import("hard-exit", "import os\nos._exit(0)", deadly=True),
    _import("self-killer", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", deadly=True),
    _import("stopper", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", deadly=True),
    _import("forger", FORGERY.format('{"plugins": [], "checked": null}'), deadly=True),
    _import("garbler", FORGERY.format("[[[["), deadly=True),
    # --- while it registers ---
    _register(
        "wrapper",
        HOOK,
        "@hookimpl(wrapper=True)\ndef companion_spawn(host):\n    yield\n    return Spawner()",
    ),
    _register("pusher", HOOK, HOOK.replace("@hookimpl", "@hookimpl(tryfirst=True)")),
    _register("optional", HOOK, HOOK.replace("@hookimpl", "@hookimpl(optionalhook=True)")),
    _register("alias", HOOK, HOOK.replace("@hookimpl", "@hookimpl(specname='companion_probe')")),
    _register("crosser", "def companion_spawn(host)", "def companion_keychain(host)"),
    _register("inventor", "def companion_spawn(host)", "def companion_spawned(host)"),
    _register("greedy", "def companion_spawn(host)", "def companion_spawn(host, token)"),
    # --- what its hooks return ---
    _result("nobody", "return Spawner()", "return None"),
    _result("promise", "def companion_spawn", "async def companion_spawn"),
    _result("class-only", "return Spawner()", "return Spawner"),
    _result("late-method", "def plan", "async def plan"),
    _result("wide-channel", '{"unix", "tcp"}', '{"unix", "0.0.0.0"}'),
    _result("sub-set", 'frozenset({"gguf"})', "type('F', (frozenset,), {})({'gguf'})"),
    _result("header-path", '"/health"', '"/health\\r\\nHost: evil"'),
    _result("hook-quitter", "return Spawner()", "raise SystemExit", "plugin_call_failed"),
    _result(
        "hook-sleeper",
        "return Spawner()",
        "__import__('threading').Event().wait(60)",
        "plugin_call_failed",
    ),
    # --- what it plans ---
    _plan("shell", "argv=(request.binary,", 'argv=("/bin/sh", "-c", request.binary,'),
    _plan("other-program", "argv=(request.binary,", 'argv=("/usr/bin/python3",'),
    _plan("other-model", "request.model_path,", '"/etc/passwd",'),
    _plan("other-channel", ", address)", ', "0.0.0.0:80")'),
    _plan("preloader", FIELD, FIELD + "env={'LD_PRELOAD': '/x.so'},"),
    _plan("undeclared-env", FIELD, FIELD + "env={'HTTPS_PROXY': 'http://x'},"),
    _plan("path-env", FIELD, FIELD + "env={'PATH': '/tmp'},"),
    _plan("open-door", 'else "ZOO_KEY"', "else None", "backend_open"),
    _plan("escape", FIELD, FIELD + "model_link=request.data_dir + '/../x',"),
    _plan("forever", FIELD, FIELD + "start_deadline_seconds=float('inf'),"),
    _plan("more-routes", FIELD, FIELD + "routes=(type('R', (), {'path': '/'})(),),"),
    _plan("fancy-plan", PLAN, "return type('P', (SpawnPlan,), {})(**fields)"),
    _plan("dict-plan", PLAN, "return fields"),
    _plan(
        "plan-promise", PLAN, "return (SpawnPlan(**fields) for _ in ())", "plugin_result_invalid"
    ),
    _plan("plan-quitter", PLAN, f"raise SystemExit({SECRET!r})", "plugin_call_failed"),
    _plan("mutator", PLAN, "request.options['more'] = 1", "plugin_call_failed"),
    _plan("plan-sleeper", PLAN, "__import__('threading').Event().wait(60)", "plugin_call_failed"),
    # --- how it judges health ---
    _health("yes-man", "return 1"),
    _health("health-quitter", "raise SystemExit(0)"),
    _health("health-promise", "return self.judge"),
)
