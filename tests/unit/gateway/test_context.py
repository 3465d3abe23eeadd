"""What the gateway's parts share: the model of the moment, the policy, and what is refused."""

from __future__ import annotations

import json

import gateway_parts as parts
import pytest

from companion_core.errors import Reason, UsageError
from companion_core.gateway import GatewaySettings
from companion_core.gateway.context import GatewayContext
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit


def make_context(**settings) -> GatewayContext:
    known = {"token": Secret(parts.TOKEN), "model_id": "old", "port": 1234}
    return GatewayContext(GatewaySettings(**known | settings), parts.Conditions(), parts.Clock())


def test_another_model_is_named_everywhere_at_once() -> None:
    context = make_context()
    context.name_model("new")
    assert context.settings.model_id == "new"
    assert context.settings.port == 1234
    for close in (False, True):
        listed, one = (
            json.loads((context.models_response(path, close=close) or b"").split(b"\r\n\r\n", 1)[1])
            for path in ("/v1/models", "/v1/models/new")
        )
        assert listed["data"] == [one]
        assert one["id"] == "new"
        assert context.models_response("/v1/models/old", close=close) is None


def test_a_short_token_is_refused_and_no_host_is_admitted_before_the_port_is_taken() -> None:
    with pytest.raises(UsageError) as raised:
        make_context(token=Secret("t" * 42))
    assert raised.value.reason is Reason.SECRET_INVALID
    assert make_context().policy.hosts == frozenset()


@pytest.mark.parametrize(
    "bound", ["requests_per_minute", "strangers_per_minute", "max_in_flight", "queue_bound"]
)
def test_a_bound_that_is_not_positive_is_refused(bound: str) -> None:
    with pytest.raises(UsageError) as raised:
        make_context(**{bound: 0})
    assert raised.value.reason is Reason.CONFIGURATION_INVALID


def test_without_a_backend_nothing_passes_the_gate() -> None:
    context = make_context()
    assert context.gate(parts.OK).reason is Reason.NOT_READY
