"""Translate known answers: plain JSON in, the project's own function, a plain result out.

`call(module, function, input)` takes a vector file's own fields. The adapter only
translates; it holds no rule, no default that decides and no special case by id. A raise is
returned as `{"raises": true}`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from cryptography.hazmat.primitives.asymmetric import ed25519

from companion_core import providers
from companion_core.authority import custody, keychain, loopback_token
from companion_core.authority.memory_keychain import MemoryKeychain
from companion_core.decisions import (
    admission,
    availability,
    guard,
    integrity,
    lanes,
    lifecycle,
    manifest,
    oauth,
    rate,
    request_gate,
    resources,
    source,
    spawn_plan,
)
from companion_core.decisions import custody as decisions_custody
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.gateway.http.head import parse_head
from companion_core.gateway.http.responses import WIRE_STATUS
from companion_core.providers import ResourceLimits, ResourceObservation
from companion_core.system.secret import Secret

UNDEFINED = object()
Translator = Callable[[dict[str, Any]], Any]
_TRANSLATORS: dict[tuple[str, str], Translator] = {}


def translates(module: str, function: str) -> Callable[[Translator], Translator]:
    def register(translator: Translator) -> Translator:
        _TRANSLATORS[module, function] = translator
        return translator

    return register


def decode(value: Any) -> Any:
    """Replace the tagged objects of the vectors with the Python values they stand for."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$": "Infinity"}:
            return math.inf
        case {"$": "-Infinity"}:
            return -math.inf
        case {"$": "NaN"}:
            return math.nan
        case {"$": "undefined"}:
            return UNDEFINED
        case {"$": "bytes", "hex": text}:
            return bytes.fromhex(text)
        case {"$": "bytes_repeat", "hex": text, "count": count}:
            return bytes.fromhex(text) * count
        case {"$": "str_repeat", "value": text, "count": count}:
            return text * count
    decoded = {key: decode(item) for key, item in value.items()}
    if isinstance(decoded.get("headers"), dict):
        # A header whose value is undefined counts as sent, without a value.
        decoded["headers"] = dict.fromkeys(value["headers"]) | decoded["headers"]
    return {key: item for key, item in decoded.items() if item is not UNDEFINED}


def plain(value: Any) -> Any:
    """Turn what a translator returned into plain JSON values."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _secret(value: Any) -> Any:
    """Return a text as the secret that the rules take; any other value goes on as it came."""
    return Secret(value) if isinstance(value, str) else value


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"ok": verdict.ok, "reason": verdict.reason.value}


def known(module: str, function: str) -> bool:
    return (module, function) in _TRANSLATORS


def call(module: str, function: str, input: dict[str, Any]) -> Any:  # noqa: A002 - the contract's name
    translator = _TRANSLATORS[module, function]
    try:
        return plain(translator(decode(input)))
    except Exception:
        return {"raises": True}


# --- section: rules (lifecycle, resources, availability, lanes, oauth) ---


class _Refused(Exception):
    """The project's function refused where the reference raises."""


def _proved(result: Any) -> Any:
    if isinstance(result, Verdict):
        raise _Refused
    return result


def _state_name(state: Any) -> Any:
    # The reference wraps the name: {"state": "ready"}.
    return state.get("state") if isinstance(state, dict) else None


@translates("runtime_manager", "transition_lifecycle")
def _transition_lifecycle(args: dict[str, Any]) -> Any:
    before = _state_name(args.get("current_state"))
    moved = lifecycle.transition(before, args.get("event"))
    if moved.ok:
        return {"ok": True, "new_state": {"state": moved.state}}
    # A refusal leaves the caller's own state object unchanged, if there is one.
    after = before if isinstance(before, str) else moved.state
    return {"ok": False, "new_state": {"state": after}, "reason": moved.reason}


@translates("runtime_manager", "lifecycle_sequence")
def _lifecycle_sequence(args: dict[str, Any]) -> Any:
    state, steps = lifecycle.State.STOPPED, []
    for event in args["events"]:
        moved = lifecycle.transition(state, event)
        state = moved.state
        step = {
            "ok": moved.ok,
            "state": state,
            "can_serve": lifecycle.can_serve_inference(state),
        }
        steps.append(step if moved.ok else {**step, "reason": moved.reason})
    return {"steps": steps}


