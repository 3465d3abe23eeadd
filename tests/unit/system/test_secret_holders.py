"""Every value of the package that can hold a secret holds it as `Secret`, and shows none of it.

A field is looked at when its type is `Secret` or its name sounds like one. What sounds so and is
none stands in `NO_SECRETS`, with the reason.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

import companion_core
from companion_core.decisions.guard import GuardPolicy
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

PLANTED = "planted-" + "s" * 35
SOUNDS_SECRET = re.compile(
    r"token|secret|key|passw|passphrase|credential|authorization|bearer|cookie|verifier|nonce|pem\b",
    re.IGNORECASE,
)
# Each may sound like a secret in a field or an argument of a constructor, and is none.
NO_SECRETS = {
    "authority.custody.Session.token_type": "Bearer",
    "config.proposal.Found.key_file": "the path of a file",
    "config.sections.ManifestConfig.trusted_keys": "public keys",
    "config.sections.ModelsConfig.key_file": "the path of a file",
    "connect.changes.Entry.key": "a name in a document",
    "connect.connections.Wanted.token_command": "the command that prints it",
    "connect.json_text._Node.keys": "names in a document",
    "connect.programs.SettingsFile.key_at": "where in a document it stands",
    "connect.programs.Target.token_command": "the command that prints it",
    "connect.record.Record.key": "the name of a key",
    "decisions.custody.SessionMeta.token_type": "Bearer",
    "decisions.oauth.metadata.ServerMetadata.authorization_endpoint": "an address",
    "decisions.oauth.metadata.ServerMetadata.device_authorization_endpoint": "an address",
    "decisions.oauth.metadata.ServerMetadata.token_endpoint": "an address",
    "gateway.http.head.RequestHead.token": "what a client shows, right or wrong; see its repr",
    "plugin_trial.trial.Trial.keychain": "the name of the configured one",
    "plugin_trial.trial.Trial.keychain_options": "what a person wrote into a file; see its repr",
    "providers.SpawnPlan.backend_key_env": "the name of a variable",
}
# Modules that a process of their own runs by path or, as PyInstaller its hook, by file.
NOT_IMPORTED = {"companion_core.__main__", "companion_core.pyinstaller.hook-companion_core"}


def _modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(companion_core.__path__, "companion_core."):
        if found.name not in NOT_IMPORTED:
            yield importlib.import_module(found.name)


CLASSES = {
    f"{module.__name__.removeprefix('companion_core.')}.{value.__qualname__}": value
    for module in _modules()
    for value in vars(module).values()
    if isinstance(value, type) and value.__module__ == module.__name__
}
DATACLASSES = {name: kind for name, kind in CLASSES.items() if dataclasses.is_dataclass(kind)}
SLOTTED = {
    name: kind
    for name, kind in CLASSES.items()
    if name not in DATACLASSES
    and "__slots__" in vars(kind)
    and not issubclass(kind, Secret | tuple | BaseException)
}


def _hints(kind: type, of: Any = None) -> dict[str, Any]:
    names = {**vars(sys.modules[kind.__module__]), **vars(typing), "Secret": Secret}
    try:
        return typing.get_type_hints(of or kind, names)
    except NameError:  # a type that is imported for the type checker alone
        return {}


def _parts(hint: Any) -> set[Any]:
    if isinstance(hint, list):  # the arguments of a callable
        return set().union(*map(_parts, hint))
    return {hint}.union(*map(_parts, typing.get_args(hint)))


def _holds_secrets(hint: Any) -> bool:
    return Secret in _parts(hint)


def _holds_text(hint: Any) -> bool:
    """Tell whether a value of this type could be or hold a text that is a secret."""
    for part in _parts(hint):
        if part in {str, bytes, bytearray, object, Any, dict, tuple, list}:
            return True
        if isinstance(part, type) and issubclass(part, str) and not issubclass(part, enum.Enum):
            return True
    return False


def _sounding(kind: type) -> Iterator[tuple[str, Any]]:
    """Give each field, slot and argument of the constructor that sounds secret, and its type."""
    hints = _hints(kind)
    made_from = _hints(kind, kind.__init__) if inspect.isfunction(kind.__init__) else {}
    names = {*hints, *made_from, *getattr(kind, "__slots__", ()), *getattr(kind, "_fields", ())}
    for name in sorted(names - {"return"}):
        if SOUNDS_SECRET.search(name):
            yield name, hints.get(name, made_from.get(name, Any))


def _is_constant(kind: type, name: str) -> bool:
    """Tell whether it is a member of an enum, or a value that every instance has."""
    return issubclass(kind, enum.Enum) or typing.get_origin(_hints(kind).get(name)) is ClassVar


def test_what_sounds_like_a_secret_is_one_or_says_why_not() -> None:
    plain = {
        f"{where}.{name}"
        for where, kind in CLASSES.items()
        for name, hint in _sounding(kind)
        if not _is_constant(kind, name) and not _holds_secrets(hint) and _holds_text(hint)
    }
    assert plain == set(NO_SECRETS)
    assert all(NO_SECRETS.values())


def test_the_known_holders_are_found() -> None:
    holders = {
        name
        for name, kind in DATACLASSES.items()
        if any(_holds_secrets(hint) for hint in _hints(kind).values())
    }
    assert holders >= {
        "authority.custody.Session",
        "decisions.guard.GuardPolicy",
        "decisions.oauth.authorization.AuthorizationCode",
        "decisions.oauth.token.TokenRequest",
        "decisions.oauth.token.TokenResponse",
        "gateway.settings.Backend",
        "gateway.settings.GatewaySettings",
        "runtime.start.listener.StartedBackend",
    }


def _planted(kind: type) -> Any:
    """Return an instance with a secret wherever one can be, however it may be made otherwise."""
    made = object.__new__(kind)
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints.get(field.name, Any)
        many = "Mapping" in str(hint), "tuple" in str(hint)
        secret = Secret(PLANTED)
        shapes: dict[Any, Any] = {(True, False): {"a": secret}, (False, True): (secret,)}
        value = shapes.get(many, secret) if _holds_secrets(hint) else "plain"
        object.__setattr__(made, field.name, value)
    if isinstance(made, GuardPolicy):
        object.__setattr__(made, "expected", PLANTED.encode())
    return made


def _shown(value: Any) -> str:
    error = ValueError(value)
    raised = "".join(traceback.format_exception(error)) + repr(error.args)
    return f"{value!r} {value!s} {value} {format(value)} {[value]} {raised}"


@pytest.mark.parametrize("name", DATACLASSES)
def test_no_value_shows_the_secret_it_holds(name: str) -> None:
    value = _planted(DATACLASSES[name])
    shown = _shown(value)
    shown += repr(dataclasses.asdict(value)) + repr(dataclasses.astuple(value))
    assert "planted" not in shown


@pytest.mark.parametrize("name", SLOTTED)
def test_no_other_object_shows_what_it_holds(name: str) -> None:
    kind = SLOTTED[name]
    made = object.__new__(kind)
    for cls in kind.__mro__:
        slots = vars(cls).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if not slot.startswith("__"):
                object.__setattr__(made, slot, PLANTED)
    assert "planted" not in _shown(made)


def test_a_planted_leak_is_found() -> None:
    @dataclasses.dataclass(frozen=True)
    class Leaking:
        api_key: str

    assert [name for name, hint in _sounding(Leaking) if _holds_text(hint)] == ["api_key"]
    assert "planted" in _shown(Leaking(PLANTED))
