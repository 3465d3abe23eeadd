"""Each promise of a page names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([^|]+) \| `([^`]+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))
TENDING = ROW.findall((ROOT / "docs" / "tending.md").read_text(encoding="utf-8"))
FEWEST = 50


@pytest.mark.parametrize(("promise", "test"), [*ROWS, *TENDING])
def test_the_test_of_a_promise_exists(promise: str, test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), promise


def test_there_are_as_many_as_were_seen_broken() -> None:
    assert len(ROWS) >= FEWEST
    assert len({promise for promise, _ in ROWS}) == len(ROWS)
