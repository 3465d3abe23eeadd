"""Ask each rule something hostile and see it refused: what can only be shown in action.

Nothing here touches the machine. `PROBES` is the table; each row says who asks, and the one
answer that shows the rule at work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.authority.keychain import require_account, require_secret
from companion_core.decisions.admission import decide_arrival
from companion_core.decisions.availability import AvailabilityFacts, evaluate_availability
from companion_core.decisions.guard import (
    GuardPolicy,
    RateBudgets,
    guard_policy,
    loopback_hosts,
    verify_request,
)
from companion_core.decisions.integrity import IntegrityAccumulator, ModelSpec, parse_model_spec
from companion_core.decisions.isolation import choose_tier
from companion_core.decisions.lifecycle import Event, State, transition
from companion_core.decisions.manifest import check_manifest_origin, verify_manifest
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.resources import evaluate_resources
from companion_core.decisions.runtime_readback import (
    Listener,
    check_environment,
    check_listeners,
)
from companion_core.decisions.source import check_source_url
from companion_core.decisions.spawn_plan import PlanFacts, check_env_name, check_plan
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP
from companion_core.plugin_host.rules import FoundPlugin, judge_found
from companion_core.plugin_host.selection import choose_keychain
from companion_core.providers import (
    MAX_SECRET_BYTES,
    ResourceLimits,
    SpawnPlan,
    TcpChannel,
    UnixChannel,
)
from companion_core.runtime.binary import prove_binary
from companion_core.runtime.staging import VerifiedModel

__all__ = ["PROBES", "Probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to a rule.

    Attributes:
        who: asks, in words.
        ask: returns the rule's answer.
        expected: the only reason that shows the rule at work.
    """

    who: str
    ask: Callable[[], object]
    expected: Reason

    def answer(self) -> Reason:
        """Return the reason that the rule gave; one that gave none is `internal_fault`."""
        try:
            said = self.ask()
        except CompanionError as error:
            return error.reason
        reason = getattr(said, "reason", said)
        return reason if isinstance(reason, Reason) else Reason.INTERNAL_FAULT


# --- I-01: evidence is made by what proved it ----------------------------------------------


def _forge_model() -> Reason:
    """Make a `VerifiedModel` here, which is not where models are verified."""
    try:
        VerifiedModel("forged", "gguf", None, (), [])
    except TypeError:
        return Reason.NOT_VERIFIED
    return Reason.OK


# --- I-03, I-04: addresses and bytes -------------------------------------------------------

_ALLOWED: Final = ("https://models.example.org/companion/",)
_FILE: Final = "https://models.example.org/companion/x.gguf"
_EMPTY_SHA256: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _receive(data: bytes, size: int) -> Verdict:
    spec = parse_model_spec(_EMPTY_SHA256, size)
    assert isinstance(spec, ModelSpec)  # noqa: S101 - a digest and a size are one
    accumulator = IntegrityAccumulator(spec)
    verdict = accumulator.update(data)
    return verdict if not verdict.ok else accumulator.finalize()


# --- I-05, I-06, I-07: the plan and what is read back --------------------------------------

_SOCKET: Final = UnixChannel(path="/run/companion/backend.sock")
_PORT: Final = TcpChannel(host="127.0.0.1", port=40123)


def _plan(*argv: str, channel: UnixChannel | TcpChannel = _SOCKET, **env: str) -> object:
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
    return check_plan(plan, facts)


def _read_environment(*names: str) -> Verdict:
    return check_environment(
        frozenset({"PATH", *names}), (), planned=frozenset({"PATH"}), child_names=frozenset()
    )


def _read_listener(address: str) -> Verdict:
    held = frozenset({Listener("tcp", address, 8080)})
    return check_listeners(held, _SOCKET, allow_open_backend=False)


# --- I-09: lifecycle and availability ------------------------------------------------------


def _available(**changes: object) -> Verdict:
    facts = {
        "verified": True,
        "state": State.READY,
        "listener_bound": True,
        "token_stored": True,
        "last_health_ok": 100.0,
        "now": 101.0,
    }
    return evaluate_availability(AvailabilityFacts(**{**facts, **changes}))  # type: ignore[arg-type]


# --- I-10, I-17: the guard -----------------------------------------------------------------

