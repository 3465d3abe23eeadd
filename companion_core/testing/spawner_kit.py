"""Conformance of a spawner: the core would accept its plans. Nothing is started."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.decisions.spawn_plan import check_env_name
from companion_core.decisions.verdict import Verdict
from companion_core.plugin_host import (
    EMBEDDED,
    PLUGIN_REASONS,
    Role,
    rebuild_binaries,
    snapshot_provider,
)
from companion_core.providers import CannotPlan, RuntimeBinary, SpawnPlan, SpawnRequest
from companion_core.testing.plan_places import foreign_addresses, hidden_interpreter
from companion_core.testing.pure_calls import watch_effects
from companion_core.testing.rulebook import Rulebook, Untried, type_name
from companion_core.testing.spawn_requests import TCP, UNIX, accepted_plan, spawn_request

__all__ = ["SPAWNER_RULES", "SpawnerAbilities", "check_spawner"]

SPAWNER_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "channels, formats and names are frozensets of text; locate and plan are methods",
        2: "locate returns RuntimeBinary values with a path that is absolute or embedded",
        3: "plan returns a SpawnPlan, or raises CannotPlan with a reason that a plugin may give",
        4: "the core accepts the plan unchanged",
        5: "each declared form and channel is planned, and at least one is",
        6: "plan is pure: equal requests have equal plans, and it writes nothing, starts nothing "
        "and connects to nothing",
        7: "any value of a declared option is planned or refused with a reason",
        8: "the chat template of the manifest reaches the plan, or is declined",
        9: "a model of several files is planned or declined",
        10: "a declared name of the environment steers no loader, and holds the core's key "
        "if it names a secret",
        11: "on TCP the plan names the channel's host, and it names no other address",
        12: "the interpreter of a program that is a script is readable under isolation",
    }
)

_OPTION_VALUES: Final[tuple[str | float, ...]] = (
    "",
    "\x00",
    "a" * 4096,
    -(10**9),
    10**12,
    0.5,
    float("inf"),
    True,
    False,
)
_BOOK: Final = Rulebook("spawner", SPAWNER_RULES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnerAbilities:
    """Which optional parts a spawner supports.

    Attributes:
        forms: of {"embedded", "program"}, those it has to plan; empty accepts either.
        chat_template: it uses the template of the manifest.
        open_backend: on loopback TCP it has no key; the person has to accept that.
        embedded_modules: the modules of its distribution; None skips the comparison.
    """

    forms: frozenset[str] = frozenset()
    chat_template: bool = True
    open_backend: bool = False
    embedded_modules: frozenset[str] | None = None


def check_spawner(provider: Any, abilities: SpawnerAbilities | None = None) -> tuple[Untried, ...]:
    """Check `provider` against `SPAWNER_RULES`.

    Returns:
        what could not be tried on this machine.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected.
    """
    able = SpawnerAbilities() if abilities is None else abilities
    snapshot = snapshot_provider(Role.SPAWN, provider)
    _BOOK.expect(1, not isinstance(snapshot, str), seen=f"{snapshot}", expected="a Spawner")
    found = _check_locate(provider)
    with tempfile.TemporaryDirectory() as folder:
        places = {"private_dir": f"{folder}/private", "data_dir": f"{folder}/data"}
        for place in places.values():
            Path(place).mkdir()
        planned = dict(_planned(provider, able, places))
        _BOOK.expect(5, bool(planned), seen="none", expected="a plan for one form and channel")
        for request in planned.values():
            _check_pure(provider, request)
            _check_options(provider, able, request)
            _check_template(provider, able, request)
            _check_files(provider, able, request)
        written = sorted(path.name for path in Path(folder).rglob("*"))
        _BOOK.expect(6, written == ["data", "private"], seen=f"{written}", expected="no file")
        untried = _check_scripts(provider, able, found, planned.values())
    _check_names(provider, able, planned.values())
    return untried


def _check_locate(provider: Any) -> tuple[RuntimeBinary, ...]:
    answer = _BOOK.ask(2, provider.locate)
    found = rebuild_binaries(answer)
    if found is None:
        expected = "a list or tuple of RuntimeBinary"
        raise _BOOK.broken(2, seen=f"{answer!r}", expected=expected)
    return found


def _planned(
    provider: Any, able: SpawnerAbilities, places: Mapping[str, str]
) -> Iterator[tuple[str, SpawnRequest]]:
    """Yield the requests that the spawner plans, by form and channel."""
    channels = {"unix": UNIX, "tcp": TCP}
    for form, channel in itertools.product(("embedded", "program"), sorted(provider.channels)):
        request = spawn_request(embedded=form == "embedded", channel=channels[channel], **places)
        plan = _plan(provider, able, request)
        declared = form in able.forms
        if declared or plan is not None:
            name = f"{form} on {channel}"
            _BOOK.expect(5, plan is not None, seen="CannotPlan", expected=f"a plan for {name}")
            yield name, request


def _plan(provider: Any, able: SpawnerAbilities, request: SpawnRequest) -> SpawnPlan | None:
    """Return the spawner's plan as the core accepts it; None if the spawner declines."""
    answer = _ask_plan(3, provider, request, may_raise=(CannotPlan,))
    if isinstance(answer, CannotPlan):
        allowed = answer.reason in PLUGIN_REASONS[CannotPlan]
        _BOOK.expect(3, allowed, seen=f"{answer.reason!r}", expected="a reason for CannotPlan")
        return None
    _BOOK.expect(3, type(answer) is SpawnPlan, seen=type_name(answer), expected="SpawnPlan")
    accepted = accepted_plan(
        provider,
        answer,
        request,
        embedded_modules=able.embedded_modules,
        open_backend=able.open_backend,
    )
    if isinstance(accepted, Verdict):
        seen = ": ".join(filter(None, [accepted.reason, accepted.about])) + f" for {answer}"
        raise _BOOK.broken(4, seen=seen, expected="an allowed plan")
    foreign = foreign_addresses(accepted, request.channel)
    _BOOK.expect(11, not foreign, seen=", ".join(foreign), expected=f"{request.channel}")
    return accepted


