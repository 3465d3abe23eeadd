"""What every rule of the folder promises, held for each public function by the same test.

Total: whatever it is given, it answers. Deterministic: the same question has the same answer.
Closed: a refusal is one of those made once for each reason, so nothing of what was refused can
be in it.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion_core import decisions, providers
from companion_core.decisions import admission, availability, custody, guard, lanes, rate
from companion_core.decisions.oauth.authorization import ErrorCode, ServerError
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

PREFIX = f"{decisions.__name__}."
MODULES = {
    found.name.removeprefix(PREFIX): importlib.import_module(found.name)
    for found in pkgutil.walk_packages(decisions.__path__, PREFIX)
}
# Who calls these has checked already: a wrong call is a fault of the program, and raises.
NOT_FOR_INPUT = {
    *("admission.count_one_less", "admission.count_one_more", "admission.create_admission"),
    *("admission.record_completion", "admission.record_dequeued"),
    *("admission.record_in_flight", "admission.record_queued", "verdict.refuse"),
    "model_files.in_order",
}
RULES: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": function
    for module, code in MODULES.items()
    for name, function in vars(code).items()
    if name in getattr(code, "__all__", ())
    and inspect.isfunction(function)
    and function.__module__ == code.__name__
    and f"{module}.{name}" not in NOT_FOR_INPUT
}

# --- any argument -------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.binary(max_size=20)
    | st.builds(Secret, st.text(st.characters(codec=None), max_size=20))
    | st.sampled_from(
        [10**400, -(10**400), "https://a.example/m", "127.0.0.1:80", "ready", "a" * 43]
    )
)
NAMES = st.sampled_from(["host", "origin", "state", "iss", "error", "code", "expires_at", "token"])
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
# Values of the right type with anything in their fields.
LOOKALIKES = st.sampled_from(
    [
        admission.AdmissionSnapshot,
        availability.AvailabilityFacts,
        custody.SessionMeta,
        lanes.LaneCapabilities,
        lanes.LanePreferences,
        providers.ResourceLimits,
        providers.ResourceObservation,
        providers.SpawnPlan,
    ]
).flatmap(
    lambda kind: st.builds(kind, **{field.name: SCALARS for field in dataclasses.fields(kind)})
)
ANYTHING = JUNK | LOOKALIKES
OF_TYPE: Mapping[Any, st.SearchStrategy[Any]] = {
    object: ANYTHING,
    Any: ANYTHING,
    Verdict: st.sampled_from([OK, *(refuse(reason) for reason in Reason if reason != "ok")]),
    rate.RateWindow | None: st.none()
    | st.builds(rate.RateWindow, st.integers(1, 60), st.integers(1, 5)),
    guard.RateBudgets: st.builds(
        lambda most: guard.RateBudgets(rate.RateWindow(60, most), rate.RateWindow(60, most)),
        st.integers(1, 5),
    ),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint in OF_TYPE:
        return OF_TYPE[hint]
    if typing.get_origin(hint) in {Iterable, Sequence}:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=3)
    return st.from_type(hint)


def arguments_of(
    function: Callable[..., Any],
) -> st.SearchStrategy[tuple[tuple[Any, ...], dict[str, Any]]]:
    hints = typing.get_type_hints(function)
    by_place, by_name = [], {}
    for parameter in inspect.signature(function).parameters.values():
        values = values_of(hints[parameter.name])
        if parameter.kind is parameter.KEYWORD_ONLY:
            by_name[parameter.name] = values
        else:
            by_place.append(values)
    return st.tuples(st.tuples(*by_place), st.fixed_dictionaries(by_name))


def is_closed(answer: Any) -> bool:
    """Tell whether an answer that refuses consists of members of closed lists alone."""
    if not isinstance(answer, Verdict) or answer.ok:
        return True
    if type(answer) is ServerError:
        known = answer.error_code is None or type(answer.error_code) is ErrorCode
        return known and type(answer.reason) is Reason
    return type(answer) is Verdict and answer == refuse(answer.reason)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_total_deterministic_and_closed(rule: str) -> None:
    function = RULES[rule]

    @settings(max_examples=50)
    @given(arguments_of(function))
    def ask(drawn: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        again, named_again = copy.deepcopy(drawn)
        positional, named = drawn
        answer = function(*positional, **named)
        assert answer == function(*again, **named_again)
        assert is_closed(answer)

    ask()


def test_every_module_of_rules_is_held() -> None:
    held = {rule.rpartition(".")[0] for rule in RULES}
    types_only = {"evidence", "manifest_kind", "oauth", "verdict"}
    of_checked_values = {"model_files"}
    assert set(MODULES) - held == types_only | of_checked_values


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"oauth"}))
def test_every_module_begins_with_its_rules(module: str) -> None:
    first = inspect.getdoc(MODULES[module]) or ""
    assert first.startswith(("Rules: ", "Rules for this file: ", "Rules for this folder.")), first
