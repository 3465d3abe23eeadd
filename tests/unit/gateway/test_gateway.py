"""Which model the gateway's list names."""

from __future__ import annotations

import json

import pytest

from companion_core.egress.refusing import RefusingEgress
from companion_core.gateway import Gateway, GatewaySettings
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit


def test_another_model_is_named_everywhere_at_once() -> None:
    settings = GatewaySettings(token=Secret("t" * 43), model_id="old", port=1234)
    gateway = Gateway(settings, object(), egress=RefusingEgress())
    gateway.name_model("new")
    assert gateway.settings.model_id == "new"
    assert gateway.settings.port == 1234
    for close in (False, True):
        _, body = gateway.models_response(close=close).split(b"\r\n\r\n", 1)
        assert [model["id"] for model in json.loads(body)["data"]] == ["new"]