_HOST: Final = "127.0.0.1:40123"
_TOKEN: Final = "a" * 43  # no session's token: the guard is asked, not a gateway


@functools.cache
def _policy() -> GuardPolicy:
    hosts = loopback_hosts("127.0.0.1", _PORT.port)
    return guard_policy(hosts=hosts, routes={"/v1/models": "GET"}, token=_TOKEN)


def _request(
    *,
    method: str = "GET",
    path: str = "/v1/models",
    token: str = _TOKEN,
    rates: bool = True,
    policy: GuardPolicy | None = None,
    **headers: str,
) -> Verdict:
    budgets = RateBudgets(RateWindow(), RateWindow()) if rates else RateBudgets(None, None)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"host": _HOST, **named}
    return verify_request(method, path, sent, token, policy or _policy(), budgets, 0.0)


# --- I-14: the two sides -------------------------------------------------------------------


def _amphibian() -> Reason:
    """Have a distribution judged that declares plugins on both sides."""

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


def _leak() -> Reason:
    """See that an error's text is its reason alone, whatever its detail is."""
    secret = "a secret of the probe"  # noqa: S105 - made up
    error = Refused(Reason.SECRET_INVALID, secret)
    return Reason.OK if secret in f"{error} {error!r} {error.args}" else error.reason


_LIMITS: Final = ResourceLimits(max_ram_bytes=1, max_vram_bytes=None, max_cpu_percent=1)

