from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secret_parts import hide

from companion_core.decisions.oauth import (
    RedirectUri,
    admit_endpoint,
    admit_redirect_uri,
    check_endpoints_of_issuer,
    code_challenge,
    constant_time_equal,
    parse_redirect_query,
    verifier_from,
)
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

REFUSED_URI = refuse(Reason.INVALID_REDIRECT_URI)
REFUSED = refuse(Reason.MALFORMED_INPUT)

# RFC 7636 appendix B.
OCTETS = bytes.fromhex("7418dfb49799e0254ffa607dd8adbbba16d4254d69d6bff05b58055853848d79")
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(st.characters(codec=None)),
    st.binary(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.text()),
)


def test_rfc_7636_appendix_b() -> None:
    assert verifier_from(OCTETS) == Secret(VERIFIER)
    assert code_challenge(Secret(VERIFIER)) == CHALLENGE


@pytest.mark.parametrize("entropy", [b"", b"x" * 31, b"x" * 97, "x" * 32, None, bytearray(32)])
def test_too_little_or_other_entropy(entropy: object) -> None:
    assert verifier_from(entropy) is REFUSED


@given(st.binary(min_size=32, max_size=96))
def test_every_entropy_makes_a_verifier(entropy: bytes) -> None:
    verifier = verifier_from(entropy)
    assert isinstance(verifier, Secret)
    text = verifier.reveal()
    assert 43 <= len(text) <= 128
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == entropy
    challenge = code_challenge(verifier)
    assert isinstance(challenge, str)
    digest = hashlib.sha256(text.encode()).digest()
    assert base64.urlsafe_b64decode(challenge + "=") == digest


@pytest.mark.parametrize(
    "verifier", ["", "a" * 42, "a" * 129, "a" * 42 + "+", "a" * 43 + "\n", "é" * 43, None, 43]
)
def test_malformed_verifiers(verifier: object) -> None:
    assert code_challenge(hide(verifier)) is REFUSED


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("abc", "abc", True),
        ("abc", "abd", False),
        ("abc", "abcd", False),
        ("", "", False),
        (None, None, False),
        (1, 1, False),
        ("\ud800", "\ud801", False),
        ("?", "\ud800", False),
        ("é", "é", True),
    ],
)
def test_constant_time_equal(left: object, right: object, same: bool) -> None:
    assert constant_time_equal(left, right) is same


@pytest.mark.parametrize(
    ("uri", "host", "port", "path"),
    [
        ("http://127.0.0.1:49321/callback", "127.0.0.1", 49321, "/callback"),
        ("http://[::1]:1/", "::1", 1, "/"),
        ("http://127.0.0.1:65535", "127.0.0.1", 65535, "/"),
        ("http://127.0.0.1:8080/a/b;c=%20", "127.0.0.1", 8080, "/a/b;c=%20"),
        ("http://127.0.0.1:8080/...", "127.0.0.1", 8080, "/..."),
    ],
)
def test_canonical_loopback_uris(uri: str, host: str, port: int, path: str) -> None:
    proved = admit_redirect_uri(uri)
    assert isinstance(proved, RedirectUri)
    assert (proved.text, proved.host, proved.port, proved.path) == (uri, host, port, path)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "https://127.0.0.1:9/cb",
            "HTTP://127.0.0.1:9/cb",
            "http:127.0.0.1:9/cb",
            "//127.0.0.1:9",
        ),
        *("http://127.0.0.1/cb", "http://127.0.0.1:/cb", "http://127.0.0.1:80/cb"),
        *("http://127.0.0.1:0/cb", "http://127.0.0.1:09/cb", "http://127.0.0.1:65536/cb"),
        *("http://127.0.0.1:٤/cb", "http://127.1:9/cb", "http://2130706433:9/cb"),
        *("http://0x7f.0.0.1:9/cb", "http://127.0.0.1.:9/cb", "http://127.0.0.2:9/cb"),
        *("http://[0:0:0:0:0:0:0:1]:9/cb", "http://[::1%25lo]:9/cb", "http://::1:9/cb"),
        *("http://localhost:9/cb", "http://0.0.0.0:9/cb", "http://evil.example:9/cb"),
        *("http://a@127.0.0.1:9/cb", "http://:@127.0.0.1:9/cb", "http://127.0.0.1:9@evil/cb"),
        *("http://127.0.0.1:9/cb?", "http://127.0.0.1:9/cb?a=b", "http://127.0.0.1:9/cb#"),
        *("http://127.0.0.1:9/../cb", "http://127.0.0.1:9/a/%2E./cb", "http://127.0.0.1:9/."),
        *("http://127.0.0.1:9/%zz", "http://127.0.0.1:9/a b", "http://127.0.0.1:9\\cb"),
        *(" http://127.0.0.1:9/cb", "http://127.0.0.1:9/cb\n", "http://127.0.0.1:9/é"),
        *("http://127.0.0.1:9/" + "a" * 8192, "", None, 5, b"http://127.0.0.1:9/cb"),
    ],
)
def test_everything_else_is_refused(uri: object) -> None:
    assert admit_redirect_uri(uri) is REFUSED_URI


