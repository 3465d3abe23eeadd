"""Which proxy a host has: curl's rules, and nothing unreadable is taken for "none"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.proxy import Proxy, choose_proxy, is_loopback, parse_proxy
from companion_core.system.secret import Secret
from companion_core.transfer_fault import TransferFault

pytestmark = pytest.mark.unit

HTTPS, ALL = "http://one.example:3128", "socks5://two.example"


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port"),
    [
        ("http://proxy.example:3128", "http", "proxy.example", 3128),
        ("proxy.example:3128", "http", "proxy.example", 3128),
        ("proxy.example", "http", "proxy.example", 80),
        ("HTTPS://Proxy.Example/", "https", "proxy.example", 443),
        ("socks5://[::1]:9", "socks5", "::1", 9),
        ("socks5h://proxy.example", "socks5h", "proxy.example", 1080),
    ],
)
def test_a_proxys_address(text: str, scheme: str, host: str, port: int) -> None:
    assert parse_proxy(text) == Proxy(scheme=scheme, host=host, port=port)


def test_credentials_are_kept_and_shown_nowhere() -> None:
    proxy = parse_proxy("http://us%40er:p%3A%C3%BC@ss@proxy.example:1")
    assert isinstance(proxy, Proxy)
    assert proxy.credentials == (Secret("us@er"), Secret("p:ü@ss"))
    assert "us" not in repr(proxy)
    only_user = parse_proxy("http://token@proxy.example")
    assert isinstance(only_user, Proxy)
    assert only_user.credentials == (Secret("token"), Secret(""))


@pytest.mark.parametrize(
    "text",
    [
        "http://user:80#pw@proxy.example", "http://user:p/w@proxy.example", "http://u:p?w@proxy.example",
        "http://proxy.example:port", "http://proxy.example:0", "http://proxy.example:99999",
        "http://a%3Ab:pw@proxy.example", "http://u:%0d%0aX:1@proxy.example", "http://u:%ff@proxy.example",
        "http://", "http://pro xy.example", "socks5://u@proxy.example", "http://a\nb",
        f"socks5://u:{'x' * 256}@proxy.example", "http://[::1", "",
    ],
)  # fmt: skip
def test_what_is_malformed(text: str) -> None:
    assert parse_proxy(text) is TransferFault.PROXY_MALFORMED


@pytest.mark.parametrize("text", ["ftp://proxy.example", "socks4://proxy.example", "socks://p"])
def test_what_is_not_spoken(text: str) -> None:
    assert parse_proxy(text) is TransferFault.PROXY_UNSUPPORTED


def test_https_comes_before_all() -> None:
    one, two = parse_proxy(HTTPS), parse_proxy(ALL)
    assert choose_proxy("h.example", 443, {"https": HTTPS, "all": ALL}) == one
    assert choose_proxy("h.example", 443, {"all": ALL, "http": HTTPS}) == two
    assert choose_proxy("h.example", 443, {"http": HTTPS}) is None
    assert choose_proxy("h.example", 443, {"https": "ftp://x"}) is TransferFault.PROXY_UNSUPPORTED


@pytest.mark.parametrize(
    ("exceptions", "host", "port"),
    [
        ("*", "h.example", 443),
        ("example.org", "example.org", 443),
        ("example.org", "a.b.example.org", 443),
        (".example.org", "a.example.org", 443),
        ("*.example.org", "a.example.org", 443),
        ("Example.ORG.", "example.org", 443),
        ("x, example.org", "example.org", 443),
        ("x example.org", "example.org", 443),
        ("example.org:8443", "example.org", 8443),
        ("192.0.2.7", "192.0.2.7", 443),
        ("192.0.2.0/24", "192.0.2.7", 443),
        ("192.0.2.7:8443", "192.0.2.7", 8443),
        ("2001:db8::1", "2001:db8::1", 443),
        ("2001:db8::/32", "2001:db8::1", 443),
        ("[2001:db8::1]:8443", "2001:db8::1", 8443),
    ],
)
def test_what_needs_no_proxy(exceptions: str, host: str, port: int) -> None:
    assert choose_proxy(host, port, {"https": HTTPS, "no": exceptions}) is None


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("", "example.org"),
        (" , ,", "example.org"),
        ("example.org", "notexample.org"),
        ("example.org:8443", "example.org"),
        ("192.0.2.0/24", "198.51.100.1"),
        ("192.0.2.0/99", "192.0.2.1"),
        ("192.0.2.0/24", "h192.0.2.example"),
        ("2001:db8::/32", "192.0.2.1"),
        (".", "example.org"),
        ("*x", "example.org"),
    ],
)
def test_what_still_needs_one(exceptions: str, host: str) -> None:
    assert choose_proxy(host, 443, {"https": HTTPS, "no": exceptions}) == parse_proxy(HTTPS)


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_loopback_has_no_proxy(host: str) -> None:
    assert is_loopback(host)
    assert choose_proxy(host, 443, {"https": "ftp://malformed"}) is None


@pytest.mark.parametrize("host", ["localhost.example", "notlocalhost", "128.0.0.1", "::2"])
def test_what_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@given(st.text(), st.text())
def test_any_text_is_judged_and_nothing_is_raised(address: str, exceptions: str) -> None:
    choose_proxy("h.example", 443, {"https": address, "no": exceptions})
    choose_proxy("192.0.2.1", 443, {"https": HTTPS, "no": exceptions})