@translates("runtime_manager", "can_serve_inference")
def _can_serve_inference(args: dict[str, Any]) -> Any:
    return lifecycle.can_serve_inference(_state_name(args.get("lifecycle_state")))


def _limits(value: Any) -> Any:
    # "No ceiling" is Infinity there and None here; null or a missing value is neither.
    if not isinstance(value, dict):
        return value
    vram = value.get("max_vram_bytes", UNDEFINED)
    return ResourceLimits(
        max_ram_bytes=value.get("max_ram_bytes", UNDEFINED),
        max_vram_bytes=None if vram == math.inf else UNDEFINED if vram is None else vram,
        max_cpu_percent=value.get("max_cpu_percent", UNDEFINED),
    )


def _observation(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    names = ("ram_bytes", "vram_bytes", "cpu_percent")
    return ResourceObservation(**{name: value.get(name, UNDEFINED) for name in names})


@translates("runtime_manager", "create_resource_limits")
def _create_resource_limits(args: dict[str, Any]) -> Any:
    if not resources.check_limits(_limits(args)).ok:
        raise _Refused
    return args


@translates("runtime_manager", "evaluate_resource_limits")
def _evaluate_resource_limits(args: dict[str, Any]) -> Any:
    return _verdict(
        resources.evaluate_resources(
            _observation(args.get("observation")), _limits(args.get("limits"))
        )
    )


@translates("shell", "compute_companion_available")
def _compute_companion_available(args: dict[str, Any]) -> Any:
    state = args.get("state")
    if not isinstance(state, dict):
        return availability.evaluate_availability(state).ok
    # The reference counts in milliseconds; the rule compares, so only its default is converted.
    recency = state.get("health_recency_ms")
    facts = availability.AvailabilityFacts(
        verified=state.get("integrity_verified"),
        state=_state_name(state.get("lifecycle_state")),
        listener_bound=state.get("listener_bound"),
        token_stored=state.get("loopback_token_present"),
        last_health_ok=state.get("last_health_ok_at"),
        now=state.get("now"),
        recency_seconds=availability.RECENCY_SECONDS * 1000 if recency is None else recency,
    )
    return availability.evaluate_availability(facts).ok


def _dataclass_of(cls: type, value: Any) -> Any:
    known_names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: item for key, item in (value or {}).items() if key in known_names})


@translates("lane", "select_lane")
def _select_lane(args: dict[str, Any]) -> Any:
    return lanes.select_lane(
        _dataclass_of(lanes.LaneCapabilities, args.get("capabilities")),
        _dataclass_of(lanes.LanePreferences, args.get("preferences")),
    )


@translates("lane", "is_managed_lane")
def _is_managed_lane(args: dict[str, Any]) -> Any:
    return lanes.is_managed_lane(args.get("lane"))


@translates("lane", "enforce_consent_policy")
def _enforce_consent_policy(args: dict[str, Any]) -> Any:
    return lanes.enforce_consent_policy(args.pop("lane", None), **args).reason


@translates("oauth_pkce", "compute_code_challenge")
def _compute_code_challenge(args: dict[str, Any]) -> Any:
    return {"code_challenge": _proved(oauth.code_challenge(_secret(args.get("code_verifier"))))}


@translates("oauth_pkce", "constant_time_equal")
def _constant_time_equal(args: dict[str, Any]) -> Any:
    return oauth.constant_time_equal(args.get("a"), args.get("b"))


@translates("oauth_pkce", "validate_redirect_uri")
def _validate_redirect_uri(args: dict[str, Any]) -> Any:
    result = oauth.admit_redirect_uri(args.get("uri"), args.get("allowed_hosts"))
    if isinstance(result, Verdict):
        return _verdict(result)
    return {"ok": True, "host": result.host, "port": result.port, "pathname": result.path}


# The arguments that are secrets.
_SECRETS = frozenset({"code", "code_verifier", "refresh_token"})


