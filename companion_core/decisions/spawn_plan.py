"""Rules for this file: whether a runtime plugin's plan may be carried out (I-05 to I-07).

Pure; imports values and text rules only. The plugin's plan is rebuilt from primitives of
exact types: no object of the plugin survives, and nothing that it asks for is guessed.
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.decisions.placement import is_placement_text
from companion_core.decisions.plan_requests import rebuild_dialect, rebuild_requests
from companion_core.decisions.plan_texts import MOST_ITEMS, plain_name, plain_text, plain_texts
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.providers import (
    INFERENCE_ROUTES,
    Route,
    SpawnPlan,
    TcpChannel,
    UnixChannel,
)

__all__ = [
    "MAX_UNIX_PATH",
    "PlanFacts",
    "base_environment",
    "check_env_name",
    "check_plan",
    "parse_pid",
]

# Bytes of a socket's path, without the final NUL, as `sun_path` has them.
MAX_UNIX_PATH: Final[Mapping[str, int]] = MappingProxyType({"linux": 107, "darwin": 103})

_MAX_ARGUMENTS = 256
_MAX_TOTAL_BYTES = 256 * 1024
_MAX_START_SECONDS = 3600
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
# Names that steer a loader, an interpreter or the C library; no plugin may set one.
_FORBIDDEN_PREFIXES = ("LD_", "DYLD_", "PYTHON", "MALLOC_", "BASH_", "PERL5", "RUBY", "NODE_")
_FORBIDDEN_NAMES = frozenset({"ENV", "IFS", "SHELLOPTS", "GCONV_PATH", "GLIBC_TUNABLES", "LOCPATH"})
# Names that would hold a secret. The core's per-start key goes in under `backend_key_env` alone.
_SECRET_ENDINGS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS", "COOKIE")

_BASE_PATH = "/usr/bin:/bin"
# Which accelerators the person lets programs use: numbers and names, no paths.
_ACCELERATORS = (
    "CUDA_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "ROCR_VISIBLE_DEVICES",
)
_ACCELERATOR_VALUE = re.compile(r"[A-Za-z0-9_.,:-]{0,512}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What the core knew and chose before it asked the plugin.

    Attributes:
        binary: the proved program, absolute; the running interpreter when `embedded`.
        embedded_modules: modules inside the plugin's own hashed files.
        env_names: the names that plans may set, as the spawner declared.
        base_names: the names that the core sets itself; a plan may not.
        model_path: the path by which the runtime opens the verified model.
        routes: all that the gateway would serve.
        allow_open_backend: the person accepted a backend without socket and key (I-07).
        windows: paths are Windows paths; a plan may separate with "/" there too.
    """

    binary: str
    embedded: bool
    embedded_modules: frozenset[str]
    env_names: frozenset[str]
    base_names: frozenset[str]
    model_path: str
    channel: UnixChannel | TcpChannel
    data_dir: str
    routes: tuple[Route, ...] = INFERENCE_ROUTES
    allow_open_backend: bool = False
    windows: bool = False


def parse_pid(value: object) -> int | Verdict:
    """Return a process id: an exact, positive integer."""
    if type(value) is not int or value <= 0:
        return refuse(Reason.SPAWN_FAILED)
    return value


def check_env_name(name: object) -> Verdict:
    """Tell whether a plugin may set this environment variable at all (I-06).

    It may set none that steers the loader or an interpreter, or that would hold a secret.
    """
    if type(name) is not str or not _ENV_NAME.match(name):
        return refuse(Reason.PLAN_REFUSED)
    upper = name.upper()
    steers = upper.startswith(_FORBIDDEN_PREFIXES) or upper in _FORBIDDEN_NAMES
    if steers or any(word.endswith(_SECRET_ENDINGS) for word in upper.split("_")):
        return refuse(Reason.PLAN_REFUSED)
    return OK


