from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.source import (
    HttpsUrl,
    SourceUrl,
    admit_source,
    check_source_url,
    parse_https_url,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

ALLOWED = ["https://models.example.org/ours/"]

anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
# Text near the grammar finds more than random text does.
url_like = st.lists(
    st.sampled_from(
        [
            "https:",
            "//",
            "/",
            "models.example.org",
            "ours",
            "..",
            ".",
            "%2e",
            "%2F",
            "@",
            ":443",
            "?",
            "#",
            "\\",
            "[::1]",
            "127.1",
            "é",
            "x",
            ":0",
            "HTTPS://",
            "\n",
            "\x00",
        ]
    ),
    max_size=12,
).map("".join)


@given(url=anything | url_like, allowed=anything | st.lists(anything | url_like))
def test_total_and_deterministic(url: object, allowed: object) -> None:
    first = check_source_url(url, allowed)
    assert first == check_source_url(url, allowed)
    assert first.ok == (first.reason is Reason.OK)


@given(url=url_like)
def test_what_parses_is_written_in_one_way(url: str) -> None:
    parsed = parse_https_url(url)
    if isinstance(parsed, HttpsUrl):
        assert parse_https_url(parsed.text) == HttpsUrl(
            parsed.host, parsed.port, parsed.path or "/", parsed.query
        )


@given(url=url_like)
def test_what_is_admitted_lies_inside_the_allowed_folder(url: str) -> None:
    admitted = admit_source(url, ALLOWED)
    if isinstance(admitted, SourceUrl):
        assert (admitted.host, admitted.port) == ("models.example.org", 443)
        assert admitted.path == "/ours" or admitted.path.startswith("/ours/")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://models.example.org/ours/m.gguf", Reason.OK),
        ("https://MODELS.example.org:443/ours/m.gguf?x=1#y", Reason.OK),
        ("https://models.example.org/ours", Reason.OK),
        ("http://models.example.org/ours/m.gguf", Reason.SCHEME_NOT_ALLOWED),
        ("https://models.example.org/oursx/m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org:8443/ours/m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org./ours/m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://u@models.example.org/ours/m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org/ours/../m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org/ours/%2e%2e/m.gguf", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org/ours/a%5Cb", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org/ours/a%00b", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org\\@evil.example/ours/", Reason.SOURCE_NOT_ALLOWED),
        ("https://models.example.org/ours/\nx", Reason.MALFORMED_SPEC),
        ("https://models.example.org/ours/x\n", Reason.MALFORMED_SPEC),
        ("https://models.example.org/ours/%zz", Reason.MALFORMED_SPEC),
        ("https://models.example.org:0443/ours/", Reason.MALFORMED_SPEC),
        ("https://models.example.org:65536/ours/", Reason.MALFORMED_SPEC),
        ("https:models.example.org/ours/", Reason.MALFORMED_SPEC),
        ("https://127.1/", Reason.MALFORMED_SPEC),
        ("https://0x7f.0.0.1/", Reason.MALFORMED_SPEC),
        ("https://2130706433/", Reason.MALFORMED_SPEC),
        ("https://[::ffff:127.0.0.1]/", Reason.MALFORMED_SPEC),
        ("https://-models.example.org/", Reason.MALFORMED_SPEC),
        ("https://models..example.org/", Reason.MALFORMED_SPEC),
        ("https://models.example.org/" + "x" * 8192, Reason.MALFORMED_SPEC),
        ("", Reason.MALFORMED_SPEC),
    ],
)
def test_answers(url: str, reason: Reason) -> None:
    assert check_source_url(url, ALLOWED).reason is reason


def test_ipv6_has_one_spelling() -> None:
    admitted = admit_source("https://[0:0:0:0:0:0:0:1]/m", ["https://[::1]/"])
    assert isinstance(admitted, SourceUrl)
    assert admitted.text == "https://[::1]/m"


@pytest.mark.parametrize("entry", ["", "/", "https://", "https://*/", "h", None, 5, {}, "*"])
def test_an_entry_that_is_no_address_covers_nothing(entry: object) -> None:
    assert not check_source_url("https://models.example.org/m", [entry]).ok


@pytest.mark.parametrize("suffix", ["?x", "?", "#x", "#"])
def test_an_entry_with_query_or_fragment_covers_nothing(suffix: str) -> None:
    allowed = ["https://models.example.org/" + suffix]
    assert not check_source_url("https://models.example.org/m", allowed).ok


def test_one_good_entry_is_enough() -> None:
    assert check_source_url("https://models.example.org/ours/m", (None, *ALLOWED)).ok


def test_only_the_rule_makes_the_proof() -> None:
    with pytest.raises(TypeError):
        SourceUrl("https://evil.example/", "evil.example", 443, "/")


def test_a_refusal_repeats_nothing_of_the_input() -> None:
    verdict = admit_source("https://secret:token@models.example.org/", ALLOWED)
    assert isinstance(verdict, Verdict)
    assert "token" not in repr(verdict)