def _keywords(function: Callable[..., Any], args: dict[str, Any]) -> dict[str, Any]:
    # Arguments that the function does not have are dropped, those without a default are None.
    return {
        name: _secret(args.get(name)) if name in _SECRETS else args.get(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if name in args or parameter.default is inspect.Parameter.empty
    }


@translates("oauth_pkce", "build_authorization_url")
def _build_authorization_url(args: dict[str, Any]) -> Any:
    build = oauth.build_authorization_url
    base, _, query = _proved(build(**_keywords(build, args))).partition("?")
    return {"base": base, "query": dict(parse_qsl(query, keep_blank_values=True))}


def _token_request(request: Any) -> Any:
    return {
        "url": request.url,
        "method": request.method,
        "headers": request.headers,
        "body_params": request.params,
        "body_parsed": dict(parse_qsl(request.body.decode("ascii"), keep_blank_values=True)),
    }


@translates("oauth_pkce", "build_token_request")
def _build_token_request(args: dict[str, Any]) -> Any:
    build = oauth.build_token_request
    return _token_request(_proved(build(**_keywords(build, args))))


@translates("oauth_pkce", "build_refresh_request")
def _build_refresh_request(args: dict[str, Any]) -> Any:
    build = oauth.build_refresh_request
    return _token_request(_proved(build(**_keywords(build, args))))


def _server_verdict(verdict: Verdict) -> dict[str, Any]:
    code = getattr(verdict, "error_code", None)
    return {**_verdict(verdict), **({"error_code": code} if code else {})}


@translates("oauth_pkce", "validate_authorization_response")
def _validate_authorization_response(args: Any) -> Any:
    given = args if isinstance(args, dict) else {}
    result = oauth.validate_authorization_response(
        given.get("params"),
        expected_state=given.get("expected_state"),
        expected_issuer=given.get("expected_issuer"),
    )
    if isinstance(result, Verdict):
        return _server_verdict(result)
    return {"ok": True, "code": result.code}


@translates("oauth_pkce", "validate_token_response")
def _validate_token_response(args: dict[str, Any]) -> Any:
    result = oauth.validate_token_response(args.get("response"))
    if isinstance(result, Verdict):
        return _server_verdict(result)
    return {
        "ok": True,
        "access_token": result.access_token,
        "refresh_token": result.refresh_token,
        "expires_in": result.expires_in,
        "token_type": "Bearer",
        "scope": result.scope,
    }


@translates("oauth_pkce", "decide_token_refresh")
def _decide_token_refresh(args: dict[str, Any]) -> Any:
    decide = oauth.decide_token_refresh
    return decide(**_keywords(decide, args.get("params") or {}))


# --- section: staging (source, integrity, manifest) ---


@translates("runtime_manager", "validate_source_url")
def _validate_source_url(given: dict[str, Any]) -> Any:
    return _verdict(source.check_source_url(given.get("url"), given.get("allowed_urls")))


@translates("runtime_manager", "validate_integrity_spec")
def _validate_integrity_spec(given: dict[str, Any]) -> Any:
    spec = integrity.parse_model_spec(
        given.get("expected_digest"), given.get("expected_size_bytes")
    )
    return _verdict(spec if isinstance(spec, Verdict) else OK)


@translates("runtime_manager", "integrity_accumulator")
def _integrity_accumulator(given: dict[str, Any]) -> Any:
    spec = integrity.parse_model_spec(given["expected_digest"], given["expected_size_bytes"])
    admitted = source.admit_source(given["source_url"], given["allowed_source_urls"])
    if isinstance(spec, Verdict) or isinstance(admitted, Verdict):
        return {"raises": True}
    accumulator = integrity.IntegrityAccumulator(spec)
    results: list[Any] = []
    signalled = None
    for index, op in enumerate(given["ops"]):
        match op["op"]:
            case "update":
                verdict = accumulator.update(op.get("chunk"))
                signalled = index if signalled is None and not verdict.ok else signalled
                results.append(_verdict(verdict))
            case "finalize":
                results.append(_verdict(accumulator.finalize()))
            case "abort":
                results.append(_verdict(accumulator.abort()))
            case "received_bytes":
                results.append(accumulator.received_bytes)
    return {
        "results": results,
        "must_signal_on_op": signalled,
        "received_bytes_at_most": accumulator.received_bytes,
    }


@translates("runtime_manager", "verify_model_bytes")
def _verify_model_bytes(given: dict[str, Any]) -> Any:
    return _verdict(
        integrity.verify_model_bytes(
            given.get("file_data"),
            sha256=given.get("expected_digest"),
            size=given.get("expected_size_bytes"),
            source=given.get("source_url"),
            allowed=given.get("allowed_source_urls"),
        )
    )


def _manifest_evidence(**signature: Any) -> Any:
    """Return what verification makes of a small manifest with the case's signature.

    The cases without the field are those whose manifest is properly signed.
    """
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    raw = key.public_key().public_bytes_raw()
    payload = json.dumps(
        {
            "schema": 1,
            "version": 1,
            "issued": "2026-01-01T00:00:00Z",
            "expires": "2026-01-31T00:00:00Z",
            "allowed_sources": ["https://models.example.org/"],
            "models": [
                {
                    "id": "tiny",
                    "format": "gguf",
                    "files": [
                        {
                            "name": "tiny.gguf",
                            "size": 1,
                            "sha256": "0" * 64,
                            "urls": ["https://models.example.org/tiny.gguf"],
                        }
                    ],
                }
            ],
        }
    ).encode()
    signed = key.sign(manifest.pre_authentication_encoding(manifest.PAYLOAD_TYPE, payload))
    value = {"signature": base64.b64encode(signed).decode(), **signature}["signature"]
    envelope = {
        "payload_type": manifest.PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"key_id": hashlib.sha256(raw).hexdigest(), "signature": value}],
    }
    return manifest.verify_manifest(
        json.dumps(envelope).encode(),
        trusted_keys=["ed25519:" + base64.b64encode(raw).decode()],
        now=1767225600.0,
        last_seen=None,
    )


