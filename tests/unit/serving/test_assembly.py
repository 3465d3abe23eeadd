from __future__ import annotations

import pytest

from companion_core.config.reader import parse_config
from companion_core.decisions.isolation import Tier
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, Reason
from companion_core.runtime.isolation import TierState
from companion_core.serving import assembly

pytestmark = pytest.mark.unit

PUBLIC_KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8032, section 7.1


def chosen(monkeypatch, policy: str, *working: Tier) -> Tier:
    states = tuple(
        TierState(tier, works=tier in working, detail="")
        for tier in (Tier.BUBBLEWRAP, Tier.LANDLOCK)
    )
    monkeypatch.setattr(assembly, "probe_isolation", lambda _egress: states)
    monkeypatch.setattr(assembly.sys, "platform", "linux")
    document = {
        "manifest": {"url": "file:///m.json", "trusted_keys": [PUBLIC_KEY]},
        "model": {"id": "tiny"},
        "runtime": {"isolation": policy},
    }
    return assembly._choose_tier(parse_config(document), RefusingEgress())


def test_the_configured_policy_meets_what_works_here(monkeypatch) -> None:
    both = (Tier.BUBBLEWRAP, Tier.LANDLOCK)
    assert chosen(monkeypatch, "best", *both) is Tier.BUBBLEWRAP
    assert chosen(monkeypatch, "best", Tier.LANDLOCK) is Tier.LANDLOCK
    assert chosen(monkeypatch, "best") is Tier.NONE
    assert chosen(monkeypatch, "required", *both) is Tier.BUBBLEWRAP
    with pytest.raises(CompanionError) as caught:
        chosen(monkeypatch, "required", Tier.LANDLOCK)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