def _ask_plan(
    rule: int, provider: Any, request: SpawnRequest, *, may_raise: tuple[type, ...] = ()
) -> Any:
    """Return the spawner's answer; whatever it does beside answering breaks rule 6."""
    effects: list[str] = []

    def plan() -> Any:
        with watch_effects() as seen:
            try:
                return provider.plan(request)
            finally:
                effects.extend(seen)

    answer = _BOOK.ask(rule, plan, may_raise=may_raise)
    _BOOK.expect(6, not effects, seen=", ".join(effects), expected="nothing but the plan")
    return answer


def _check_pure(provider: Any, request: SpawnRequest) -> None:
    first, second = (_ask_plan(6, provider, request) for _ in range(2))
    _BOOK.expect(6, first == second, seen=f"{first} and {second}", expected="one plan")


def _check_options(provider: Any, able: SpawnerAbilities, request: SpawnRequest) -> None:
    for name, value in itertools.product(sorted(provider.option_names), _OPTION_VALUES):
        options: dict[str, str | int | float | bool] = {name: value}
        asked = replace(request, options=MappingProxyType(options))
        try:
            _plan(provider, able, asked)
        except AssertionError as error:
            seen = f"{name}={value!r}: {error}"
            raise _BOOK.broken(7, seen=seen, expected="a plan or CannotPlan") from error


def _check_template(provider: Any, able: SpawnerAbilities, request: SpawnRequest) -> None:
    if not able.chat_template:
        return
    one, other = (
        _plan(provider, able, replace(request, chat_template=text))
        for text in ("{{ a }}", "{{ b }}")
    )
    unlike = one is None or other is None or one != other
    _BOOK.expect(8, unlike, seen="one plan for two templates", expected="two")


def _check_files(provider: Any, able: SpawnerAbilities, request: SpawnRequest) -> None:
    second = replace(request.model_files[0], name="tiny-2.gguf", path="/proc/self/fd/8")
    try:
        _plan(provider, able, replace(request, model_files=(*request.model_files, second)))
    except AssertionError as error:
        raise _BOOK.broken(9, seen=f"{error}", expected="a plan or CannotPlan") from error


def _check_scripts(
    provider: Any,
    able: SpawnerAbilities,
    found: Sequence[RuntimeBinary],
    requests: Iterable[SpawnRequest],
) -> tuple[Untried, ...]:
    programs = [binary.path for binary in found if binary.path != EMBEDDED]
    asked = [request for request in requests if not request.embedded]
    if asked and not programs:
        return (Untried(what="rule 12: locate finds no program on this machine"),)
    for request, program in itertools.product(asked, programs):
        plan = _plan(provider, able, replace(request, binary=program))
        if plan is not None:
            hidden = hidden_interpreter(program, plan)
            seen = f"{program} is run by {hidden}"
            _BOOK.expect(12, not hidden, seen=seen, expected="its folder in read_paths")
    return ()


def _check_names(provider: Any, able: SpawnerAbilities, requests: Any) -> None:
    keys = {
        plan.backend_key_env
        for request in requests
        if (plan := _plan(provider, able, request)) is not None
    }
    for name in sorted(provider.env_names - keys):
        _BOOK.expect(10, check_env_name(name).ok, seen=name, expected="an ordinary name")
