"""Limits hold at their edges: the last value that passes, and the first that does not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from companion_core.decisions.admission import decide_arrival, record_completion
from companion_core.decisions.guard import (
    GUARD_ORDER,
    HEALTH_PATH,
    RateBudgets,
    bearer_token,
    fold_headers,
    guard_policy,
    is_loopback_host,
    loopback_hosts,
    tokens_equal,
    verify_request,
)
from companion_core.decisions.integrity import (
    MAX_SIZE,
    IntegrityAccumulator,
    ModelSpec,
    digests_equal,
    parse_model_spec,
    verify_model_bytes,
)
from companion_core.decisions.manifest import (
    PAYLOAD_TYPE,
    Manifest,
    check_manifest_origin,
    check_payload,
    verify_manifest,
)
from companion_core.decisions.oauth import (
    Endpoint,
    RefreshDecision,
    admit_endpoint,
    admit_redirect_uri,
    build_authorization_url,
    build_refresh_request,
    check_granted_scope,
    check_id_token_nonce,
    decide_token_refresh,
    parse_redirect_query,
    validate_token_response,
    verifier_from,
)
from companion_core.decisions.oauth.grammar import is_scope_list
from companion_core.decisions.rate import LONGEST_WINDOW_STAMPS, RateWindow, restore_rate_window
from companion_core.decisions.restart import Ending, decide_restart
from companion_core.decisions.source import SourceUrl, admit_source, check_source_url
from companion_core.decisions.spawn_plan import (
    MAX_UNIX_PATH,
    PlanFacts,
    base_environment,
    check_env_name,
    check_plan,
    parse_pid,
)
from companion_core.decisions.strict_json import MALFORMED, parse_json
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.providers import OPENAI_ROUTES, BackendRequest, SpawnPlan, UnixChannel
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit


# --- admission ------------------------------------------------------------------------------


def test_every_arrival_is_judged_as_defined() -> None:
    for running, most, queued, bound in itertools.product(range(-1, 4), repeat=4):
        if not 0 <= running <= most or not 0 <= queued <= bound:
            expected = Reason.MALFORMED_ADMISSION_STATE
        elif running < most and queued == 0:
            expected = Reason.OK
        elif running < most or queued < bound:
            expected = Reason.AT_CAPACITY
        else:
            expected = Reason.QUEUE_FULL
        assert decide_arrival(running, most, queued, bound).reason is expected


def test_what_is_no_state_is_named_as_such() -> None:
    with pytest.raises(ValueError, match=r"^malformed_admission_state$"):
        record_completion(None)


# --- integrity ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("", "", False),
        ("a", "", False),
        ("", "a", False),
        (1, "1", False),
        ("1", 1, False),
        (None, None, False),
        ("\ud800", "\ud800", True),
        ("\ud800", "?", False),
        ("?", "\ud800", False),
        ("é", "é", True),
    ],
)
def test_digests_are_texts(a: object, b: object, equal: bool) -> None:
    assert digests_equal(a, b) is equal


def accumulator(size: int) -> IntegrityAccumulator:
    spec = parse_model_spec("0" * 64, size)
    assert isinstance(spec, ModelSpec)
    return IntegrityAccumulator(spec)


def test_what_comes_after_an_overflow_is_not_counted() -> None:
    check = accumulator(2)
    assert check.update(b"abc").reason is Reason.SIZE_MISMATCH
    assert check.update(b"d").reason is Reason.SIZE_MISMATCH
    assert check.update("no bytes").reason is Reason.SIZE_MISMATCH
    assert check.received_bytes == 3
    assert check.finalize().reason is Reason.SIZE_MISMATCH


def test_the_size_itself_is_no_overflow() -> None:
    check = accumulator(2)
    assert check.update(b"ab") is OK
    assert check.update(b"") is OK
    assert check.finalize().reason is Reason.DIGEST_MISMATCH


def test_a_view_is_counted_in_bytes() -> None:
    check = accumulator(8)
    assert check.update(memoryview(bytes(8)).cast("Q")) is OK
    assert check.received_bytes == 8


@pytest.mark.parametrize(("size", "ok"), [(0, False), (1, True), (2**53 - 1, True), (2**53, False)])
def test_sizes(size: int, ok: bool) -> None:
    assert isinstance(parse_model_spec("0" * 64, size), ModelSpec) is ok
    assert MAX_SIZE == 2**53 - 1


@pytest.mark.parametrize(
    ("data", "reason"), [(b"abc", Reason.SIZE_MISMATCH), ("ab", Reason.MALFORMED_SPEC)]
)
def test_a_whole_model_of_another_size_or_type(data: object, reason: Reason) -> None:
    url = "https://a.example/m"
    verdict = verify_model_bytes(data, sha256="0" * 64, size=2, source=url, allowed=[url])
    assert verdict.reason is reason


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTPS://A.Example", ("https://a.example/", "a.example", 443, "/")),
        ("https://a.example:443/m?q#f", ("https://a.example/m?q", "a.example", 443, "/m")),
        ("https://a.example:65535/m", ("https://a.example:65535/m", "a.example", 65535, "/m")),
        ("https://[0:0::1]:1/m", ("https://[::1]:1/m", "::1", 1, "/m")),
        ("https://1.2.3.4/m", ("https://1.2.3.4/m", "1.2.3.4", 443, "/m")),
    ],
)
def test_the_proof_of_a_source_says_what_was_admitted(url: str, parts: tuple[object, ...]) -> None:
    proof = admit_source(url, [url.partition("?")[0]])
    assert isinstance(proof, SourceUrl)
    assert (proof.text, proof.host, proof.port, proof.path) == parts


@pytest.mark.parametrize("url", [None, 5, "", b"https://a.example/"])
def test_what_is_no_address_is_malformed_whatever_is_allowed(url: object) -> None:
    assert check_source_url(url, []).reason is Reason.MALFORMED_SPEC


def test_a_port_beyond_the_last_is_malformed() -> None:
    url = "https://a.example:65536/"
    assert check_source_url(url, [url]).reason is Reason.MALFORMED_SPEC


# --- manifest -------------------------------------------------------------------------------

URL = "https://models.example.org/tiny.gguf"
PUBLISHER = FakePublisher()


def manifest(value: dict[str, Any]) -> Manifest | Verdict:
    keys = (PUBLISHER.public_key,)
    return verify_manifest(
        PUBLISHER.envelope(value), trusted_keys=keys, now=TEST_NOW, last_seen=None
    )


def payload(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def document(**changes: Any) -> dict[str, Any]:
    return manifest_document(URL, b"a small model", **changes)


def with_model(**changes: Any) -> dict[str, Any]:
    value = document()
    value["models"][0].update(changes)
    return value


def files(count: int) -> list[dict[str, Any]]:
    file = document()["models"][0]["files"][0]
    return [{**file, "name": f"f{number}"} for number in range(count)]


def models(count: int) -> list[dict[str, Any]]:
    return [{**document()["models"][0], "id": f"m{number}"} for number in range(count)]


def urls(count: int) -> dict[str, Any]:
    value = document()
    value["models"][0]["files"][0]["urls"] = [f"{URL}{number}" for number in range(count)]
    return value


def sources(count: int) -> dict[str, Any]:
    more = [f"https://m{number}.example.org/" for number in range(count - 1)]
    return document(allowed_sources=["https://models.example.org/", *more])


@pytest.mark.parametrize(
    ("last", "first_refused"),
    [
        (document(version=2**53 - 1), document(version=2**53)),
        (document(version=1), document(version=0)),
        (sources(100), sources(101)),
        (document(models=models(100)), document(models=models(101))),
        (with_model(files=files(1000)), with_model(files=files(1001))),
        (urls(10), urls(11)),
        (with_model(chat_template="x" * 65536), with_model(chat_template="x" * 65537)),
        (document(expires="2026-01-01T00:00:01Z"), document(expires="2026-01-01T00:00:00Z")),
    ],
    ids=["version", "version 1", "sources", "models", "files", "urls", "template", "validity"],
)
def test_the_limits_of_a_manifest(last: dict[str, Any], first_refused: dict[str, Any]) -> None:
    assert check_payload(payload(last)) is OK
    assert check_payload(payload(first_refused)).reason is Reason.MANIFEST_MALFORMED


def test_a_manifest_says_what_was_signed() -> None:
    value = with_model(chat_template="{{ x }}", licence="MIT")
    proof = manifest(value)
    assert isinstance(proof, Manifest)
    model = value["models"][0]
    (parsed,) = proof.models
    assert (parsed.id, parsed.format, parsed.licence) == (model["id"], model["format"], "MIT")
    assert parsed.chat_template == "{{ x }}"
    (file,) = model["files"]
    made = parsed.files[0]
    assert (made.name, made.size, made.sha256) == (file["name"], file["size"], file["sha256"])
    assert made.urls == tuple(file["urls"])
    assert list(proof.allowed_sources) == value["allowed_sources"]


@pytest.mark.parametrize("urls", [[], None, "https://a.example/", ["no url"]])
def test_an_origin_for_no_model_is_untrusted(urls: object) -> None:
    verdict = check_manifest_origin("https://m.example/", urls)
    assert verdict.reason is Reason.MANIFEST_UNTRUSTED


def test_the_type_of_what_is_signed() -> None:
    assert PAYLOAD_TYPE == "application/vnd.companion.manifest.v1+json"


@pytest.mark.parametrize(
    ("strangers", "answer"), [(15, "ok"), (16, "manifest_malformed")], ids=["16", "17"]
)
def test_the_signatures_of_an_envelope(strangers: int, answer: str) -> None:
    own = PUBLISHER.signature(payload(document()))
    entries = [{**own, "key_id": f"{number:064x}"} for number in range(strangers)]
    raw = PUBLISHER.envelope(document(), signatures=[*entries, own])
    proof = verify_manifest(raw, trusted_keys=(PUBLISHER.public_key,), now=TEST_NOW, last_seen=None)
    assert ("ok" if isinstance(proof, Manifest) else proof.reason) == answer


@pytest.mark.parametrize("suffix", ["?q", "#", "#f", "?q#f"])
def test_a_source_of_a_manifest_is_origin_and_path(suffix: str) -> None:
    value = document()
    value["allowed_sources"].append(f"https://other.example.org/{suffix}")
    assert check_payload(payload(value)).reason is Reason.SOURCE_NOT_ALLOWED


# --- strict JSON ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "ok"),
    [
        (b"[" * 16 + b"]" * 16, True),
        (b"[" * 17 + b"]" * 17, False),
        (b"[" + b"[]," * 20 + b"[" * 16 + b"]" * 17, False),
        (b"[" + b"[]," * 20 + b"[" * 15 + b"]" * 16, True),
        (b'{"a":' * 17 + b"1" + b"}" * 17, False),
        (b'["\\"' + b"[" * 20 + b'"]', True),
        (b'["","' + b"[" * 20 + b'"]', True),
        (b'["\\\n' + b"[" * 20 + b'"]', False),
        (b"9" * 16, True),
        (b"9" * 17, False),
        (b"-" + b"9" * 15, True),
    ],
)
def test_depth_and_digits(raw: bytes, ok: bool) -> None:
    assert (parse_json(raw, limit=1000) is not MALFORMED) is ok


def test_the_limit_of_a_document_is_inclusive() -> None:
    assert parse_json(b"12", limit=2) == 12
    assert parse_json(b"12", limit=1) is MALFORMED


# --- signing in -----------------------------------------------------------------------------


def test_no_character_of_a_verifier_is_lost() -> None:
    # The last sextet of these 33 bytes is 23, which is an "X".
    assert verifier_from(bytes(32) + b"\x17") == "A" * 43 + "X"


@pytest.mark.parametrize(("bytes_", "ok"), [(31, False), (32, True), (96, True), (97, False)])
def test_the_entropy_of_a_verifier(bytes_: int, ok: bool) -> None:
    assert isinstance(verifier_from(bytes(bytes_)), str) is ok


def test_a_scope_list_is_as_long_as_the_text_it_becomes() -> None:
    assert is_scope_list(["a" * 4095, "b" * 4096])
    assert not is_scope_list(["a" * 4096, "b" * 4096])


@pytest.mark.parametrize(
    ("port", "ok"), [(79, True), (80, False), (81, True), (65535, True), (65536, False)]
)
def test_the_ports_of_a_redirect(port: int, ok: bool) -> None:
    assert isinstance(admit_redirect_uri(f"http://127.0.0.1:{port}/"), Verdict) is not ok


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTPS://As.Example", ("https://as.example", "/", "", "https://as.example/")),
        ("https://a:443/x", ("https://a", "/x", "", "https://a/x")),
        ("https://a:444/x?", ("https://a:444", "/x", "", "https://a:444/x")),
        ("https://a:65535/x?q=1", ("https://a:65535", "/x", "q=1", "https://a:65535/x?q=1")),
    ],
)
def test_the_parts_of_an_endpoint(url: str, parts: tuple[str, ...]) -> None:
    proof = admit_endpoint(url)
    assert isinstance(proof, Endpoint)
    assert (proof.origin, proof.path, proof.query, proof.url) == parts
    assert proof.base == proof.origin + proof.path


@pytest.mark.parametrize("url", ["https://a:65536/", "https://a:0/"])
def test_no_such_port(url: str) -> None:
    assert isinstance(admit_endpoint(url), Verdict)


AUTHORIZATION: dict[str, Any] = {
    "client_id": "companion",
    "redirect_uri": "http://127.0.0.1:9/",
    "scopes": ["a"],
    "state": "s",
    "code_challenge": "a" * 43,
}


@pytest.mark.parametrize("query", ["client_id=", "x=%ff", "%ff=x", "STATE=1", "a=1&nonce"])
def test_an_endpoints_own_query_sets_nothing_reserved(query: str) -> None:
    endpoint = f"https://as.example/?{query}"
    answer = build_authorization_url(authorization_endpoint=endpoint, **AUTHORIZATION)
    assert isinstance(answer, Verdict)


def test_an_endpoints_own_query_is_not_set_again() -> None:
    answer = build_authorization_url(
        authorization_endpoint="https://as.example/?blank=&x=1",
        extra_params={"blank": "2", "x": "2", "y": "2"},
        **AUTHORIZATION,
    )
    assert isinstance(answer, str)
    assert answer.startswith("https://as.example/?blank=&x=1&response_type=code&")
    assert answer.endswith("&y=2")


RESERVED = (
    "response_type response_mode client_id redirect_uri scope state code_challenge "
    "code_challenge_method code_verifier code nonce iss client_secret client_assertion "
    "client_assertion_type assertion request request_uri registration claims "
    "authorization_details grant_type username password device_code dpop_jkt error token "
    "token_type access_token refresh_token id_token id_token_hint"
)


@pytest.mark.parametrize("name", RESERVED.split())
def test_no_one_else_sets_a_parameter_that_carries_security(name: str) -> None:
    own = f"https://as.example/?{name.title()}=x"
    assert isinstance(build_authorization_url(authorization_endpoint=own, **AUTHORIZATION), Verdict)
    plain = build_authorization_url(
        authorization_endpoint="https://as.example/", **AUTHORIZATION, extra_params={}
    )
    assert plain == build_authorization_url(
        authorization_endpoint="https://as.example/",
        **AUTHORIZATION,
        extra_params={name: "x", name.upper(): "x"},
    )


@pytest.mark.parametrize(
    "change", [{"client_id": ""}, {"refresh_token": None}, {"scopes": []}, {"scopes": "a"}]
)
def test_a_malformed_refresh_is_named_as_such(change: dict[str, Any]) -> None:
    sound: dict[str, Any] = {
        "token_endpoint": "https://as.example/token",
        "client_id": "c",
        "refresh_token": "r",
    }
    refused = build_refresh_request(**(sound | change))
    assert isinstance(refused, Verdict)
    assert refused.reason is Reason.MALFORMED_INPUT


@pytest.mark.parametrize(("count", "ok"), [(32, True), (33, False)])
def test_the_parameters_of_an_answer_are_few(count: int, ok: bool) -> None:
    query = "&".join(f"p{number}=" for number in range(count))
    assert isinstance(parse_redirect_query(query), Mapping) is ok


@pytest.mark.parametrize(("characters", "ok"), [(8192, True), (8193, False)])
def test_the_length_of_an_answer(characters: int, ok: bool) -> None:
    assert isinstance(parse_redirect_query("a=".ljust(characters, "b")), Mapping) is ok


@pytest.mark.parametrize(
    ("seconds", "ok"), [(0, False), (1, True), (366 * 86400, True), (366 * 86400 + 1, False)]
)
def test_the_life_of_a_token(seconds: int, ok: bool) -> None:
    answer = {"token_type": "bearer", "access_token": "a", "expires_in": seconds}
    assert isinstance(validate_token_response(answer), Verdict) is not ok


@pytest.mark.parametrize(
    ("granted", "within"),
    [("a", True), (" a  b ", True), ("", True), ("a c", False), ("ab", False)],
)
def test_a_granted_scope_is_a_list_with_spaces(granted: str, within: bool) -> None:
    assert check_granted_scope(granted, ["a", "b"]).ok is within


@pytest.mark.parametrize(("characters", "ok"), [(32_768, True), (32_769, False)])
def test_the_length_of_an_id_token(characters: int, ok: bool) -> None:
    token = "a.eyJub25jZSI6Im4ifQ.".ljust(characters, "s")
    assert check_id_token_nonce(token, "n").ok is ok


@pytest.mark.parametrize(
    ("now", "decision"),
    [(69_999, RefreshDecision.VALID), (70_000, RefreshDecision.REFRESH)],
)
def test_a_token_is_refreshed_thirty_seconds_early(now: int, decision: RefreshDecision) -> None:
    assert decide_token_refresh(expires_at=100_000, now=now) is decision


# --- the guard ------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "ok"), [(0, False), (1, True), (65535, True), (65536, False)])
def test_the_ports_of_a_listener(port: int, ok: bool) -> None:
    assert bool(loopback_hosts("127.0.0.1", port)) is ok
    hosts = (f"127.0.0.1:{port}",)
    assert guard_policy(hosts=hosts, routes={}, token=None).hosts == frozenset(hosts if ok else ())


def test_the_names_of_a_listener() -> None:
    assert loopback_hosts("127.0.0.1", 8) == ("127.0.0.1:8", "localhost:8")
    assert loopback_hosts("::1", 8) == ("[::1]:8",)
    assert loopback_hosts("localhost", 8) == ()


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:1", "[::1]:1", "LOCALHOST:1"])
def test_loopback_has_three_names(host: str) -> None:
    assert is_loopback_host(host)
    assert guard_policy(hosts=[host], routes={}, token=None).hosts == {host.lower()}


def test_what_is_no_name_is_folded_into_none() -> None:
    assert fold_headers({1: "x", "A": "y"}) == {"": "x", "a": "y"}
    assert fold_headers({1: "x", 2: "y"}) == {"": None}
    assert fold_headers({"A": "x", "a": "x"}) == {"a": None}


def test_a_token_has_256_bits() -> None:
    assert guard_policy(hosts=(), routes={}, token="a" * 43).token == b"a" * 43
    assert guard_policy(hosts=(), routes={}, token="a" * 42).token is None


@pytest.mark.parametrize("other", ["", None, 1, "\ud800", "a\0"])
def test_no_other_text_is_the_token(other: object) -> None:
    assert not tokens_equal("a", other)
    assert not tokens_equal(other, "a")
    assert not tokens_equal(None, None)


def test_the_order_of_the_guard_is_the_one_that_others_rely_on() -> None:
    assert HEALTH_PATH == "/-/health"
    assert [(step.name, " ".join(step.reasons), step.counted) for step in GUARD_ORDER] == [
        ("structure", "malformed_request", False),
        ("method", "method_not_allowed", False),
        ("path", "path_not_allowed", False),
        ("host", "host_not_allowed", False),
        ("origin", "cross_site_forbidden", False),
        ("rate", "rate_state_unavailable rate_limited", False),
        ("token", "missing_token invalid_token ok", True),
    ]


@pytest.mark.parametrize("value", ["Bearer ==", "Bearer ", "Bearer", "Bearera", "Basic a", None])
def test_what_is_no_bearer_token(value: object) -> None:
    assert not bearer_token(value)


def test_a_scheme_ignores_case_and_a_token_does_not() -> None:
    assert bearer_token("bEARER aB==") == "aB=="


def test_a_time_of_any_size_is_judged() -> None:
    window = RateWindow(60.0, 1)
    for now in (10**400, -(10**400), float("inf")):
        assert window.check(now).reason is Reason.RATE_STATE_UNAVAILABLE
        assert window.take(now).reason is Reason.RATE_STATE_UNAVAILABLE
        assert restore_rate_window(60.0, 1, [now]) is None
        policy = guard_policy(hosts=(), routes={}, token=None)
        budgets = RateBudgets(window, window)
        verdict = verify_request("GET", "/", {}, "", policy, budgets, now)
        assert verdict.reason is Reason.MALFORMED_REQUEST


# --- rates ----------------------------------------------------------------------------------


def test_a_budget_is_kept_as_asked_up_to_the_most_stamps() -> None:
    assert LONGEST_WINDOW_STAMPS == 4096
    for requests, window, most in ((1, 60.0, 1), (600, 60.0, 600), (4096, 60.0, 4096)):
        made = RateWindow.per_minute(requests)
        assert (made.window, made.max_requests) == (window, most)
    made = RateWindow.per_minute(8192)
    assert (made.window, made.max_requests) == (30.0, 4096)


@pytest.mark.parametrize(
    ("bounds", "word"),
    [
        ((0, 1), "window"),
        ((True, 1), "window"),
        ((60.0, 0), "max_requests"),
        ((60.0, 1.0), "max_requests"),
        ((60.0, 1, ["x"]), "stamps"),
    ],
)
def test_a_malformed_window_is_named(bounds: tuple[Any, ...], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}$"):
        RateWindow(*bounds)


def test_a_time_that_is_none_is_not_recorded() -> None:
    with pytest.raises(ValueError, match=r"^now$"):
        RateWindow().record(None)


def test_the_default_is_sixty_in_a_minute() -> None:
    window = RateWindow()
    assert (window.window, window.max_requests, window.stamps) == (60.0, 60, ())


def test_a_stamp_leaves_when_its_window_is_over() -> None:
    window = RateWindow(60.0, 1, [10.0])
    assert window.check(69.9).reason is Reason.RATE_LIMITED
    assert window.check(70.0) is OK


def test_after_a_step_back_each_stamp_still_leaves_in_its_time() -> None:
    window = RateWindow(60.0, 9)
    for now in (10.0, 5.0, 12.0):
        window.record(now)
    assert window._sorted is False
    window.check(66.0)
    assert window.stamps == (10.0, 12.0)
    assert window._sorted, "in order again, so that expiry costs nothing again"
    assert RateWindow(60.0, 9, [1.0, 2.0])._sorted
    assert not RateWindow(60.0, 9, [2.0, 1.0])._sorted


def test_equal_times_are_in_order() -> None:
    window = RateWindow(60.0, 9)
    window.record(1.0)
    window.record(1.0)
    assert window._sorted


def test_a_full_window_forgets_its_oldest() -> None:
    window = RateWindow(60.0, 2, [1.0, 2.0])
    window.record(3.0)
    assert window.stamps == (2.0, 3.0)


def test_a_little_is_left_until_free() -> None:
    assert RateWindow(60.0, 1, [10.0]).seconds_until_free(69.5) == 0.5
    assert RateWindow(60.0, 1, [10.0]).seconds_until_free(99.0) == 0.0


# --- restarts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endings", "delay"),
    [
        ([0.0], 1.0),
        ([-600.0, 0.0], 5.0),
        ([-600.1, 0.0], 1.0),
        ([-3.0, -2.0, 0.0], 15.0),
        ([-3.0, -2.0, -1.0, 0.0], 60.0),
        ([-4.0, -3.0, -2.0, -1.0, 0.0], None),
        ([], 1.0),
        ([1.0], 1.0),
    ],
)
def test_how_long_until_the_next_start(endings: list[float], delay: float | None) -> None:
    ending = Ending(reason=Reason.RUNTIME_EXITED, exit_code=-9, ready=False)
    decision = decide_restart(ending, endings, 0.0)
    assert decision.delay == delay
    assert decision.reason is (Reason.CRASH_LOOP if delay is None else Reason.OK)


# --- plans ----------------------------------------------------------------------------------

MODEL, SOCKET = "/m", UnixChannel(path="/run/s")
NAMES = frozenset({"A", "B", "ENV", "KEY", "env", *(f"N{number}" for number in range(65))})
FACTS = PlanFacts(
    binary="/opt/server",
    embedded=False,
    embedded_modules=frozenset({"plugin"}),
    env_names=NAMES,
    base_names=frozenset(),
    model_path=MODEL,
    channel=SOCKET,
    data_dir="/data",
)
PLAN = SpawnPlan(argv=("/opt/server", MODEL, SOCKET.path), served_model="tiny")
KIB = 1024


def passes(facts: PlanFacts = FACTS, **changes: Any) -> bool:
    return isinstance(check_plan(replace(PLAN, **changes), facts), SpawnPlan)


def argv(*more: str) -> tuple[str, ...]:
    return (*PLAN.argv, *more)


def total(size: int) -> tuple[str, ...]:
    left = size - sum(map(len, PLAN.argv))
    return argv("x" * (128 * KIB), "x" * (left - 128 * KIB))


def request(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"method": "GET", "path": "/"} | changes
    return {"prepare": (BackendRequest(**values),)}


@pytest.mark.parametrize(
    ("last", "first_refused"),
    [
        ({"argv": argv(*["x"] * 253)}, {"argv": argv(*["x"] * 254)}),
        ({"argv": argv("x" * (128 * KIB))}, {"argv": argv("x" * (128 * KIB + 1))}),
        ({"argv": argv("é" * (64 * KIB))}, {"argv": argv("é" * (64 * KIB) + "x")}),
        ({"argv": total(256 * KIB)}, {"argv": total(256 * KIB + 1)}),
        ({"argv": argv(f"--a={MODEL}")}, {"argv": ("/opt/server", "--a=b=/m", SOCKET.path)}),
        (
            {"env": {f"N{number}": "" for number in range(64)}},
            {"env": {f"N{number}": "" for number in range(65)}},
        ),
        ({"served_model": "x" * 256}, {"served_model": "x" * 257}),
        ({"ready_text": "x" * 256}, {"ready_text": "x" * 257}),
        ({"read_paths": ("/x",) * 64}, {"read_paths": ("/x",) * 65}),
        ({"start_deadline_seconds": 0.5}, {"start_deadline_seconds": 0}),
        ({"start_deadline_seconds": 3600}, {"start_deadline_seconds": 3600.1}),
        ({"routes": OPENAI_ROUTES[:1]}, {"routes": ()}),
        ({"routes": OPENAI_ROUTES}, {"routes": (*OPENAI_ROUTES, OPENAI_ROUTES[0])}),
        (
            {"prepare": (BackendRequest(method="GET", path="/"),) * 16},
            {"prepare": (BackendRequest(method="GET", path="/"),) * 17},
        ),
        (request(expect_status=(200,) * 64), request(expect_status=(200,) * 65)),
        (request(expect_status=(100,)), request(expect_status=(99,))),
        (request(expect_status=(599,)), request(expect_status=(600,))),
        (request(expect_status=(200,)), request(expect_status=(200.0,))),
        (request(expect_last_line="x"), request(expect_last_line=1)),
        (request(expect_last_line=""), request(expect_last_line="\0")),
        (request(method="HEAD"), request(method="PATCH")),
        (request(method="PUT"), request(method="put")),
        (request(send_model=True), request(send_model=1)),
        (request(unless_stored=True), request(unless_stored=1)),
        ({"store": "/data/x"}, {"store": "/data/./x"}),
        ({"store": None}, {"store": "/data"}),
        ({"read_paths": ("/dataX",)}, {"read_paths": ("/data",)}),
        ({"backend_key_env": "KEY"}, {"backend_key_env": "ENV"}),
        ({"backend_key_env": "A"}, {"backend_key_env": "env"}),
        ({"model_link": "/data/x"}, {"model_link": "/data/./x"}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_limits_of_a_plan(last: dict[str, Any], first_refused: dict[str, Any]) -> None:
    assert passes(**last)
    assert not passes(**first_refused)


def test_a_plan_may_say_all_in_its_environment() -> None:
    env = {"A": MODEL, "B": SOCKET.path}
    assert passes(argv=("/opt/server",), env=env)
    facts = replace(FACTS, embedded=True)
    assert passes(facts, argv=("/opt/server", "-I", "-m", "plugin"), env=env)
    assert not passes(facts, argv=("/opt/server", "-I", "-m"), env=env)


def test_all_that_a_plan_says_is_in_the_rebuilt_one() -> None:
    prepare = (
        BackendRequest(method="POST", path="/a", json="{}", expect_status=(200, 404)),
        BackendRequest(method="PUT", path="/b", send_model=True, expect_last_line="done"),
        BackendRequest(method="POST", path="/c", json="{}", unless_stored=True),
    )
    plan = replace(
        PLAN, prepare=prepare, model_link="/data/l", model_copies=("/data/c",), store="/data/s"
    )
    rebuilt = check_plan(plan, FACTS)
    assert isinstance(rebuilt, SpawnPlan)
    assert rebuilt == plan
    assert not isinstance(rebuilt.env, dict), "and nobody changes it afterwards"


STEERING = "LD_X DYLD_X PYTHONX MALLOC_X BASH_X PERL5X RUBYX NODE_X ENV IFS SHELLOPTS GCONV_PATH"
SECRET = "KEY APIKEY TOKEN SECRET PASSWORD PASSWD CREDENTIALS COOKIE MY_TOKEN_FILE"


@pytest.mark.parametrize("name", f"{STEERING} GLIBC_TUNABLES LOCPATH {SECRET}".split())
def test_names_that_steer_or_hold_a_secret(name: str) -> None:
    assert not check_env_name(name).ok
    assert not check_env_name(name.lower()).ok


@pytest.mark.parametrize("name", ["ALD_X", "ENVX", "XENV", "KEYS", "KEYBOARD", "X_LD_Y"])
def test_names_that_only_look_so(name: str) -> None:
    assert check_env_name(name).ok


def test_the_first_pid_is_one() -> None:
    assert parse_pid(1) == 1
    zero = parse_pid(0)
    assert isinstance(zero, Verdict)
    assert zero.reason is Reason.SPAWN_FAILED


@pytest.mark.parametrize("name", ["", None, "LD_PRELOAD", "MY_TOKEN"])
def test_a_name_that_is_not_allowed_refuses_the_plan(name: object) -> None:
    assert check_env_name(name).reason is Reason.PLAN_REFUSED


def test_the_length_of_a_socket_path() -> None:
    assert dict(MAX_UNIX_PATH) == {"linux": 107, "darwin": 103}


ACCELERATORS = (
    "CUDA_VISIBLE_DEVICES GGML_VK_VISIBLE_DEVICES HIP_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION "
    "ROCR_VISIBLE_DEVICES"
)


def test_the_environment_of_windows_without_any_other() -> None:
    base = base_environment("win32", private_dir="P", inherited={})
    assert base == {
        "SYSTEMROOT": r"C:\Windows",
        "PATH": r"C:\Windows\System32;C:\Windows",
        "TEMP": "P",
        "TMP": "P",
        "USERPROFILE": "P",
    }


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_person_chooses_the_accelerators(platform: str) -> None:
    chosen = dict.fromkeys(ACCELERATORS.split(), "0")
    base = base_environment(platform, private_dir="P", inherited=chosen | {"OTHER": "0"})
    assert {name: value for name, value in base.items() if value == "0"} == chosen
