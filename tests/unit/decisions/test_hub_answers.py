"""What a hub's refusals mean, and which hosts its bytes may come from."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.decisions.hub_answers import (
    HubProblem,
    admit_redirect,
    explain_answer,
    hub_settings,
    is_hop_admitted,
    is_hub_host,
    stated_digest,
    wait_seconds,
)
from companion_core.decisions.source import SourceUrl, admit_source, parse_https_url
from companion_core.decisions.verdict import Verdict

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("huggingface.co", 443, True),
        ("us.aws.cdn.hf.co", 443, True),
        ("hf.co", 443, True),
        ("hf.co", 8443, False),
        ("hf.co.evil.example", 443, False),
        ("evilhf.co", 443, False),
        ("huggingface.co.", 443, False),
        ("", 443, False),
        (None, 443, False),
    ],
)
def test_bytes_come_from_the_hub_or_below_it(host: Any, port: int, allowed: bool) -> None:
    assert is_hub_host(host, port) is allowed


@pytest.mark.parametrize(
    ("status", "headers", "with_token", "problem"),
    [
        (200, {}, False, None),
        (302, {}, False, None),
        (401, {"x-error-code": "GatedRepo"}, False, HubProblem.GATED),
        (403, {"x-error-code": "GatedRepo"}, True, HubProblem.NOT_GRANTED),
        (401, {}, False, HubProblem.ABSENT_OR_PRIVATE),
        (404, {"x-error-code": "RepoNotFound"}, True, HubProblem.ABSENT),
        (404, {"x-error-code": "RevisionNotFound"}, False, HubProblem.NO_REVISION),
        (404, {"x-error-code": "EntryNotFound"}, False, HubProblem.NO_FILE),
        (
            401,
            {"x-error-message": "Invalid credentials in Authorization header"},
            True,
            HubProblem.BAD_TOKEN,
        ),
        (
            403,
            {"x-error-message": "Access to this resource is disabled."},
            True,
            HubProblem.DISABLED,
        ),
        (429, {}, False, HubProblem.LIMITED),
        (500, {}, False, HubProblem.FAILED),
        (503, None, False, HubProblem.FAILED),
        ("404", {}, False, None),
    ],
)
def test_an_answer_is_explained(
    status: Any, headers: Any, with_token: bool, problem: HubProblem | None
) -> None:
    assert explain_answer(status, headers, with_token=with_token) is problem


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"api";r=0;t=55'}, 56),
        ({"ratelimit": '"api";t=7;r=0'}, 8),
        ({"retry-after": "3"}, 4),
        ({"ratelimit": '"api";r=0;t=99999999'}, 300),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_how_long_to_wait_is_read(headers: Any, seconds: int | None) -> None:
    assert wait_seconds(headers) == seconds


# --- where the hub is, and whom it may send to ---


@pytest.mark.parametrize(
    ("environment", "host", "offline"),
    [
        ({}, "huggingface.co", False),
        (None, "huggingface.co", False),
        ({"HF_ENDPOINT": ""}, "huggingface.co", False),
        ({"HF_ENDPOINT": " https://hub.example/ "}, "hub.example", False),
        ({"HF_ENDPOINT": "http://hub.example"}, None, False),
        ({"HF_ENDPOINT": "hub.example"}, None, False),
        ({"HF_HUB_OFFLINE": "1"}, "huggingface.co", True),
        ({"TRANSFORMERS_OFFLINE": "Yes"}, "huggingface.co", True),
        ({"HF_HUB_OFFLINE": "0"}, "huggingface.co", False),
    ],
)
def test_the_environment_says_where_the_hub_is(
    environment: Any, host: str | None, offline: bool
) -> None:
    told = hub_settings(environment)
    assert told.offline is offline
    assert getattr(told.endpoint, "host", None) == host


@pytest.mark.parametrize(
    ("endpoint", "hop", "admitted"),
    [
        ("https://huggingface.co", "https://us.aws.cdn.hf.co/x", True),
        ("https://huggingface.co", "https://huggingface.co/x", True),
        ("https://huggingface.co", "https://us.aws.cdn.hf.co:8443/x", False),
        ("https://huggingface.co", "https://huggingface.co:8443/x", False),
        ("https://hub.example:8443", "https://hub.example:8443/x", True),
        ("https://hub.example:8443", "https://hub.example:9443/x", False),
        ("https://huggingface.co", "https://hf.co.evil.example/x", False),
        ("https://huggingface.co", "https://evilhf.co/x", False),
        ("https://huggingface.co", "https://127.0.0.1/x", False),
        ("https://hub.example", "https://cdn.hub.example/x", True),
        ("https://hub.example", "https://cdn.hub.example:8443/x", False),
        ("https://hub.example", "https://us.aws.cdn.hf.co/x", True),
        ("https://hub.example", "https://other.example/x", False),
        ("https://127.0.0.1:8443", "https://127.0.0.1:9443/x", True),
        ("https://127.0.0.1:8443", "https://192.168.0.1/x", False),
    ],
)
def test_a_hub_may_send_to_itself_below_itself_and_to_the_public_hub(
    endpoint: str, hop: str, admitted: bool
) -> None:
    assert is_hop_admitted(parse_https_url(endpoint), parse_https_url(hop)) is admitted


@pytest.mark.parametrize("value", [None, "https://huggingface.co", 7])
def test_only_parsed_addresses_are_admitted(value: object) -> None:
    hub = parse_https_url("https://huggingface.co")
    assert not is_hop_admitted(hub, value)
    assert not is_hop_admitted(value, hub)


CDN = "https://eu.gcp.cdn.hf.co/xet-bridge-eu/x?Signature=s"


def source(url: str) -> SourceUrl:
    found = admit_source(url, [url])
    assert isinstance(found, SourceUrl)
    return found


@pytest.mark.parametrize(
    ("signed", "leads_to", "admitted"),
    [
        ("https://huggingface.co/a/b/resolve/c/m.gguf", CDN, True),
        ("https://hf.co/a/b/resolve/c/m.gguf", "https://huggingface.co/x", True),
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "https://cdn.example.org/x", True),
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "https://hf.co.evil.example/x", False),
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "https://cdn.hf.co:8443/x", False),
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "https://me@cdn.hf.co/x", False),
        ("https://huggingface.co/a/b/resolve/c/m.gguf", "http://cdn.hf.co/x", False),
        ("https://huggingface.co:8443/a/b/resolve/c/m.gguf", CDN, False),
        ("https://models.example.org/m.gguf", CDN, False),
        ("https://us.aws.cdn.hf.co/m.gguf", CDN, False),
    ],
)
def test_the_hubs_byte_hosts_are_for_redirects_of_the_hubs_addresses_alone(
    signed: str, leads_to: str, admitted: bool
) -> None:
    found = admit_redirect(source(signed), leads_to, ["https://cdn.example.org/"])
    assert isinstance(found, SourceUrl) is admitted
    assert isinstance(admit_redirect(signed, CDN, []), Verdict)  # a text proves nothing


@pytest.mark.parametrize("leads_to", [None, 7, "", "https://"])
def test_what_is_no_address_is_never_admitted(leads_to: Any) -> None:
    hub = source("https://huggingface.co/a/b/resolve/c/m.gguf")
    assert isinstance(admit_redirect(hub, leads_to, []), Verdict)


@pytest.mark.parametrize(
    ("headers", "stated"),
    [
        ({"x-linked-etag": f'"{"a" * 64}"', "x-linked-size": "12"}, ("a" * 64, 12)),
        ({"x-linked-etag": "a" * 64, "x-linked-size": "-1"}, (None, None)),
        ({"x-linked-etag": f'W/"{"a" * 64}"', "x-linked-size": "1e3"}, (None, None)),
        ({"x-linked-etag": f'"{"A" * 64}"'}, (None, None)),
        (None, (None, None)),
    ],
)
def test_a_stated_digest_is_one_or_none(headers: Any, stated: Any) -> None:
    assert stated_digest(headers) == stated
