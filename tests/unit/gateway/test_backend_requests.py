"""What is sent to a backend, and what is not."""

from __future__ import annotations

import pytest

from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.gateway.backend_requests import BackendRequests
from companion_core.gateway.settings import Backend
from companion_core.providers import OPENAI_ROUTES, TcpChannel

pytestmark = pytest.mark.unit


def test_a_path_that_this_backend_does_not_serve_is_refused() -> None:
    routes = tuple(route for route in OPENAI_ROUTES if route.path == "/v1/chat/completions")
    channel = TcpChannel(host="127.0.0.1", port=9)
    backend = Backend(channel=channel, served_model="m", health_path="/health", routes=routes)
    requests = BackendRequests(backend)
    assert isinstance(requests.inference("/v1/chat/completions", {"model": "m"}), bytes)
    refused = requests.inference("/v1/embeddings", {"model": "m"})
    assert isinstance(refused, Verdict)
    assert refused.reason is Reason.PATH_NOT_ALLOWED