PROBES: Final[Mapping[str, tuple[Probe, ...]]] = MappingProxyType(
    {
        "I-01": (Probe("a model that nobody verified", _forge_model, Reason.NOT_VERIFIED),),
        "I-02": (
            Probe(
                "an unsigned manifest",
                lambda: verify_manifest(b"{}", trusted_keys=(), now=0.0, last_seen=None),
                Reason.MANIFEST_MALFORMED,
            ),
            Probe(
                "a manifest from the model's own host",
                lambda: check_manifest_origin(_FILE, (_FILE,)),
                Reason.MANIFEST_UNTRUSTED,
            ),
        ),
        "I-03": (
            Probe(
                "a plain http source",
                lambda: check_source_url(_FILE.replace("https", "http"), _ALLOWED),
                Reason.SCHEME_NOT_ALLOWED,
            ),
            Probe(
                "a sibling of an allowed folder",
                lambda: check_source_url(_FILE.replace("companion", "companion-2"), _ALLOWED),
                Reason.SOURCE_NOT_ALLOWED,
            ),
            Probe(
                "an address with credentials",
                lambda: check_source_url(_FILE.replace("//", "//person@"), _ALLOWED),
                Reason.SOURCE_NOT_ALLOWED,
            ),
        ),
        "I-04": (
            Probe("one byte too many", lambda: _receive(b"xy", 1), Reason.SIZE_MISMATCH),
            Probe("one byte too few", lambda: _receive(b"", 1), Reason.SIZE_MISMATCH),
            Probe("other bytes", lambda: _receive(b"x", 1), Reason.DIGEST_MISMATCH),
        ),
        "I-05": (
            Probe("a relative program", lambda: prove_binary("runtime"), Reason.RUNTIME_UNSAFE),
            Probe("a shell", lambda: _plan("/bin/sh", "-c", "x"), Reason.PLAN_REFUSED),
        ),
        "I-06": (
            Probe("a loader's variable", lambda: check_env_name("LD_PRELOAD"), Reason.PLAN_REFUSED),
            Probe("a secret's name", lambda: check_env_name("API_TOKEN"), Reason.PLAN_REFUSED),
            Probe(
                "an unplanned name",
                lambda: _read_environment("SSH_AUTH_SOCK"),
                Reason.RUNTIME_ENVIRONMENT,
            ),
        ),
        "I-07": (
            Probe(
                "a backend without socket and key",
                lambda: _plan("/usr/bin/runtime", channel=_PORT),
                Reason.BACKEND_OPEN,
            ),
            Probe(
                "a runtime that listens wide",
                lambda: _read_listener("0.0.0.0"),  # noqa: S104 - to see it refused
                Reason.RUNTIME_LISTENS_WIDE,
            ),
            Probe(
                "a second listener on loopback",
                lambda: _read_listener("127.0.0.1"),
                Reason.RUNTIME_LISTENS_WIDE,
            ),
        ),
        "I-08": (),
        "I-09": (
            Probe(
                "ready without a start",
                lambda: transition(State.STOPPED, Event.HEALTH_OK),
                Reason.INVALID_TRANSITION,
            ),
            Probe("not verified", lambda: _available(verified=False), Reason.NOT_VERIFIED),
            Probe("draining", lambda: _available(state=State.DRAINING), Reason.NOT_READY),
            Probe(
                "no listener", lambda: _available(listener_bound=False), Reason.LISTENER_NOT_BOUND
            ),
            Probe("no token", lambda: _available(token_stored=False), Reason.TOKEN_NOT_STORED),
            Probe("health of long ago", lambda: _available(now=1000.0), Reason.HEALTH_STALE),
        ),
        "I-10": (
            Probe("a foreign Host", lambda: _request(host="x.example"), Reason.HOST_NOT_ALLOWED),
            Probe(
                "a web page",
                lambda: _request(origin="https://x.example"),
                Reason.CROSS_SITE_FORBIDDEN,
            ),
            Probe(
                "a page's fetch",
                lambda: _request(sec_fetch_site="cross-site"),
                Reason.CROSS_SITE_FORBIDDEN,
            ),
            Probe("no token", lambda: _request(token=""), Reason.MISSING_TOKEN),
            Probe("a wrong token", lambda: _request(token="b" * 43), Reason.INVALID_TOKEN),
            Probe("the owner", _request, Reason.OK),
        ),
        "I-11": (
            Probe("a full queue", lambda: decide_arrival(2, 2, 16, 16), Reason.QUEUE_FULL),
            Probe("who overtakes", lambda: decide_arrival(1, 2, 1, 16), Reason.AT_CAPACITY),
            Probe(
                "counters beyond their bounds",
                lambda: decide_arrival(3, 2, 0, 16),
                Reason.MALFORMED_ADMISSION_STATE,
            ),
        ),
        "I-12": (
            Probe(
                "a probe that failed",
                lambda: evaluate_resources(None, _LIMITS),
                Reason.MALFORMED_OBSERVATION,
            ),
            Probe("no limits", lambda: evaluate_resources(None, None), Reason.MALFORMED_LIMITS),
        ),
        "I-13": (
            Probe("a fifth account", lambda: require_account("other"), Reason.ACCOUNT_UNKNOWN),
            Probe(
                "too long a secret",
                lambda: require_secret("x" * (MAX_SECRET_BYTES + 1)),
                Reason.SECRET_INVALID,
            ),
        ),
        "I-14": (Probe("a plugin of both sides", _amphibian, Reason.PLUGIN_BOTH_SIDES),),
        "I-15": (Probe("an error with a secret in it", _leak, Reason.SECRET_INVALID),),
        "I-16": (
            Probe("no plugin", lambda: choose_keychain((), None), Reason.PROVIDER_MISSING),
            Probe("no allow-list", lambda: check_source_url(_FILE, ()), Reason.SOURCE_NOT_ALLOWED),
            Probe("no rate state", lambda: _request(rates=False), Reason.RATE_STATE_UNAVAILABLE),
            Probe(
                "no host",
                lambda: _request(
                    policy=guard_policy(hosts=(), routes={"/v1/models": "GET"}, token=_TOKEN)
                ),
                Reason.HOST_NOT_ALLOWED,
            ),
            Probe(
                "no isolation",
                lambda: choose_tier("required", "linux", frozenset()),
                Reason.ISOLATION_UNAVAILABLE,
            ),
        ),
        "I-17": (
            Probe(
                "a path beyond inference",
                lambda: _request(path="/metrics"),
                Reason.PATH_NOT_ALLOWED,
            ),
            Probe("another method", lambda: _request(method="DELETE"), Reason.METHOD_NOT_ALLOWED),
            Probe(
                "an address beyond loopback",
                lambda: (
                    Reason.OK
                    if loopback_hosts("0.0.0.0", 80)  # noqa: S104 - to see it refused
                    else Reason.HOST_NOT_ALLOWED
                ),
                Reason.HOST_NOT_ALLOWED,
            ),
        ),
        "I-18": (),
    }
)