def base_environment(
    platform: str, *, private_dir: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment that every runtime starts from: an allow-list, built from nothing.

    Args:
        platform: as `sys.platform` has it.
        private_dir: home and temporary folder of this start.
        inherited: the companion's own environment, from which only the choice of
            accelerators and, on Windows, the system folder are taken.
    """
    if platform == "win32":
        seen = {name.upper(): value for name, value in inherited.items()}
        root = seen.get("SYSTEMROOT", r"C:\Windows")
        base = {
            "SYSTEMROOT": root,
            "PATH": rf"{root}\System32;{root}",
            "TEMP": private_dir,
            "TMP": private_dir,
            "USERPROFILE": private_dir,
        }
    else:
        seen = dict(inherited)
        base = {"PATH": _BASE_PATH, "HOME": private_dir, "TMPDIR": private_dir, "LANG": "C.UTF-8"}
    base["PYTHONUNBUFFERED"] = "1"  # else a script's "ready" waits in its buffer until it ends
    for name in _ACCELERATORS:
        if (value := seen.get(name)) is not None and _ACCELERATOR_VALUE.match(value):
            base[name] = value
    return base


def check_plan(plan: object, facts: PlanFacts) -> SpawnPlan | Verdict:
    """Rebuild a plugin's plan from what is allowed in it, or refuse it whole.

    Returns:
        a plan that the core made anew, or `plan_refused`, or `backend_open` when every local
        program could reach the backend.
    """
    if type(plan) is not SpawnPlan:
        return _refused("not a SpawnPlan")
    argv = plain_texts(plan.argv, least=1, most=_MAX_ARGUMENTS)
    if argv is None or not _program_is_proved(argv, facts):
        return _refused("argv")
    env = _environment(plan.env, facts)
    if env is None:
        return _refused("env")
    if sum(map(_size, (*argv, *env.values()))) > _MAX_TOTAL_BYTES:
        return _refused("argv and env: too long")
    served_model, ready_text = plain_name(plan.served_model), plan.ready_text
    if served_model is None:
        return _refused("served_model")
    if ready_text is not None and plain_name(ready_text) is None:
        return _refused("ready_text")
    if not _names_channel(argv, env, facts.channel):
        return _refused("argv and env: without the channel")
    model_link = plan.model_link
    if model_link is None:
        if not _names_model(argv, env, facts.model_path):
            return _refused("argv and env: without the model's path")
    elif not _inside(model_link, facts):
        return _refused("model_link")
    copies = plain_texts(plan.model_copies)
    if copies is None or not all(_inside(path, facts) for path in copies):
        return _refused("model_copies")
    if plan.store is not None and not _inside(plan.store, facts):
        return _refused("store")
    read_paths = plain_texts(plan.read_paths)
    if read_paths is None or not all(_may_read(path, facts) for path in read_paths):
        return _refused("read_paths")
    if (prepare := rebuild_requests(plan.prepare)) is None:
        return _refused("prepare")
    if (dialect := rebuild_dialect(plan.dialect)) is None:
        return _refused("dialect")
    if (routes := _routes(plan.routes, facts.routes)) is None:
        return _refused("routes")
    drop_fields = plain_texts(plan.drop_fields)
    if drop_fields is None or any(plain_name(field) is None for field in drop_fields):
        return _refused("drop_fields")
    if type(plan.gpu) is not bool:
        return _refused("gpu")
    placement_texts = plain_texts(plan.placement_texts)
    if placement_texts is None or not all(map(is_placement_text, placement_texts)):
        return _refused("placement_texts")
    seconds = plan.start_deadline_seconds
    if type(seconds) not in {int, float} or not 0 < seconds <= _MAX_START_SECONDS:
        return _refused("start_deadline_seconds")
    key_env = plan.backend_key_env
    if key_env is None:
        if isinstance(facts.channel, TcpChannel) and not facts.allow_open_backend:
            return refuse(Reason.BACKEND_OPEN)
    elif not _takes_key(key_env, env, facts):
        return _refused("backend_key_env")
    return SpawnPlan(
        argv=argv,
        served_model=served_model,
        env=MappingProxyType(env),
        backend_key_env=key_env,
        prepare=prepare,
        model_link=model_link,
        model_copies=copies,
        store=plan.store,
        ready_text=ready_text,
        start_deadline_seconds=seconds,
        routes=routes,
        drop_fields=drop_fields,
        read_paths=read_paths,
        gpu=plan.gpu,
        placement_texts=placement_texts,
        dialect=dialect,
    )


def _refused(about: str) -> Verdict:
    """Return the refusal of a plan that names what of it was refused, for the plugin's author."""
    return refuse(Reason.PLAN_REFUSED, about)


def _size(value: str) -> int:
    return len(value.encode())


def _program_is_proved(argv: tuple[str, ...], facts: PlanFacts) -> bool:
    if argv[0] != facts.binary or _normal(facts.binary, facts) is None:
        return False
    if not facts.embedded:
        return True
    return argv[1:3] == ("-I", "-m") and len(argv) > 3 and argv[3] in facts.embedded_modules  # noqa: PLR2004 - the module's place


def _environment(value: object, facts: PlanFacts) -> dict[str, str] | None:
    if type(value) not in {dict, MappingProxyType}:
        return None
    try:  # behind a read-only view there may be a mapping that the plugin wrote
        items = list(dict(value).items())  # type: ignore[call-overload]  # its type is tested above
    except Exception:  # noqa: BLE001 - whatever the plugin's mapping raises is a refusal
        return None
    if len(items) > MOST_ITEMS:
        return None
    env: dict[str, str] = {}
    for name, content in items:
        text = plain_text(content)
        if text is None or not check_env_name(name).ok:
            return None
        if name not in facts.env_names or name in facts.base_names:
            return None
        env[name] = text
    return env


def _takes_key(name: object, env: Mapping[str, str], facts: PlanFacts) -> bool:
    """Tell whether the core's key may go in under `name`; here a secret's name is fine."""
    if type(name) is not str or not _ENV_NAME.match(name):
        return False
    if name.upper().startswith(_FORBIDDEN_PREFIXES) or name.upper() in _FORBIDDEN_NAMES:
        return False
    return name in facts.env_names and name not in facts.base_names and name not in env


def _names_model(argv: tuple[str, ...], env: Mapping[str, str], path: str) -> bool:
    """Tell whether the verified model's path appears verbatim, alone or after an "="."""
    return any(
        part in (path, part.partition("=")[0] + "=" + path) for part in (*argv[1:], *env.values())
    )


def _names_channel(
    argv: tuple[str, ...], env: Mapping[str, str], channel: UnixChannel | TcpChannel
) -> bool:
    """Tell whether the channel that the core chose appears; the sockets are read back as well."""
    wanted = channel.path if isinstance(channel, UnixChannel) else str(channel.port)
    return any(
        part == wanted or part.endswith(("=" + wanted, ":" + wanted))
        for part in (*argv[1:], *env.values())
    )


def _normal(path: str, facts: PlanFacts) -> str | None:
    """Return an absolute path in the form in which paths are compared; None for any other path."""
    if not facts.windows:
        return path if posixpath.isabs(path) else None
    absolute = ntpath.splitdrive(path)[0] and ntpath.isabs(path)
    return ntpath.normcase(path).replace("\\", "/") if absolute else None


def _inside(path: object, facts: PlanFacts) -> bool:
    text, folder = plain_text(path), _normal(facts.data_dir, facts)
    normal = None if text is None else _normal(text, facts)
    if normal is None or folder is None:
        return False
    return normal == posixpath.normpath(normal) and normal.startswith(folder + "/")


def _may_read(path: str, facts: PlanFacts) -> bool:
    """Tell whether isolation may leave it readable: it must not contain the person's state."""
    normal, folder = _normal(path, facts), _normal(facts.data_dir, facts)
    if normal is None or folder is None or normal != posixpath.normpath(normal):
        return False
    return not f"{folder}/".startswith(f"{normal.rstrip('/')}/")


def _routes(value: object, allowed: tuple[Route, ...]) -> tuple[Route, ...] | None:
    if type(value) is not tuple or not 0 < len(value) <= len(allowed):
        return None
    if any(type(route) is not Route for route in value):
        return None
    asked = {(route.method, route.path) for route in value if type(route.path) is str}
    routes = tuple(route for route in allowed if (route.method, route.path) in asked)
    return routes if len(routes) == len(value) else None
