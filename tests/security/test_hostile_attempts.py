"""Attacker: a runtime that was taken over and tries everything; the docs have a table of it.

`tests/support/hostile_attempts.py` has the attempts, `tools/write_isolation_table.py` writes the
table. Nothing may get through that the table says does not, in any tier, as root or not.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_attempts
import pytest

from companion_core.decisions.isolation import Tier

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]

_TOOLS = Path(__file__).parents[2] / "tools"
LEAST = 60


@pytest.fixture(scope="module")
def table() -> Any:
    sys.path.insert(0, str(_TOOLS))
    try:
        return importlib.import_module("write_isolation_table")
    finally:
        sys.path.remove(str(_TOOLS))


def test_the_table_has_every_attempt(table: Any) -> None:
    assert set(table.read_page()) == set(hostile_attempts.ATTEMPTS)
    assert len(hostile_attempts.ATTEMPTS) >= LEAST


def test_the_table_says_of_both_tiers_that_nothing_gets_through(table: Any) -> None:
    for cells in table.read_page().values():
        assert cells["bubblewrap"] == cells["Landlock and seccomp"] == "no"


@pytest.mark.parametrize("user", ["root", "an ordinary user"])
@pytest.mark.parametrize(
    "column",
    [
        "bubblewrap",
        "Landlock and seccomp",
        "the same, no namespaces to be had",
        "no tier",
        "no tier, no namespaces to be had",
    ],
)
def test_nothing_gets_through_that_the_table_says_does_not(
    table: Any,
    column: str,
    user: str,
    require_real: Callable[[str, bool], None],
    require_tier: Callable[[Tier], None],
) -> None:
    number = table.USERS[user]
    require_real("root, who can be any user", os.geteuid() in {0, number})
    tier = Tier(table.COLUMNS[column][0])
    require_tier(tier)
    results = table.attempt_all(column, number)
    assert "not made" not in results.values()
    allowed = {"**yes**", "as root" if number == 0 else "as an ordinary user"}
    written = table.read_page()
    through = {name for name, said in results.items() if said == table.THROUGH}
    assert {name for name in through if written[name][column] not in allowed} == set()
    if tier is Tier.NONE:  # the attempts are real: without a tier they have their effect
        assert len(through) > len(results) / 3
