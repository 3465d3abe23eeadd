"""What a hub's refusals mean, and which hosts its bytes may come from."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.decisions.hub_answers import (
    HubProblem,
    explain_answer,
    is_hub_host,
    wait_seconds,
)

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
