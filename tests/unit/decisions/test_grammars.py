"""Every grammar of the decision core: exactly which characters, and exactly how many.

Each row names the alphabet as its standard does. A pattern that takes one character more or
less, or one character elsewhere, fails here.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from companion_core.decisions.guard import bearer_token, guard_policy, parse_host
from companion_core.decisions.manifest import Manifest, verify_manifest
from companion_core.decisions.oauth import (
    AuthorizationCode,
    Endpoint,
    RedirectUri,
    admit_endpoint,
    admit_redirect_uri,
    check_id_token_nonce,
    validate_authorization_response,
)
from companion_core.decisions.oauth.grammar import (
    has_dot_segment,
    is_bearer_token,
    is_printable,
    is_scope_list,
    is_scope_text,
    is_sendable,
)
from companion_core.decisions.oauth.pkce import is_code_challenge, is_code_verifier
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.decisions.spawn_plan import (
    PlanFacts,
    base_environment,
    check_env_name,
    check_plan,
)
from companion_core.providers import BackendRequest, SpawnPlan, UnixChannel
from companion_core.system.secret import Secret
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

LETTERS, DIGITS, HEX = string.ascii_letters, string.digits, string.hexdigits
LOWER = string.ascii_lowercase
UNRESERVED = LETTERS + DIGITS + "-._~"  # RFC 3986 section 2.3
SUB_DELIMS = "!$&'()*+,;="  # RFC 3986 section 2.2
PCHAR = UNRESERVED + SUB_DELIMS + ":@"  # RFC 3986 section 3.3, without the encoded ones
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))

# Every ASCII character, and others that look like one, fold to one or end a line.
CANDIDATES = [
    *map(chr, range(0x100)),
    *"\u0130\u0131\u017f\u212a\u0664\uff10\uff21\uff0e\uff0f\uff1a\u2028\ud800",
]

PUBLISHER = FakePublisher()
URL = "https://models.example.org/tiny.gguf"
SOCKET = UnixChannel(path="/run/s")
FACTS = PlanFacts(
    binary="/opt/server",
    embedded=False,
    embedded_modules=frozenset(),
    env_names=frozenset(),
    base_names=frozenset(),
    model_path="/m",
    channel=SOCKET,
    data_dir="/data",
)
PLAN = SpawnPlan(argv=("/opt/server", "/m", SOCKET.path), served_model="tiny")


def source(url: str) -> bool:
    return isinstance(parse_https_url(url), HttpsUrl)


def endpoint(url: str) -> bool:
    return isinstance(admit_endpoint(url), Endpoint)


def redirect(uri: str) -> bool:
    return isinstance(admit_redirect_uri(uri), RedirectUri)


def manifest(model: dict[str, Any] | None = None, file: dict[str, Any] | None = None) -> bool:
    document = manifest_document(URL, b"a small model")
    document["models"][0].update(model or {})
    document["models"][0]["files"][0].update(file or {})
    try:
        raw = PUBLISHER.envelope(document)
    except UnicodeEncodeError:  # a lone surrogate cannot be signed
        return False
    keys = (PUBLISHER.public_key,)
    return isinstance(
        verify_manifest(raw, trusted_keys=keys, now=TEST_NOW, last_seen=None), Manifest
    )


def request_path(path: str) -> bool:
    prepare = (BackendRequest(method="GET", path=path),)
    return isinstance(check_plan(replace(PLAN, prepare=prepare), FACTS), SpawnPlan)


def accelerator(value: str) -> bool:
    inherited = {"CUDA_VISIBLE_DEVICES": value}
    base = base_environment("linux", private_dir="/p", inherited=inherited)
    return base.get("CUDA_VISIBLE_DEVICES") == value


def bound_host(text: str) -> bool:
    return bool(guard_policy(hosts=(text,), routes={}, token=None).hosts)


def bearer(text: str) -> bool:
    return bearer_token(text) != ""


def id_token(text: str) -> bool:
    return check_id_token_nonce(Secret(text), "n").ok


CLAIMS = base64.urlsafe_b64encode(json.dumps({"nonce": "n"}).encode()).rstrip(b"=").decode()

# What judges, where the character stands, and all that may stand there.
ALPHABETS: dict[str, tuple[Callable[[str], bool], str, str]] = {
    "oauth printable": (is_printable, "a{}b", PRINTABLE),
    "oauth bearer token": (is_bearer_token, "a{}b", PRINTABLE[1:]),
    "oauth scope": (is_scope_text, "a{}b", "".join(set(PRINTABLE) - {'"', "\\"})),
    "oauth scope token": (
        lambda text: is_scope_list([text]),
        "a{}b",
        "".join(set(PRINTABLE) - {'"', "\\", " "}),
    ),
    "code verifier": (lambda text: is_code_verifier(Secret(text)), "a" * 42 + "{}", UNRESERVED),
    "code challenge": (is_code_challenge, "a" * 42 + "{}", LETTERS + DIGITS + "-_"),
    "redirect path": (redirect, "http://127.0.0.1:9/a{}b", PCHAR + "/"),
    "redirect path, escape": (redirect, "http://127.0.0.1:9/%{}0", HEX),
    "redirect path, escape end": (redirect, "http://127.0.0.1:9/%0{}", HEX),
    "redirect port, first": (redirect, "http://127.0.0.1:{}1/", DIGITS[1:]),
    "redirect port": (redirect, "http://127.0.0.1:1{}/", DIGITS + "/"),
    "endpoint host": (endpoint, "https://a{}b.example/", LETTERS + DIGITS + "-./?"),
    "endpoint host, first": (endpoint, "https://{}.example/", LETTERS + DIGITS),
    "endpoint host, last of a label": (endpoint, "https://a{}.example/", LETTERS + DIGITS + "/?"),
    "endpoint port, first": (endpoint, "https://a.example:{}1", DIGITS[1:]),
    "endpoint port": (endpoint, "https://a.example:1{}", DIGITS + "/?"),
    "endpoint path": (endpoint, "https://a.example/a{}b", PCHAR + "/?"),
    "endpoint query": (endpoint, "https://a.example/?a{}b", PCHAR + "/?"),
    "endpoint query, escape": (endpoint, "https://a.example/?%{}0", HEX),
    "endpoint query, escape end": (endpoint, "https://a.example/?%0{}", HEX),
    "id token, header": (id_token, f"a{{}}b.{CLAIMS}.c", LETTERS + DIGITS + "-_"),
    "id token, signature": (id_token, f"a.{CLAIMS}.c{{}}d", LETTERS + DIGITS + "-_"),
    "source scheme": (source, "http{}://a.example/", "sS"),
    "source host": (source, "https://a{}b.example/", LETTERS + DIGITS + "-._/?#"),
    "source host, first": (source, "https://{}.example/", LETTERS + DIGITS + "_"),
    "source host, last": (source, "https://a{}.example/", LETTERS + DIGITS + "_/?#"),
    "source host, IPv6": (source, "https://[::{}]/", HEX),
    "source port, first": (source, "https://a.example:{}1", DIGITS[1:]),
    "source port": (source, "https://a.example:1{}", DIGITS + "/?#"),
    "source path": (source, "https://a.example/a{}b", PCHAR + "/?#"),
    "source query": (source, "https://a.example/?a{}b", PCHAR + "/?#"),
    "source fragment": (source, "https://a.example/#a{}b", PCHAR + "/?"),
    "source path, escape": (source, "https://a.example/%{}0", "23456789abcdefABCDEF"),
    "source path, escape end": (source, "https://a.example/%3{}", HEX),
    "source path, encoded 0": (source, "https://a.example/%0{}", ""),
    "source path, encoded 1": (source, "https://a.example/%1{}", ""),
    "source path, encoded 2": (source, "https://a.example/%2{}", "0123456789abcdABCD"),
    "source path, encoded 5": (source, "https://a.example/%5{}", "012345678" + "9abdefABDEF"),
    "source path, encoded 7": (source, "https://a.example/%7{}", "0123456789abcdeABCDE"),
    "source query, escape": (source, "https://a.example/?%{}0", HEX),
    "source query, escape end": (source, "https://a.example/?%0{}", HEX),
    "source fragment, escape": (source, "https://a.example/#%{}0", HEX),
    "source fragment, escape end": (source, "https://a.example/#%0{}", HEX),
    "model id": (lambda text: manifest({"id": text}), "a{}b", LETTERS + DIGITS + "._:/+-"),
    "model id, first": (lambda text: manifest({"id": text}), "{}a", LETTERS + DIGITS),
    "file name": (lambda text: manifest(file={"name": text}), "a{}b", LETTERS + DIGITS + "._+-"),
    "file name, first": (
        lambda text: manifest(file={"name": text}),
        "{}a",
        LETTERS + DIGITS + "_",
    ),
    "file name, last": (
        lambda text: manifest(file={"name": text}),
        "a{}",
        LETTERS + DIGITS + "_+-",
    ),
    "format": (lambda text: manifest({"format": text}), "a{}b", LOWER + DIGITS + "_-"),
    "format, first": (lambda text: manifest({"format": text}), "{}a", LOWER + DIGITS),
    "licence": (lambda text: manifest({"licence": text}), "a{}b", PRINTABLE),
    "environment name": (
        lambda text: check_env_name(text).ok,
        "A{}B",
        LETTERS + DIGITS + "_",
    ),
    "environment name, first": (lambda text: check_env_name(text).ok, "{}A", LETTERS + "_"),
    "request path": (request_path, "/a{}b", PRINTABLE[1:]),
    "request path, first": (request_path, "{}a", "/"),
    "accelerators": (accelerator, "0{}1", LETTERS + DIGITS + "_.,:-"),
    "host header, name": (
        lambda text: parse_host(text) == (text, ""),
        "a{}b",
        LETTERS + DIGITS + "-._~%!$&'()*+;=",
    ),
    "host header, IPv6": (lambda text: parse_host(text) is not None, "[::{}]", HEX + ":."),
    "host header, IPv6, first": (
        lambda text: parse_host(text) is not None,
        "[{}:1]",
        HEX + ":.",
    ),
    "host header, port": (lambda text: parse_host(text) is not None, "a:1{}", DIGITS + " \t"),
    "bound host, port, first": (bound_host, "localhost:{}1", DIGITS[1:]),
    "bound host, port": (bound_host, "localhost:1{}", DIGITS),
    "authorization": (bearer, "Bearer a{}b", LETTERS + DIGITS + "-._~+/"),
    "authorization, end": (bearer, "Bearer a{}", LETTERS + DIGITS + "-._~+/= \t"),
    "authorization, after the end": (bearer, "Bearer a={}", "= \t"),
    "authorization, scheme": (bearer, "Beare{} a", "rR"),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_exactly_these_characters(name: str) -> None:
    judge, place, allowed = ALPHABETS[name]
    admitted = {char for char in CANDIDATES if judge(place.replace("{}", char))}
    assert sorted(admitted) == sorted(set(allowed))


# What judges, how a text of n characters looks, the fewest and the most characters.
LENGTHS: dict[str, tuple[Callable[[str], bool], Callable[[int], str], int, int]] = {
    "oauth printable": (is_printable, "a".__mul__, 1, 8192),
    "oauth bearer token": (is_bearer_token, "a".__mul__, 1, 8192),
    "oauth scope": (is_scope_text, "a".__mul__, 0, 8192),
    "oauth scope token": (lambda text: is_scope_list([text]), "a".__mul__, 1, 8192),
    "oauth text": (is_sendable, "a".__mul__, 0, 8192),
    "oauth text in bytes": (is_sendable, lambda n: "é" * (n // 2) + "a" * (n % 2), 0, 8192),
    "code verifier": (lambda text: is_code_verifier(Secret(text)), "a".__mul__, 43, 128),
    "code challenge": (is_code_challenge, "a".__mul__, 43, 43),
    "redirect uri": (redirect, lambda n: "http://127.0.0.1:9".ljust(n, "/")[:n], 18, 8192),
    "redirect port": (redirect, lambda n: f"http://127.0.0.1:{'1' * n}", 1, 5),
    "endpoint": (endpoint, lambda n: "https://a".ljust(n, "/")[:n], 9, 8192),
    "endpoint label": (endpoint, lambda n: f"https://{'a' * n}.b", 1, 63),
    "endpoint port": (endpoint, lambda n: f"https://a:{'1' * n}", 1, 5),
    "escape": (endpoint, lambda n: f"https://a/?%{'0' * n}", 2, 8180),
    "source": (source, lambda n: "https://a".ljust(n, "/")[:n], 9, 8192),
    "source label": (source, lambda n: f"https://{'a' * n}.b", 1, 63),
    "source port": (source, lambda n: f"https://a:{'1' * n}", 1, 5),
    "model id": (lambda text: manifest({"id": text}), "a".__mul__, 1, 128),
    "file name": (lambda text: manifest(file={"name": text}), "a".__mul__, 1, 128),
    "format": (lambda text: manifest({"format": text}), "a".__mul__, 1, 32),
    "licence": (lambda text: manifest({"licence": text}), "a".__mul__, 1, 128),
    "environment name": (lambda text: check_env_name(text).ok, "A".__mul__, 1, 128),
    "request path": (request_path, lambda n: "".ljust(n, "/"), 1, 1024),
    "accelerators": (accelerator, "0".__mul__, 0, 512),
    "bound port": (bound_host, lambda n: f"localhost:{'1' * n}", 1, 5),
    "authorization, spaces": (bearer, lambda n: f"Bearer{' ' * n}a", 1, 300),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_exactly_so_many_characters(name: str) -> None:
    judge, make, least, most = LENGTHS[name]
    assert judge(make(least))
    assert judge(make(most))
    if least:
        assert not judge(make(least - 1))
    if most not in {8180, 300}:  # these two are bounded by something else
        assert not judge(make(most + 1))


@pytest.mark.parametrize(
    ("path", "rewritten"),
    [
        *((f"/{dots}{end}", True) for dots in (".", "..", "%2e", ".%2E") for end in ("", "/x")),
        *((f"/{dots}{end}", False) for dots in ("...", "%2e..", "a.", ".a") for end in ("", "/x")),
        ("/", False),
        ("//", False),
        ("/x", False),
        ("/a%2eb", False),
    ],
)
def test_dot_segments(path: str, rewritten: bool) -> None:
    assert has_dot_segment(path) is rewritten
    assert endpoint(f"https://a{path}") is not rewritten


@pytest.mark.parametrize(
    ("host", "ok"),
    [
        ("1.2.3.4", True),
        ("a.1", False),
        ("127.1", False),
        ("0x7f", False),
        ("0x", False),
        ("a.0xg", True),
        ("a.0X7F", False),
        ("a.1b", True),
        ("[::1]", True),
        ("[::ffff:1.2.3.4]", False),
        ("[::1.2.3.4]", True),
        ("u@a.example", False),
        ("@a.example", False),
        ("a..b", False),
        ("a.example.", False),
    ],
)
def test_the_hosts_of_sources(host: str, ok: bool) -> None:
    assert source(f"https://{host}/") is ok


@pytest.mark.parametrize(
    "url", ["https://a", "https://a?", "https://a#", "https://a/?#", "HTTPS://A/"]
)
def test_the_parts_of_a_source_may_be_empty(url: str) -> None:
    assert source(url)


def test_a_scheme_has_the_characters_of_its_standard() -> None:
    # RFC 3986 section 3.1: what is a scheme at all is refused as a scheme.
    def reason(scheme: str) -> str:
        return parse_https_url(f"{scheme}://a/").reason  # type: ignore[union-attr]  # every one is refused

    later = {char for char in CANDIDATES if reason(f"x{char}y") == "scheme_not_allowed"}
    first = {char for char in CANDIDATES if reason(f"{char}y") == "scheme_not_allowed"}
    assert sorted(later) == sorted({*LETTERS, *DIGITS, *"+-.", ":"})
    assert sorted(first) == sorted(LETTERS)


@pytest.mark.parametrize(
    ("token", "ok"),
    [
        (f"a.{CLAIMS}.c", True),
        (f"a.{CLAIMS}.", True),
        (f".{CLAIMS}.c", False),
        (f"a~{CLAIMS}.c", False),
        (f"a.{CLAIMS}~c", False),
        (f"a.{CLAIMS}", False),
        ("a..c", False),
    ],
)
def test_an_id_token_has_three_parts(token: str, ok: bool) -> None:
    assert id_token(token) is ok


def test_the_claims_of_an_id_token_are_base64url() -> None:
    claims = base64.urlsafe_b64encode(b'{"nonce":"n","x":"???>>>"}').rstrip(b"=").decode()
    assert {"-", "_", "0", "I"} < set(claims)
    assert id_token(f"a.{claims}.c")


def test_what_stands_in_brackets_has_a_colon() -> None:
    assert parse_host("[:1]") == (":1", "")
    assert parse_host("[1:]:2") == ("1:", "2")
    assert parse_host("[1.2.3.4]") is None
    assert parse_host("[]") is None


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        ("a@b.example", "source_not_allowed"),
        ("@b.example", "source_not_allowed"),
        ("a:b@b.example", "source_not_allowed"),
        ("a@a@b.example", "malformed_spec"),
        ("[@b.example", "malformed_spec"),
        ("]@b.example", "malformed_spec"),
    ],
)
def test_userinfo_is_seen_as_such(authority: str, reason: str) -> None:
    assert parse_https_url(f"https://{authority}/").reason == reason  # type: ignore[union-attr]  # every one is refused


def test_a_code_is_any_printable_text() -> None:
    answer = {"state": "s", "code": "a b"}
    judged = validate_authorization_response(answer, expected_state="s", expected_issuer=None)
    assert isinstance(judged, AuthorizationCode)
    assert judged.code == Secret("a b")