@translates("shell", "validate_manifest_trust_anchor")
def _validate_manifest_trust_anchor(given: dict[str, Any]) -> Any:
    spec = given.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    signature = {key: value for key, value in given.items() if key == "signature"}
    return _verdict(
        manifest.check_trust_anchor(
            _manifest_evidence(**signature),
            manifest_url=spec.get("manifest_url"),
            model_url=spec.get("model_url"),
            sha256=spec.get("expected_digest"),
            size=spec.get("expected_size_bytes"),
            allowed=spec.get("allowed_source_urls"),
        )
    )


@translates("adapters", "require_https_download_url")
def _require_https_download_url(given: dict[str, Any]) -> Any:
    parsed = source.parse_https_url(given.get("url"))
    return {"raises": True} if isinstance(parsed, Verdict) else {"ok": True}


# --- section: gateway (guard, admission, request_gate) ---


def _rate_window(state: Any) -> rate.RateWindow | None:
    state = state if isinstance(state, dict) else {}
    return rate.restore_rate_window(
        state.get("window_ms"), state.get("max_requests"), state.get("timestamps")
    )


def _rate_state(window: rate.RateWindow) -> dict[str, Any]:
    return {
        "window_ms": window.window,
        "max_requests": window.max_requests,
        "timestamps": list(window.stamps),
    }


def _guard_answer(params: Any, window: rate.RateWindow | None) -> dict[str, Any]:
    """Run the guard; the vectors know one budget, no path and three refusing statuses."""
    params = params if isinstance(params, dict) else {}
    method = params.get("method")
    verdict = guard.verify_request(
        method,
        method.lower() if isinstance(method, str) else "",
        guard.fold_headers(params.get("headers")),
        params.get("token"),
        guard.guard_policy(
            hosts=params.get("allowed_hosts"),
            routes={"get": "GET", "post": "POST"},
            token=_secret(params.get("expected_token")),
        ),
        guard.RateBudgets(window, window),
        params.get("now"),
    )
    status = WIRE_STATUS.get(verdict.reason, 200)
    return {
        "allow": verdict.ok,
        "status": status if status in {200, 401, 429} else 403,
        "reason": verdict.reason.value,
    }


