"""Which proxy the doorway takes for which host, as far as that touches nothing."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from companion_core.decisions.proxy import Proxy
from companion_core.egress import tunnel
from companion_core.egress.live import LiveEgress
from companion_core.egress.transport_failure import ProxyFailed
from companion_core.transfer_fault import TransferFault

pytestmark = pytest.mark.security


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the proxies that the doorway takes, one for each connection."""
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    seen: list[Any] = []

    def open_tunnel(proxy: Proxy | None, *_: Any, **__: Any) -> None:
        seen.append(proxy)

    monkeypatch.setattr(tunnel, "open_tunnel", open_tunnel)
    return seen


def reach(host: str) -> None:
    context = ssl.create_default_context()
    LiveEgress().connect_tcp(host, 443, context=context, timeout=1)


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_is_used_for_the_network_and_never_for_loopback(
    monkeypatch: pytest.MonkeyPatch, reached: list[Any], name: str
) -> None:
    monkeypatch.setenv(name, "http://proxy.example:3129")
    reach("models.example.org")
    for host in ("127.0.0.1", "localhost", "::1"):
        reach(host)
    assert reached == [Proxy(scheme="http", host="proxy.example", port=3129), None, None, None]
    assert LiveEgress().connect_loopback(80, timeout=1).host == "127.0.0.1"


def test_what_cannot_be_read_as_a_proxy_is_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, reached: list[Any]
) -> None:
    monkeypatch.setenv("https_proxy", "ftp://u:secret@proxy.example")
    with pytest.raises(ProxyFailed) as caught:
        reach("models.example.org")
    assert caught.value.fault is TransferFault.PROXY_UNSUPPORTED
    assert "secret" not in str(caught.value)
    assert reached == []


def test_the_systems_own_exceptions_hold_where_the_environment_names_no_proxy(
    monkeypatch: pytest.MonkeyPatch, reached: list[Any]
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://p.example:1"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: host == "in.example")
    for host in ("in.example", "out.example"):
        reach(host)
    assert reached == [None, Proxy(scheme="http", host="p.example", port=1)]
