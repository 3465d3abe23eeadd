"""What a Location means: as other clients read it, and nothing that two could read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.redirect import name_address, read_location, resolve_redirect
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

BASE = "https://models.example.org/companion/tiny.gguf?v=1"
HERE = "https://models.example.org"


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("https://cdn.example.net/a b.gguf", "https://cdn.example.net/a%20b.gguf"),
        ("/a|b", f"{HERE}/a%7Cb"),
        ("/für", f"{HERE}/f%C3%BCr"),
        ("/x?q=ü [1]", f"{HERE}/x?q=%C3%BC%20%5B1%5D"),
        ("/a%20b%7cc", f"{HERE}/a%20b%7cc"),
        ("/100%", f"{HERE}/100%25"),
        ("/100%zz", f"{HERE}/100%25zz"),
        ("other.gguf", f"{HERE}/companion/other.gguf"),
        ("../up.gguf", f"{HERE}/up.gguf"),
        ("?v=2", f"{HERE}/companion/tiny.gguf?v=2"),
        ("//cdn.example.net/x", "https://cdn.example.net/x"),
        ("/x#part é", f"{HERE}/x"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
        ("https://bücher.example:8443/ü", "https://xn--bcher-kva.example:8443/%C3%BC"),
        (" /x ", f"{HERE}/x"),
        ("http://cdn.example.net/x", "http://cdn.example.net/x"),
        ("mailto:a@b", "mailto:a@b"),
    ],
)
def test_a_location_is_read_as_other_clients_read_it(location: str, address: str) -> None:
    assert resolve_redirect(BASE, location) == address


@pytest.mark.parametrize(
    "location",
    ["/a\r\nb", "/a\tb", "/\x7f", "https://\ud800.example/", "https://a\u2024\u2024b.example/",
     "/" + "x" * 9000, "https://[::1/x"],
)  # fmt: skip
def test_what_is_no_address(location: str) -> None:
    assert resolve_redirect(BASE, location) is None


@pytest.mark.parametrize(
    "location",
    [
        "https://models.example.org\\@evil.example/",
        "https://u:p@models.example.org/",
        "/a\\b",
        "https://models.example.org/companion/../x",
        "https://ü@models.example.org/",
    ],
)
def test_what_parsers_read_differently_is_still_refused(location: str) -> None:
    address = resolve_redirect(BASE, location)
    assert address is None or isinstance(parse_https_url(address), Verdict)


def test_bytes_that_are_no_utf8_keep_their_value() -> None:
    assert read_location("/ü".encode()) == "/ü"
    assert read_location("/ü".encode("latin-1")) == "/%FC"


def test_an_address_is_named_without_what_may_be_secret() -> None:
    assert (
        name_address("https://u:pw@cdn.example.net/x?key=secret#f") == "https://cdn.example.net/x"
    )
    assert name_address("/a\x1b[31m") == "/a?[31m"
    assert len(name_address("https://h/" + "x" * 9000)) < 210


@given(st.text())
def test_any_text_is_judged_and_nothing_is_raised(location: str) -> None:
    address = resolve_redirect(BASE, location)
    if address is None:
        return
    parsed = parse_https_url(address)
    # What is escaped once is an address, or is refused for what it means.
    if address.startswith(HERE + "/") and isinstance(parsed, Verdict):
        assert parsed.reason is Reason.SOURCE_NOT_ALLOWED
    if isinstance(parsed, HttpsUrl):
        assert resolve_redirect(BASE, parsed.text) == parsed.text
    assert name_address(location).isprintable()