@translates("loopback_guard", "verify_loopback_request")
def _verify_loopback_request(given: dict[str, Any]) -> Any:
    params = given.get("params")
    state = params.get("rate_state") if isinstance(params, dict) else None
    return _guard_answer(params, _rate_window(state))


@translates("loopback_guard", "rate_limit_sequence")
def _rate_limit_sequence(given: dict[str, Any]) -> Any:
    window = rate.RateWindow(given["window_ms"], given["max_requests"])
    steps = [
        _guard_answer({**given["base"], **step}, window) | {"timestamps": list(window.stamps)}
        for step in given["steps"]
    ]
    return {"steps": steps}


@translates("loopback_guard", "evaluate_rate_limit")
def _evaluate_rate_limit(given: dict[str, Any]) -> Any:
    window = _rate_window(given.get("rate_state"))
    return _verdict(rate.check_rate(window, given.get("now")))


@translates("loopback_guard", "record_loopback_request")
def _record_loopback_request(given: dict[str, Any]) -> Any:
    window = _rate_window(given.get("rate_state"))
    window.record(given.get("now"))
    return {"state": _rate_state(window), "timestamps_len_at_most": window.max_requests}


@translates("loopback_guard", "create_loopback_rate_state")
def _create_loopback_rate_state(given: dict[str, Any]) -> Any:
    names = {"window_ms": "window", "max_requests": "max_requests"}
    window = rate.RateWindow(**{names[key]: value for key, value in given.items()})
    unit = 1 if "window_ms" in given else 1000  # the default is in seconds
    return _rate_state(window) | {"window_ms": window.window * unit}


@translates("loopback_guard", "should_count_toward_rate_limit")
def _should_count_toward_rate_limit(given: dict[str, Any]) -> Any:
    verdict = given.get("verdict")
    return guard.counts_toward_rate(verdict.get("reason") if isinstance(verdict, dict) else None)


@translates("loopback_guard", "constant_time_string_equal")
def _constant_time_string_equal(given: dict[str, Any]) -> Any:
    return guard.tokens_equal(given.get("a"), given.get("b"))


@translates("loopback_guard", "parse_host_header")
def _parse_host_header(given: dict[str, Any]) -> Any:
    parsed = guard.parse_host(given.get("host"))
    return None if parsed is None else {"hostname": parsed[0], "port": parsed[1]}


@translates("loopback_guard", "is_loopback_host")
def _is_loopback_host(given: dict[str, Any]) -> Any:
    return guard.is_loopback_host(given.get("host"))


@translates("adapters", "build_allowed_hosts")
def _build_allowed_hosts(given: dict[str, Any]) -> Any:
    hosts = guard.loopback_hosts(given.get("host"), given.get("port"))
    return {"allowed_hosts": list(hosts)} if hosts else {"raises": True}


@translates("adapters", "extract_loopback_bearer_token")
def _extract_loopback_bearer_token(given: dict[str, Any]) -> Any:
    headers = given.get("headers")
    if headers is None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in given["raw_headers"])
        head = parse_head(f"GET / HTTP/1.1\r\n{lines}".removesuffix("\r\n").encode("latin-1"))
        headers = {} if isinstance(head, Verdict) else head.headers
    return guard.bearer_token(headers.get("authorization"))


