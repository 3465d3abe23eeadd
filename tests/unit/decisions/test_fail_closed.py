"""One needed part that is missing or malformed turns the yes of any rule into a no."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from companion_core import providers
from companion_core.decisions import (
    admission,
    availability,
    custody,
    guard,
    integrity,
    isolation,
    lifecycle,
    manifest,
    oauth,
    rate,
    request_gate,
    resources,
    signatures,
    source,
    spawn_plan,
    strict_json,
)
from companion_core.decisions.verdict import Verdict
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

MALFORMED = (
    *(None, True, -1, math.nan, math.inf, "", "\0", "\ud800"),
    *(b"\0", [], {}, [None], {"": None}, object()),
)
TOKEN = "a" * 43
CLIENT = {"client_id": "c", "redirect_uri": "http://127.0.0.1:9/c"}
URL = "https://a.example/m"
ISSUER = "https://login.example"
LIMITS = providers.ResourceLimits(max_ram_bytes=8, max_vram_bytes=8, max_cpu_percent=80)
CALM = providers.ResourceObservation(ram_bytes=1, vram_bytes=1, cpu_percent=1)
IDLE = admission.create_admission(2, 2)
PAYLOAD = b"model"
SHA256 = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
META = custody.SessionMeta(expires_at=2_000_000, stored_at=1)
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def verify_request(**given: Any) -> Verdict:
    policy = guard.guard_policy(
        hosts=given.pop("hosts"), routes={"/v1/models": "GET"}, token=given.pop("expected")
    )
    budgets = guard.RateBudgets(rate.RateWindow(), rate.RateWindow())
    return guard.verify_request(policy=policy, budgets=budgets, **given)


# A rule, a question that it answers with yes, and the parts of it that may be anything.
YES: list[tuple[Callable[..., Any], dict[str, Any], set[str]]] = [
    (source.check_source_url, {"url": URL, "allowed": [URL]}, set()),
    (source.parse_https_url, {"url": URL}, set()),
    (integrity.parse_model_spec, {"sha256": SHA256, "size": 5}, {"size=True"}),
    (
        integrity.verify_model_bytes,
        {"data": PAYLOAD, "sha256": SHA256, "size": 5, "source": URL, "allowed": [URL]},
        set(),
    ),
    (lifecycle.transition, {"state": "stopped", "event": "start"}, set()),
    (lifecycle.can_serve_inference, {"state": "ready"}, set()),
    (admission.evaluate_admission, {"state": IDLE}, set()),
    (admission.evaluate_arrival, {"state": IDLE}, set()),
    (resources.check_limits, {"limits": LIMITS}, {"limits.max_vram_bytes"}),
    (
        resources.evaluate_resources,
        {"observation": CALM, "limits": LIMITS},
        {"limits.max_vram_bytes"},
    ),
    (
        resources.check_memory,
        {"needed": 1, "free_ram": 1, "free_vram": 1, "limits": LIMITS},
        {"limits.max_vram_bytes"},
    ),
    (
        request_gate.evaluate_runtime_request,
        {"lifecycle": "ready", "admission": IDLE, "observation": CALM, "limits": LIMITS},
        {"limits.max_vram_bytes"},
    ),
    (
        verify_request,
        {
            "method": "GET",
            "path": "/v1/models",
            "headers": {"host": "127.0.0.1:80"},
            "token": TOKEN,
            "now": 1.0,
            "hosts": ["127.0.0.1:80"],
            "expected": Secret(TOKEN),
        },
        {"now"},
    ),
    (rate.check_rate, {"window": rate.RateWindow(), "now": 1}, {"window", "now"}),
    (guard.parse_host, {"value": "localhost"}, set()),
    (guard.is_loopback_host, {"value": "localhost"}, set()),
    (guard.tokens_equal, {"first": "a", "second": "a"}, set()),
    (guard.bearer_token, {"authorization": "Bearer a"}, set()),
    (guard.loopback_hosts, {"address": "::1", "port": 1}, set()),
    (
        availability.evaluate_availability,
        {
            "facts": availability.AvailabilityFacts(
                verified=True,
                state="ready",
                listener_bound=True,
                token_stored=True,
                last_health_ok=101.5,
                now=102.5,
                recency_seconds=15.0,
            )
        },
        set(),
    ),
    (custody.is_loopback_token, {"value": TOKEN}, set()),
    (custody.parse_stored_meta, {"stored": META.to_json()}, set()),
    (custody.parse_session_meta, {"value": {"expires_at": 5.5}}, {"value.expires_at=-1"}),
    (
        custody.build_session_meta,
        {"token_response": {"expires_in": 5}, "now": 5},
        {"now=-1"},
    ),
    (oauth.verifier_from, {"entropy": b"x" * 32}, set()),
    (oauth.code_challenge, {"verifier": Secret(TOKEN)}, set()),
    (oauth.admit_redirect_uri, {"uri": CLIENT["redirect_uri"]}, set()),
    (oauth.parse_redirect_query, {"query": "a=b"}, set()),
    (oauth.admit_endpoint, {"url": URL}, set()),
    (
        oauth.validate_authorization_response,
        {
            "params": {"state": "s", "iss": URL, "code": "c"},
            "expected_state": "s",
            "expected_issuer": URL,
        },
        {"expected_issuer"},
    ),
    (
        oauth.build_authorization_url,
        {
            **CLIENT,
            "authorization_endpoint": URL,
            "scopes": ["a"],
            "state": "s",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        },
        set(),
    ),
    (
        oauth.build_token_request,
        {**CLIENT, "token_endpoint": URL, "code": Secret("c"), "code_verifier": Secret(TOKEN)},
        set(),
    ),
    (
        oauth.build_refresh_request,
        {"token_endpoint": URL, "client_id": "c", "refresh_token": Secret("r")},
        set(),
    ),
    (
        oauth.validate_token_response,
        {"response": {"token_type": "Bearer", "access_token": "a", "expires_in": 5}},
        {"response.expires_in=True"},
    ),
    (
        oauth.parse_metadata,
        {
            "document": {
                "issuer": ISSUER,
                "authorization_endpoint": ISSUER,
                "token_endpoint": ISSUER,
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            },
            "issuer": ISSUER,
        },
        set(),
    ),
    (oauth.is_issuer, {"value": ISSUER}, set()),
    (
        oauth.parse_device_code,
        {
            "document": {
                "device_code": "d",
                "user_code": "A",
                "verification_uri": ISSUER,
                "expires_in": 5,
            },
            "issuer": ISSUER,
        },
        set(),
    ),
    (
        oauth.build_revocation_request,
        {"endpoint": URL, "client_id": "c", "token": Secret("t")},
        set(),
    ),
    (oauth.check_granted_scope, {"granted": "a", "asked": ["a"]}, {"granted"}),
    (oauth.constant_time_equal, {"left": "a", "right": "a"}, set()),
    (isolation.choose_tier, {"policy": "best", "platform": "linux"}, {"platform"}),
    (
        manifest.check_manifest_origin,
        {"manifest_url": "https://b.example", "model_urls": (URL,)},
        set(),
    ),
    (signatures.parse_public_key, {"text": KEY}, set()),
    (spawn_plan.parse_pid, {"value": 5}, set()),
    (spawn_plan.check_env_name, {"name": "MODE"}, set()),
    (strict_json.decode_base64, {"text": "AAAA"}, {"text=''"}),
]


def says_yes(answer: Any) -> bool:
    if isinstance(answer, Verdict | lifecycle.Transition):
        return answer.ok
    return bool(answer) or answer == b""


def variants(question: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the question with one part malformed, and one part's field missing or malformed."""
    found = []
    for name, part in question.items():
        found += [
            (f"{name}={bad!r}", {**question, name: bad}) for bad in MALFORMED if bad is not part
        ]
        if isinstance(part, dict):
            fields = dict(part)
            without = {key: {k: v for k, v in fields.items() if k != key} for key in fields}
            found += [(f"{name}.{key}=", {**question, name: without[key]}) for key in fields]
        elif dataclasses.is_dataclass(part):
            fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        else:
            continue
        for key in fields:
            for bad in MALFORMED:
                if bad is fields[key]:
                    continue
                changed: Any = (
                    fields | {key: bad}
                    if isinstance(part, dict)
                    else dataclasses.replace(part, **{key: bad})
                )
                found.append((f"{name}.{key}={bad!r}", {**question, name: changed}))
    return found


@pytest.mark.parametrize(
    ("rule", "question", "free"), YES, ids=[rule.__name__ for rule, _, _ in YES]
)
def test_one_malformed_part_is_a_no(
    rule: Callable[..., Any], question: dict[str, Any], free: set[str]
) -> None:
    if rule is isolation.choose_tier:
        question = question | {"working": frozenset(isolation.Tier)}
        free = free | {"working"}
    assert says_yes(rule(**question))
    for name, changed in variants(question):
        if name in free or name.partition("=")[0] in free:
            continue
        assert not says_yes(rule(**changed)), name