def test_lengths_are_inclusive() -> None:
    uri = "http://127.0.0.1:9/"
    assert isinstance(admit_redirect_uri(uri.ljust(8192, "a")), RedirectUri)
    assert admit_redirect_uri(uri.ljust(8193, "a")) is REFUSED_URI
    url = "https://as.example/"
    assert not isinstance(admit_endpoint(url.ljust(8192, "a")), Verdict)
    assert admit_endpoint(url.ljust(8193, "a")) is REFUSED
    assert not isinstance(parse_redirect_query("a=".ljust(8192, "b")), Verdict)
    assert parse_redirect_query("a=".ljust(8193, "b")) is REFUSED
    assert not isinstance(parse_redirect_query("&".join(f"p{n}=" for n in range(32))), Verdict)


@pytest.mark.parametrize(
    ("hosts", "admitted"),
    [
        (None, {"127.0.0.1", "[::1]"}),
        ([], {"127.0.0.1", "[::1]"}),
        ("localhost", {"127.0.0.1", "[::1]"}),
        (["127.0.0.1"], {"127.0.0.1"}),
        (("::1",), {"[::1]"}),
        (["LOCALHOST"], {"localhost"}),
        (["evil.example", "0.0.0.0", None, ""], set()),
    ],
)
def test_a_list_of_hosts_narrows(hosts: Any, admitted: set[str]) -> None:
    everything = ["127.0.0.1", "[::1]", "localhost", "evil.example", "0.0.0.0"]
    found = {
        host
        for host in everything
        if isinstance(admit_redirect_uri(f"http://{host}:9/cb", hosts), RedirectUri)
    }
    assert found == admitted


def test_a_redirect_uri_is_made_by_its_rule_alone() -> None:
    with pytest.raises(TypeError):
        RedirectUri(text="http://evil.example:9/", host="evil.example", port=9, path="/")


def test_the_query_of_an_answer() -> None:
    params = parse_redirect_query("code=a%20b&state=s&iss=https%3A%2F%2Fas.example&empty=")
    assert params == {
        "code": "a b",
        "state": "s",
        "iss": "https://as.example",
        "empty": "",
    }


@pytest.mark.parametrize(
    "query",
    [
        *("code=a&code=b", "state=s&code=c&state=s", "code", "code=c&&state=s", "code=%ff"),
        *("code=é", "a=" + "b" * 8192, "&".join(f"p{n}=v" for n in range(33)), None, 5, {}),
    ],
)
def test_an_ambiguous_query_is_refused(query: object) -> None:
    assert parse_redirect_query(query) is REFUSED


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://as.example/token", "https://as.example/token"),
        ("HTTPS://As.Example/Token", "https://as.example/Token"),
        ("https://as.example:443/t?a=b&c", "https://as.example/t?a=b&c"),
        ("https://as.example:8443", "https://as.example:8443/"),
        ("https://as.example:65535/t", "https://as.example:65535/t"),
    ],
)
def test_endpoints(url: str, normal: str) -> None:
    endpoint = admit_endpoint(url)
    assert not isinstance(endpoint, Verdict)
    assert endpoint.url == normal


@pytest.mark.parametrize(
    "url",
    [
        *("http://as.example/t", "https:as.example/t", "https://", "https:///t", "as.example/t"),
        *("https://u:p@as.example/t", "https://as.example@evil.com/t", "https://as.example\\@e/t"),
        *("https://as.example/t#", "https://as.example/t#f", " https://as.example/t"),
        *("https://as.example/t\n", "https://as.example./t", "https://as..example/t"),
        *("https://-as.example/t", "https://as_b.example/t", "https://\uff41s.example/t"),
        *("https://as.example/a/../t", "https://as.example/%2e/t", "https://as.example/%z"),
        *("https://as.example:0/t", "https://as.example:65536/t", "https://as.example:/t"),
        *("https://as.example/" + "a" * 8192, None, 5, b"https://as.example/t", ["https://a/"]),
    ],
)
def test_what_is_no_endpoint(url: object) -> None:
    assert admit_endpoint(url) is REFUSED


def test_endpoints_belong_to_the_issuer() -> None:
    issuer = "https://as.example"
    assert check_endpoints_of_issuer(issuer, "https://AS.example/a", "https://as.example/t").ok
    for endpoints in (
        (),
        ("https://as.example/a", "https://evil.example/t"),
        ("https://as.example:8443/t",),
        ("http://as.example/t",),
        (None,),
    ):
        verdict = check_endpoints_of_issuer(issuer, *endpoints)
        assert verdict is refuse(Reason.ISSUER_MISMATCH)
    assert not check_endpoints_of_issuer(None, "https://as.example/t").ok


@given(ANYTHING, ANYTHING)
def test_total_and_closed(value: object, other: object) -> None:
    for result in (
        admit_redirect_uri(value, other),
        parse_redirect_query(value),
        admit_endpoint(value),
        code_challenge(hide(value)),
        verifier_from(value),
        check_endpoints_of_issuer(value, other),
    ):
        if isinstance(result, Verdict):
            assert result is refuse(result.reason)
    assert isinstance(constant_time_equal(value, other), bool)


@given(st.text(alphabet="htp:/[]127.0localhost@%e2\\?#9 \n", max_size=40))
def test_what_is_admitted_is_plain_loopback(tail: str) -> None:
    for uri in (tail, "http://127.0.0.1:9" + tail, "http://" + tail + "127.0.0.1:9/"):
        proved = admit_redirect_uri(uri)
        if isinstance(proved, RedirectUri):
            rest = proved.path if uri.count("/") > 2 else ""
            literal = f"[{proved.host}]" if ":" in proved.host else proved.host
            assert uri == f"http://{literal}:{proved.port}{rest}"
