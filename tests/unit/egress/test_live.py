"""The doorway as far as it touches nothing: which proxy is meant for which host."""

import ssl

import pytest

from companion_core.egress.live import LiveEgress

pytestmark = pytest.mark.security


def test_a_proxy_is_used_for_the_network_and_never_for_loopback(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3129")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    egress, context = LiveEgress(), ssl.create_default_context()
    outside = egress.connect_https("models.example.org", 443, context=context, timeout=1)
    assert (outside.host, outside.port) == ("proxy.example", 3129)
    assert outside._tunnel_host == "models.example.org"
    for host in ("127.0.0.1", "localhost", "::1"):
        inside = egress.connect_https(host, 8443, context=context, timeout=1)
        assert (inside.host, inside.port) == (host, 8443)
    assert egress.connect_loopback(80, timeout=1).host == "127.0.0.1"
