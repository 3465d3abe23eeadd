"""The child asks the selected providers, and a failing provider costs its own answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.errors import CompanionError, Reason, error_for
from companion_core.plugin_host import Chosen
from companion_core.plugin_trial.provider_answers import ask_providers
from companion_core.plugin_trial.trial import _are_answers
from companion_core.testing import FakeKeychain, FakeSpawner

pytestmark = pytest.mark.unit


class Loaded:
    def __init__(self, keychain: Any, spawner: Any) -> None:
        self._keychain, self._spawner = keychain, spawner

    def select_keychain(self, configured: str | None) -> Any:
        if isinstance(self._keychain, CompanionError):
            raise self._keychain
        return Chosen(plugin=configured or "fake", provider=self._keychain)

    def select_runtime(self, configured: str | None) -> Any:
        return SimpleNamespace(spawn=Chosen(plugin=configured or "lamp", provider=self._spawner))


def ask(keychain: Any = None, spawner: Any = None) -> dict[str, Any]:
    loaded: Any = Loaded(
        keychain or FakeKeychain(), spawner or FakeSpawner(program="/usr/bin/lamp")
    )
    answers = ask_providers(loaded, "default", runtime=None, keychain=None)
    assert _are_answers(answers), "the parent takes what the child says"
    return answers


def test_sound_providers_are_asked_and_nothing_is_left_in_the_keychain():
    keychain = FakeKeychain()
    answers = ask(keychain)
    assert answers["keychain"]["reason"] == "ok"
    assert answers["keychain"]["proved"] is True
    assert keychain.items == {}
    assert answers["runtime"]["binaries"] == [["/usr/bin/lamp", "fake", ""]]
    assert answers["runtime"]["formats"] == ["gguf"]


def test_the_value_that_a_starting_companion_writes_is_never_met():
    names = []

    class Watched(FakeKeychain):
        def set(self, account: str, secret: str) -> None:
            names.append(account)
            super().set(account, secret)

    ask(Watched())
    assert names == ["companion/default/doctor/canary"]


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"locked": True}, "keychain_locked"),
        ({"absent": True}, "keychain_absent"),
        ({"lossy": True}, "keychain_untrusted"),
        ({"changing": True}, "keychain_untrusted"),
        ({"prompting": True}, "keychain_locked"),
    ],
)
def test_a_keychain_that_cannot_be_used_says_why_and_the_runtime_is_still_asked(knobs, reason):
    answers = ask(FakeKeychain(**knobs))
    assert answers["keychain"]["reason"] == reason
    assert answers["keychain"]["proved"] is False
    assert answers["runtime"]["reason"] == "ok"


def test_a_locked_keychain_is_never_written_to():
    keychain = FakeKeychain(locked=True)
    ask(keychain)
    assert keychain.calls == 1


def test_a_role_that_nobody_fills_is_an_answer():
    answers = ask(error_for(Reason.PROVIDER_MISSING, "keychain"))
    assert (answers["keychain"]["reason"], answers["keychain"]["detail"]) == (
        "provider_missing",
        "keychain",
    )


@pytest.mark.parametrize("fault", [SystemExit, ValueError, KeyboardInterrupt])
def test_a_runtime_that_fails_costs_its_own_answer(fault):
    class Broken(FakeSpawner):
        def locate(self) -> Any:
            raise fault("a secret")

    answers = ask(spawner=Broken())
    assert answers["runtime"]["reason"] == "plugin_call_failed"
    assert "secret" not in str(answers)
    assert answers["keychain"]["reason"] == "ok"


def test_a_runtime_that_finds_nonsense_is_told():
    class Confused(FakeSpawner):
        def locate(self) -> Any:
            return "everywhere"

    assert ask(spawner=Confused())["runtime"]["reason"] == "plugin_result_invalid"
