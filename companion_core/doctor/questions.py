"""Questions that a hostile party would put to each rule; each returns the rule's answer.

Nothing here touches the machine: all models, plans, requests and plugins are made up.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

from companion_core.decisions.availability import AvailabilityFacts, evaluate_availability
from companion_core.decisions.guard import (
    GuardPolicy,
    RateBudgets,
    guard_policy,
    loopback_hosts,
    verify_request,
)
from companion_core.decisions.integrity import IntegrityAccumulator, ModelSpec, parse_model_spec
from companion_core.decisions.lifecycle import State
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.runtime_readback import Listener, check_environment, check_listeners
from companion_core.decisions.spawn_plan import PlanFacts, check_plan
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason, Refused
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP
from companion_core.models.store import VerifiedModel
from companion_core.plugin_host import FoundPlugin, judge_found
from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.system.secret import Secret

__all__ = [
    "ALLOWED",
    "FILE",
    "PORT",
    "TOKEN",
    "availability",
    "check_made_up_plan",
    "forge_model",
    "leak_a_secret",
    "plugin_on_both_sides",
    "read_environment",
    "read_listener",
    "receive",
    "request",
]

# --- I-01: only the code that verified a model makes its evidence --------------------------


def forge_model() -> Reason:
    """Try to make a `VerifiedModel` outside the code that verifies models."""
    try:
        VerifiedModel("forged", "gguf", None, (), [])
    except TypeError:
        return Reason.NOT_VERIFIED
    return Reason.OK


# --- I-03, I-04: addresses and bytes -------------------------------------------------------

ALLOWED: Final = ("https://models.example.org/companion/",)
FILE: Final = "https://models.example.org/companion/x.gguf"


def receive(data: bytes, size: int, *, of: bytes = b"") -> Verdict:
    """Check `data` against a signed entry with this size and the digest of `of` (I-01, I-04)."""
    spec = parse_model_spec(hashlib.sha256(of).hexdigest(), size)
    assert isinstance(spec, ModelSpec)  # noqa: S101 - its digest and size are valid
    accumulator = IntegrityAccumulator(spec)
    verdict = accumulator.update(data)
    return verdict if not verdict.ok else accumulator.finalize()


# --- I-05, I-06, I-07: the plan and what is read back --------------------------------------

_SOCKET: Final = UnixChannel(path="/run/companion/backend.sock")
PORT: Final = TcpChannel(host="127.0.0.1", port=40123)


def check_made_up_plan(
    *argv: str, channel: UnixChannel | TcpChannel = _SOCKET, **env: str
) -> Reason:
    """Check a plan of the program /usr/bin/runtime that would start `argv` (I-05, I-07)."""
    facts = PlanFacts(
        binary="/usr/bin/runtime",
        embedded=False,
        embedded_modules=frozenset(),
        env_names=frozenset(env),
        base_names=frozenset(),
        model_path="/model",
        channel=channel,
        data_dir="/data",
    )
    address = channel.path if isinstance(channel, UnixChannel) else str(channel.port)
    plan = SpawnPlan(argv=(*argv, "/model", address), served_model="probe", env=env)
    checked = check_plan(plan, facts)
    return checked.reason if isinstance(checked, Verdict) else Reason.OK


def read_environment(*names: str) -> Verdict:
    """Judge a runtime whose environment has these names and the planned PATH (I-06)."""
    return check_environment(
        frozenset({"PATH", *names}), (), planned=frozenset({"PATH"}), child_names=frozenset()
    )


def read_listener(address: str) -> Verdict:
    """Judge a runtime on a Unix socket that also listens on `address` (I-07)."""
    found = frozenset({Listener("tcp", address, 8080)})
    return check_listeners(found, _SOCKET, allow_open_backend=False)


# --- I-09: lifecycle and availability ------------------------------------------------------


def availability(**changes: object) -> Verdict:
    """Judge the facts of a healthy companion with `changes` (I-09)."""
    facts = {
        "verified": True,
        "state": State.READY,
        "listener_bound": True,
        "token_stored": True,
        "last_health_ok": 100.0,
        "now": 101.0,
    }
    return evaluate_availability(
        AvailabilityFacts(**{**facts, **changes})  # type: ignore[arg-type] # a probe may pass any type
    )


# --- I-10, I-17: the guard -----------------------------------------------------------------

_HOST: Final = "127.0.0.1:40123"
TOKEN: Final = "a" * 43  # made up: the guard's rule is asked, not a running gateway


@functools.cache
def _policy() -> GuardPolicy:
    hosts = loopback_hosts("127.0.0.1", PORT.port)
    return guard_policy(hosts=hosts, routes={"/v1/models": "GET"}, token=Secret(TOKEN))


def request(
    *,
    method: str = "GET",
    path: str = "/v1/models",
    token: str = TOKEN,
    rates: bool = True,
    policy: GuardPolicy | None = None,
    **headers: str,
) -> Verdict:
    """Judge a request of the owner, changed by the arguments (I-10, I-17)."""
    budgets = RateBudgets(RateWindow(), RateWindow()) if rates else RateBudgets(None, None)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"host": _HOST, **named}
    return verify_request(method, path, sent, token, policy or _policy(), budgets, 0.0)


# --- I-14: the two sides -------------------------------------------------------------------


def plugin_on_both_sides() -> Reason:
    """Judge a distribution that declares plugins on both sides."""

    def declared(name: str, group: str) -> FoundPlugin:
        return FoundPlugin(
            name=name,
            group=group,
            module="probe",
            distribution="probe",
            version="1",
            root="",
            editable=False,
            digest=None,
            files=(),
            modules={"probe": "probe.py"},
            intact=True,
            first_on_path=True,
        )

    both = [declared("probe-a", AUTHORITY_GROUP), declared("probe-b", RUNTIME_GROUP)]
    return judge_found(both, first_party={})[0]


# --- I-15: what an error says --------------------------------------------------------------


def leak_a_secret() -> Reason:
    """Show that an error's text is its reason alone, whatever its detail is."""
    secret = "a secret of the probe"  # noqa: S105 - made up for this probe
    error = Refused(Reason.SECRET_INVALID, secret)
    return Reason.OK if secret in f"{error} {error!r} {error.args}" else error.reason
