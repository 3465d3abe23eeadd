"""The values of the decision core: closed, frozen, said by name, and silent about secrets."""

from __future__ import annotations

import copy
import dataclasses
import enum
import importlib
import pickle
import pkgutil
from typing import Any

import pytest

from companion_core import decisions
from companion_core.decisions.evidence import Evidence
from companion_core.decisions.integrity import ModelSpec, parse_model_spec
from companion_core.decisions.isolation import PROMISES, Tier
from companion_core.decisions.lanes import Lane
from companion_core.decisions.lifecycle import Event, State
from companion_core.decisions.oauth import (
    AuthorizationCode,
    ErrorCode,
    RefreshDecision,
    TokenRequest,
    TokenResponse,
    build_refresh_request,
    build_token_request,
    validate_token_response,
)
from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

pytestmark = pytest.mark.unit

MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(decisions.__path__, f"{decisions.__name__}.")
]
VALUES = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
    },
    key=lambda value: value.__qualname__,
)
# Values of many fields of one type are made by name alone; the others are short.
BY_POSITION = {
    *("AuthorizationCode", "Endpoint", "GateStep", "GuardStep", "HttpsUrl", "LastSeen"),
    *(
        "Listener",
        "LoopbackChannel",
        "Manifest",
        "ManifestFile",
        "ManifestModel",
        "ModelSpec",
        "RateBudgets",
    ),
    *("RedirectUri", "ServerError", "SourceUrl", "Transition", "Verdict"),
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__qualname__)
def test_a_value_never_changes_and_takes_no_other_field(value: Any) -> None:
    assert value.__dataclass_params__.frozen
    assert not hasattr(object.__new__(value), "__dict__")


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__qualname__)
def test_a_value_of_many_alike_fields_is_made_by_name(value: Any) -> None:
    by_name = all(field.kw_only for field in dataclasses.fields(value))
    assert by_name is (value.__qualname__ not in BY_POSITION)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (State, "stopped starting ready draining"),
        (Event, "start health_ok health_fail drain stopped exited aborted"),
        (Lane, "local self_hosted enterprise openrouter direct_provider disabled"),
        (RefreshDecision, "valid refresh reauth"),
        (Tier, "bubblewrap landlock sandbox-exec job-object none"),
        (
            ErrorCode,
            "invalid_request unauthorized_client access_denied unsupported_response_type "
            "invalid_scope server_error temporarily_unavailable invalid_grant invalid_client "
            "unsupported_grant_type",
        ),
    ],
)
def test_names_have_the_texts_that_others_rely_on(names: type[enum.StrEnum], texts: str) -> None:
    assert [str(name) for name in names] == texts.split()


def test_what_each_way_of_confinement_promises() -> None:
    everything = {
        "reads no file of the person but what it was given",
        "reaches no Unix socket of another program",
        "reads neither memory nor environment of the companion",
        "reaches no network",
        "signals no process of another program",
        "ends when the companion ends",
    }
    lifetime = {"ends when the companion ends"}
    assert {tier: set(promises) for tier, promises in PROMISES.items()} == {
        Tier.BUBBLEWRAP: everything,
        Tier.LANDLOCK: everything,
        Tier.SANDBOX_EXEC: {
            "reads no file of the person but what it was given",
            "reaches no network",
            *lifetime,
        },
        Tier.JOB_OBJECT: lifetime,
        Tier.NONE: lifetime,
    }


# --- evidence -------------------------------------------------------------------------------


def spec() -> ModelSpec:
    made = parse_model_spec("0" * 64, 1)
    assert isinstance(made, ModelSpec)
    return made


def test_evidence_is_made_where_it_is_proved_alone() -> None:
    with pytest.raises(TypeError, match=r"^ModelSpec is made by .*\.integrity alone$"):
        ModelSpec("0" * 64, 1)
    with pytest.raises(TypeError, match=r"^Evidence is made by nobody alone$"):
        Evidence()
    assert not Evidence.made_in


def test_the_module_of_a_proof_is_known_by_its_own_name() -> None:
    class Local(Evidence):
        pass

    assert Local.made_in == __name__
    assert isinstance(Local(), Local)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_evidence_is_not_copied(copied: Any) -> None:
    with pytest.raises(TypeError, match=r"^evidence is not copied or stored; it is proved again$"):
        copied(spec())


# --- secrets --------------------------------------------------------------------------------


def token_response() -> TokenResponse:
    made = validate_token_response(
        {
            "token_type": "bearer",
            "expires_in": 60,
            "access_token": "SECRET-1",
            "refresh_token": "SECRET-2",
            "id_token": "SECRET-3",
        }
    )
    assert isinstance(made, TokenResponse)
    return made


def token_request() -> TokenRequest:
    made = build_token_request(
        token_endpoint="https://as.example/token",
        client_id="client",
        code=Secret("SECRET-code"),
        code_verifier=Secret("SECRET-" + "a" * 43),
        redirect_uri="http://127.0.0.1:9/",
    )
    assert isinstance(made, TokenRequest)
    return made


def refresh_request() -> TokenRequest:
    made = build_refresh_request(
        token_endpoint="https://as.example/token", client_id="c", refresh_token=Secret("SECRET")
    )
    assert isinstance(made, TokenRequest)
    return made


@pytest.mark.parametrize(
    "make",
    [token_response, token_request, refresh_request, lambda: AuthorizationCode(Secret("SECRET"))],
)
def test_what_holds_a_secret_does_not_say_it(make: Any) -> None:
    assert "SECRET" not in repr(make())


def test_a_form_is_sent_as_a_form() -> None:
    request = token_request()
    assert request.method == "POST"
    assert dict(request.headers) == {
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
    }
    with pytest.raises(TypeError):
        request.headers["Authorization"] = "Basic x"  # type: ignore[index]  # a copy is read-only
    assert request.body.startswith(b"grant_type=authorization_code&code=SECRET-code&")


def test_a_token_response_may_bring_the_access_token_alone() -> None:
    made = TokenResponse(access_token=Secret("a"), refresh_token=None, expires_in=1, scope=None)
    assert made.id_token is None


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_one_value_and_never_ok(reason: Reason) -> None:
    assert refuse(reason) is refuse(reason)
    assert (refuse(reason).ok, refuse(reason).reason) == (False, reason)
    assert (OK.ok, OK.reason) == (True, Reason.OK)
