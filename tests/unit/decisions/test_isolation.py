from __future__ import annotations

import pytest

from companion_core.decisions.isolation import PROMISES, TIERS, Promise, Tier, choose_tier
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

NO = Verdict(ok=False, reason=Reason.ISOLATION_UNAVAILABLE)
BOTH = frozenset({Tier.BUBBLEWRAP, Tier.LANDLOCK})


@pytest.mark.parametrize(
    ("policy", "platform", "working", "expected"),
    [
        ("best", "linux", BOTH, Tier.BUBBLEWRAP),
        ("best", "linux", {Tier.LANDLOCK}, Tier.LANDLOCK),
        ("best", "linux", set(), Tier.NONE),
        ("best", "darwin", {Tier.SANDBOX_EXEC}, Tier.SANDBOX_EXEC),
        ("best", "darwin", BOTH, Tier.NONE),
        ("best", "plan9", BOTH, Tier.NONE),
        ("required", "linux", BOTH, Tier.BUBBLEWRAP),
        ("required", "linux", {Tier.LANDLOCK}, NO),
        ("required", "linux", set(), NO),
        ("required", "win32", {Tier.JOB_OBJECT}, Tier.JOB_OBJECT),
        ("required", "plan9", set(Tier), NO),
        ("none", "linux", BOTH, NO),
        (None, "linux", BOTH, NO),
        ("", "linux", BOTH, NO),
    ],
)
def test_the_best_that_works_or_the_systems_best(policy, platform, working, expected) -> None:
    assert choose_tier(policy, platform, frozenset(working)) == expected


def test_every_tier_says_what_it_promises_and_none_promises_the_least() -> None:
    assert set(PROMISES) == set(Tier)
    for tiers in TIERS.values():
        for tier in tiers:
            assert PROMISES[Tier.NONE] <= PROMISES[tier]
            assert PROMISES[tier] <= PROMISES[tiers[0]]
    assert Promise.LIFETIME in PROMISES[Tier.NONE]
