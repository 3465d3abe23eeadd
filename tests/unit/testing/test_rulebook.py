"""What the conformance kits share: a call of a provider cannot escape its rule."""

from __future__ import annotations

import threading

import pytest
from kit_checks import assert_breaks

from companion_core.testing.rulebook import Rulebook

pytestmark = pytest.mark.unit

RULES = {2: "locate answers"}


def test_a_call_that_hangs_breaks_the_rule_it_hangs_in():
    book = Rulebook("spawner", RULES, call_seconds=0.2)
    never = threading.Event()
    try:
        assert_breaks(2, RULES, "spawner", lambda: book.ask(2, never.wait, 30))
    finally:
        never.set()


def test_a_call_that_comes_back_in_time_gives_its_answer():
    assert Rulebook("spawner", RULES).ask(2, int, "3") == 3