def _admission(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    counters = ("in_flight", "max_in_flight", "queued", "queue_bound")
    return admission.AdmissionSnapshot(**{name: state.get(name) for name in counters})


def _admission_state(state: Any) -> dict[str, Any]:
    return dataclasses.asdict(state)


@translates("runtime_manager", "create_admission_state")
def _create_admission_state(given: dict[str, Any]) -> Any:
    return _admission_state(
        admission.create_admission(given.get("max_in_flight"), given.get("queue_bound"))
    )


@translates("runtime_manager", "evaluate_admission")
def _evaluate_admission(given: dict[str, Any]) -> Any:
    # The note marks the other entry point: a new arrival, not the head of the queue.
    evaluate = admission.evaluate_arrival if "note" in given else admission.evaluate_admission
    return _verdict(evaluate(_admission(given.get("state"))))


@translates("runtime_manager", "record_in_flight")
def _record_in_flight(given: dict[str, Any]) -> Any:
    return {"state": _admission_state(admission.record_in_flight(_admission(given.get("state"))))}


@translates("runtime_manager", "record_completion")
def _record_completion(given: dict[str, Any]) -> Any:
    return {"state": _admission_state(admission.record_completion(_admission(given.get("state"))))}


@translates("runtime_manager", "record_queued")
def _record_queued(given: dict[str, Any]) -> Any:
    return {"state": _admission_state(admission.record_queued(_admission(given.get("state"))))}


@translates("runtime_manager", "record_dequeued")
def _record_dequeued(given: dict[str, Any]) -> Any:
    return {"state": _admission_state(admission.record_dequeued(_admission(given.get("state"))))}


@translates("runtime_manager", "admission_sequence")
def _admission_sequence(given: dict[str, Any]) -> Any:
    state = admission.create_admission(given["max_in_flight"], given["queue_bound"])
    steps = []
    for op in given["ops"]:
        result = "ok"
        try:
            match op:
                case "admit":
                    result = admission.evaluate_admission(state).reason.value
                    if result == "ok":
                        state = admission.record_in_flight(state)
                    elif result == "at_capacity":
                        state = admission.record_queued(state)
                case "complete":
                    state = admission.record_completion(state)
                case "dequeue":
                    state = admission.record_in_flight(admission.record_dequeued(state))
        except ValueError:
            result = "raises"
        steps.append({"result": result, "in_flight": state.in_flight, "queued": state.queued})
    return {"steps": steps}


def _present(value: Any) -> Any:
    """Return None for the values that count as missing in the vectors' language."""
    falsy = value is None or (isinstance(value, bool | int | float | str) and not value)
    return None if falsy or value != value else value  # noqa: PLR0124 - NaN differs from itself


def _fields(value: Any, kind: type, names: tuple[str, ...]) -> Any:
    value = _present(value)
    if not isinstance(value, dict):
        return value
    return kind(**{name: value.get(name) for name in names})


@translates("runtime_manager", "evaluate_runtime_request")
def _evaluate_runtime_request(given: dict[str, Any]) -> Any:
    params = given.get("params")
    params = params if isinstance(params, dict) else {}
    lifecycle = _present(params.get("lifecycle_state"))
    if lifecycle is not None:
        lifecycle = (
            lifecycle.get("state", lifecycle) if isinstance(lifecycle, dict) else [lifecycle]
        )
    return _verdict(
        request_gate.evaluate_runtime_request(
            lifecycle=lifecycle,
            admission=_admission(_present(params.get("admission_state"))),
            observation=_fields(
                params.get("resource_observation"),
                providers.ResourceObservation,
                ("ram_bytes", "vram_bytes", "cpu_percent"),
            ),
            limits=_fields(
                params.get("resource_limits"),
                providers.ResourceLimits,
                ("max_ram_bytes", "max_vram_bytes", "max_cpu_percent"),
            ),
        )
    )


# --- section: keychain (custody) ---


@translates("adapters", "require_keychain_secret")
def _require_keychain_secret(args: dict[str, Any]) -> Any:
    keychain.require_secret(args.get("secret"))
    return {"ok": True}


@translates("adapters", "require_known_keychain_account")
def _require_known_keychain_account(args: dict[str, Any]) -> Any:
    keychain.require_account(args.get("account"))
    return {"ok": True}


@translates("token_custody", "build_session_meta")
def _build_session_meta(args: dict[str, Any]) -> Any:
    context = args["ctx"]
    meta = decisions_custody.build_session_meta(
        args["token_response"],
        now=context.get("now"),
        refresh_ttl_ms=context.get("refresh_ttl_ms"),
        issuer=context.get("issuer"),
    )
    return {"raises": True} if isinstance(meta, Verdict) else dataclasses.asdict(meta)


@translates("token_custody", "create_token_custody")
def _create_token_custody(args: dict[str, Any]) -> Any:
    provider: Any = args.get("adapter")
    if isinstance(provider, dict):
        # The seam has a `status` that the reference does not have.
        methods = dict.fromkeys([*provider["has"], "status"], lambda *_: None)
        provider = type("Provider", (), methods)()
    custody.SessionCustody(keychain.GuardedKeychain(provider, instance="vectors"))
    return {"ok": True}


class _FailingStore(MemoryKeychain):
    """Fails the operations that a case names: "set:refresh_token"."""

    def __init__(self, fail_on: list[str]) -> None:
        super().__init__()
        self.fail_on = frozenset(fail_on)

    def set(self, account: str, secret: str) -> None:
        self._fail("set", account)
        super().set(account, secret)

    def delete(self, account: str) -> None:
        self._fail("delete", account)
        super().delete(account)

    def _fail(self, operation: str, account: str) -> None:
        if f"{operation}:{account.rpartition('/')[2]}" in self.fail_on:
            raise providers.KeychainUnavailable(Reason.KEYCHAIN_REFUSED)


def _store_text(item: Any) -> str:
    return json.dumps(item["value"]) if isinstance(item, dict) else item


def _store_value(account: str, text: str) -> Any:
    if account != decisions_custody.Account.SESSION_META:
        return text
    try:
        return {"$": "json", "value": json.loads(text)}
    except ValueError:
        return text


def _custody_operation(
    session: custody.SessionCustody,
    loopback: loopback_token.LoopbackToken,
    op: str,
    args: dict[str, Any],
) -> Any:
    match op:
        case "store_session" | "update_access_token":
            unnamed = None if op == "store_session" else custody.KEEP
            meta = decisions_custody.parse_session_meta(args.get("meta"))
            if isinstance(meta, Verdict):
                raise error_for(meta.reason)
            return session.store_session(
                access_token=_secret(args.get("access_token")),
                refresh_token=_secret(args.get("refresh_token", unnamed)),
                meta=meta,
            )
        case "load_session":
            loaded = session.load_session()
            return None if loaded is None else dataclasses.asdict(loaded)
        case "clear_session":
            return session.clear_session()
        case "decide":
            return session.decide(args["now"])
        case "store_loopback_token" | "rotate_loopback_token":
            return loopback.store(_secret(args.get("token")))
        case "get_loopback_token":
            return loopback.load()
        case "clear_loopback_token":
            return loopback.clear()
    raise NotImplementedError(op)


@translates("token_custody", "custody_sequence")
def _custody_sequence(args: dict[str, Any]) -> Any:
    store = _FailingStore(args.get("fail_on", []))
    for account, item in args.get("initial_store", {}).items():
        MemoryKeychain.set(store, f"companion/vectors/{account}", _store_text(item))
    guarded = keychain.GuardedKeychain(store, instance="vectors")
    session, loopback = custody.SessionCustody(guarded), loopback_token.LoopbackToken(guarded)
    results = []
    for step in args["ops"]:
        try:
            result = _custody_operation(session, loopback, step["op"], step.get("args", {}))
        except CompanionError:
            result = {"raises": True}
        results.append(result)
    kept = {
        account.value: _store_value(account, text)
        for account in decisions_custody.Account
        if (text := store.get(f"companion/vectors/{account}")) is not None
    }
    meta = kept.get("session_meta")
    return {
        "results": results,
        "final_store": kept,
        "final_store_must_not_have": [
            account.value
            for account in (
                *decisions_custody.CLEARING_ORDER,
                decisions_custody.Account.LOOPBACK_TOKEN,
            )
            if account.value not in kept
        ],
        "final_store_session_meta_keys_within": (
            list(meta["value"])
            if isinstance(meta, dict) and isinstance(meta["value"], dict)
            else []
        ),
    }


# --- section: runtime (spawn plan, pid, env) ---


@translates("adapters", "require_runtime_pid")
def _require_runtime_pid(args: dict[str, Any]) -> Any:
    pid = spawn_plan.parse_pid(args.get("pid"))
    return {"raises": True} if isinstance(pid, Verdict) else {"pid": pid}
