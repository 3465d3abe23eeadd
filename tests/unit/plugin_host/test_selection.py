from __future__ import annotations

import itertools

import pytest

from companion_core.errors import CompanionError, PluginFault, Reason
from companion_core.plugin_host.selection import (
    Candidate,
    Role,
    RuntimeChoice,
    choose_keychain,
    choose_runtime,
)

pytestmark = pytest.mark.unit


def keychain(name: str, **facts: object) -> Candidate:
    return _candidate(name, Role.KEYCHAIN, {Role.KEYCHAIN}, facts)


def runtime(name: str, *roles: Role, **facts: object) -> Candidate:
    return _candidate(name, Role.SPAWN, set(roles or (Role.SPAWN, Role.HEALTH)), facts)


def _candidate(name: str, side: Role, roles: set[Role], facts: dict[str, object]) -> Candidate:
    reason = facts.pop("reason", Reason.OK)
    return Candidate(
        name=name,
        side=side,
        roles=frozenset(roles if reason is Reason.OK else ()),
        reason=reason,
        trusted=facts.pop("trusted", True),
        core=facts.pop("core", False),
        only_by_name=facts.pop("only_by_name", False),
    )


HTTPS = runtime("https", Role.DOWNLOAD, core=True)
PROCESS = runtime("process", Role.PROBE, core=True)
MEMORY = keychain("memory", core=True, only_by_name=True)
CORE = (HTTPS, PROCESS, MEMORY)


def refusal(choose: object, candidates: list[Candidate], configured: str | None) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        choose([*CORE, *candidates], configured)
    return caught.value


def test_a_single_trusted_plugin_is_chosen():
    assert choose_keychain([*CORE, keychain("linux")], None) == "linux"


def test_the_named_plugin_is_chosen():
    assert choose_keychain([keychain("linux"), keychain("other")], "other") == "other"


def test_the_memory_keychain_is_chosen_by_name_alone():
    assert refusal(choose_keychain, [], None).reason is Reason.PROVIDER_MISSING
    assert choose_keychain(CORE, "memory") == "memory"
    assert choose_keychain([*CORE, keychain("linux")], None) == "linux"


def test_several_are_refused_naming_them_in_any_order():
    for order in itertools.permutations([keychain("b"), keychain("a"), keychain("c")]):
        error = refusal(choose_keychain, list(order), None)
        assert (error.reason, error.detail) == (Reason.PROVIDER_AMBIGUOUS, "keychain: a, b, c")


def test_the_refusal_of_the_named_one_is_raised_itself():
    changed = keychain("linux", reason=Reason.PLUGIN_CHANGED, trusted=False)
    error = refusal(choose_keychain, [changed, keychain("other")], "linux")
    assert isinstance(error, PluginFault)
    assert (error.reason, error.plugin) == (Reason.PLUGIN_CHANGED, "linux")


def test_an_unknown_plugin_is_told():
    error = refusal(choose_keychain, [keychain("linux")], "windows")
    assert error.reason is Reason.PROVIDER_MISSING
    assert error.detail == "keychain: windows is not installed; there is linux, memory"


def test_a_misspelt_plugin_is_told_with_the_one_that_is_meant():
    error = refusal(choose_runtime, [runtime("llamacpp"), runtime("ollama")], "lamacpp")
    assert error.reason is Reason.PROVIDER_MISSING
    assert error.detail == "spawn: lamacpp is not installed; did you mean llamacpp?"
    assert "companion plugins list" in error.advice


def test_a_plugin_of_the_other_side_is_not_chosen():
    assert refusal(choose_keychain, [runtime("x")], "x").reason is Reason.PROVIDER_MISSING
    assert refusal(choose_runtime, [keychain("x")], "x").reason is Reason.PROVIDER_MISSING


def test_a_plugin_without_the_role_is_not_chosen():
    assert refusal(choose_runtime, [], "https").reason is Reason.PROVIDER_MISSING


def test_refused_plugins_are_named_when_no_other_is_left():
    refused = keychain("linux", reason=Reason.PLUGIN_EDITABLE, trusted=False)
    error = refusal(choose_keychain, [refused], None)
    assert error.reason is Reason.PROVIDER_MISSING
    assert error.detail == "keychain: linux (plugin_editable)"


def test_an_untrusted_rival_changes_nothing():
    rival = keychain("rival", reason=Reason.PLUGIN_UNTRUSTED, trusted=False)
    assert choose_keychain([rival, keychain("linux")], None) == "linux"


def test_a_trusted_plugin_that_failed_is_told():
    failed = keychain("linux", reason=Reason.PLUGIN_IMPORT_FAILED)
    assert refusal(choose_keychain, [failed], None).reason is Reason.PLUGIN_IMPORT_FAILED


def test_a_rival_does_not_win_by_the_failure_of_a_trusted_one():
    failed = keychain("linux", reason=Reason.PLUGIN_IMPORT_FAILED)
    error = refusal(choose_keychain, [failed, keychain("other")], None)
    assert error.reason is Reason.PROVIDER_AMBIGUOUS


def test_the_core_fills_what_the_runtime_does_not_have():
    assert choose_runtime([*CORE, runtime("lamp")], None) == RuntimeChoice(
        spawn="lamp", health="lamp", download="https", probe="process"
    )


def test_the_runtimes_own_come_before_the_cores():
    own = runtime("lamp", Role.SPAWN, Role.HEALTH, Role.DOWNLOAD, Role.PROBE)
    assert choose_runtime([*CORE, own], "lamp") == RuntimeChoice(
        spawn="lamp", health="lamp", download="lamp", probe="lamp"
    )


def test_another_runtimes_health_and_probe_are_never_borrowed():
    lender = runtime("lender", Role.SPAWN, Role.HEALTH, Role.PROBE)
    bare = runtime("bare", Role.SPAWN)
    error = refusal(choose_runtime, [lender, bare], "bare")
    assert (error.reason, error.detail) == (Reason.PROVIDER_MISSING, "health: bare")
    healthy = runtime("healthy")
    assert choose_runtime([*CORE, lender, healthy], "healthy").probe == "process"


def test_two_of_the_core_for_one_role_are_refused():
    second = runtime("second", Role.PROBE, core=True)
    assert (
        refusal(choose_runtime, [second, runtime("lamp")], None).reason is Reason.PROVIDER_AMBIGUOUS
    )


def test_without_any_plugin_the_provider_is_missing():
    with pytest.raises(CompanionError) as caught:
        choose_runtime([], None)
    assert (caught.value.reason, caught.value.detail) == (Reason.PROVIDER_MISSING, "spawn")
