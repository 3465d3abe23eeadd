"""Puts hostile questions to each rule and expects its refusal.

`PROBES` is the table: each row says who asks, and the one answer that shows the rule at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.authority.keychain import require_account, require_secret
from companion_core.decisions.admission import decide_arrival
from companion_core.decisions.guard import guard_policy, loopback_hosts
from companion_core.decisions.isolation import choose_tier
from companion_core.decisions.lifecycle import Event, State, transition
from companion_core.decisions.manifest import check_manifest_origin, verify_manifest
from companion_core.decisions.resources import evaluate_resources
from companion_core.decisions.source import check_source_url
from companion_core.decisions.spawn_plan import check_env_name
from companion_core.doctor.questions import (
    ALLOWED,
    FILE,
    PORT,
    TOKEN,
    availability,
    check_made_up_plan,
    forge_model,
    leak_a_secret,
    plugin_on_both_sides,
    read_environment,
    read_listener,
    receive,
    request,
)
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import choose_keychain
from companion_core.providers import MAX_SECRET_BYTES, ResourceLimits, ResourceObservation
from companion_core.runtime import prove_binary
from companion_core.system.secret import Secret

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
        """Return the reason that the rule gave; `internal_fault` if it gave none."""
        try:
            said = self.ask()
        except CompanionError as error:
            return error.reason
        reason = getattr(said, "reason", said)
        return reason if isinstance(reason, Reason) else Reason.INTERNAL_FAULT


_IDLE: Final = ResourceObservation(ram_bytes=0, vram_bytes=0, cpu_percent=0)
_LIMITS: Final = ResourceLimits(max_ram_bytes=1, max_vram_bytes=None, max_cpu_percent=1)

PROBES: Final[Mapping[str, tuple[Probe, ...]]] = MappingProxyType(
    {
        "I-01": (Probe("a model that nobody verified", forge_model, Reason.NOT_VERIFIED),),
        "I-02": (
            Probe(
                "an unsigned manifest",
                lambda: verify_manifest(b"{}", trusted_keys=(), now=0.0, last_seen=None),
                Reason.MANIFEST_MALFORMED,
            ),
            Probe(
                "a manifest from the model's own host",
                lambda: check_manifest_origin(FILE, (FILE,)),
                Reason.MANIFEST_UNTRUSTED,
            ),
        ),
        "I-03": (
            Probe("a listed source", lambda: check_source_url(FILE, ALLOWED), Reason.OK),
            Probe(
                "a plain http source",
                lambda: check_source_url(FILE.replace("https", "http"), ALLOWED),
                Reason.SCHEME_NOT_ALLOWED,
            ),
            Probe(
                "a sibling of an allowed folder",
                lambda: check_source_url(FILE.replace("companion", "companion-2"), ALLOWED),
                Reason.SOURCE_NOT_ALLOWED,
            ),
            Probe(
                "an address with credentials",
                lambda: check_source_url(FILE.replace("//", "//person@"), ALLOWED),
                Reason.SOURCE_NOT_ALLOWED,
            ),
        ),
        "I-04": (
            Probe("the very bytes", lambda: receive(b"a", 1, of=b"a"), Reason.OK),
            Probe("one byte too many", lambda: receive(b"xy", 1), Reason.SIZE_MISMATCH),
            Probe("one byte too few", lambda: receive(b"", 1), Reason.SIZE_MISMATCH),
            Probe("other bytes", lambda: receive(b"x", 1), Reason.DIGEST_MISMATCH),
        ),
        "I-05": (
            Probe("a relative program", lambda: prove_binary("runtime"), Reason.RUNTIME_UNSAFE),
            Probe("the proved program", lambda: check_made_up_plan("/usr/bin/runtime"), Reason.OK),
            Probe("a shell", lambda: check_made_up_plan("/bin/sh", "-c", "x"), Reason.PLAN_REFUSED),
        ),
        "I-06": (
            Probe("a loader's variable", lambda: check_env_name("LD_PRELOAD"), Reason.PLAN_REFUSED),
            Probe("a secret's name", lambda: check_env_name("API_TOKEN"), Reason.PLAN_REFUSED),
            Probe("the planned names", read_environment, Reason.OK),
            Probe(
                "an unplanned name",
                lambda: read_environment("SSH_AUTH_SOCK"),
                Reason.RUNTIME_ENVIRONMENT,
            ),
        ),
        "I-07": (
            Probe(
                "a backend without socket and key",
                lambda: check_made_up_plan("/usr/bin/runtime", channel=PORT),
                Reason.BACKEND_OPEN,
            ),
            Probe(
                "a runtime that listens wide",
                lambda: read_listener("0.0.0.0"),  # noqa: S104 - a made-up address that has to be refused
                Reason.RUNTIME_LISTENS_WIDE,
            ),
            Probe(
                "a second listener on loopback",
                lambda: read_listener("127.0.0.1"),
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
            Probe("all well", availability, Reason.OK),
            Probe("not verified", lambda: availability(verified=False), Reason.NOT_VERIFIED),
            Probe("draining", lambda: availability(state=State.DRAINING), Reason.NOT_READY),
            Probe(
                "no listener", lambda: availability(listener_bound=False), Reason.LISTENER_NOT_BOUND
            ),
            Probe("no token", lambda: availability(token_stored=False), Reason.TOKEN_NOT_STORED),
            Probe("health of long ago", lambda: availability(now=1000.0), Reason.HEALTH_STALE),
        ),
        "I-10": (
            Probe("a foreign Host", lambda: request(host="x.example"), Reason.HOST_NOT_ALLOWED),
            Probe(
                "a web page",
                lambda: request(origin="https://x.example"),
                Reason.CROSS_SITE_FORBIDDEN,
            ),
            Probe(
                "a page's fetch",
                lambda: request(sec_fetch_site="cross-site"),
                Reason.CROSS_SITE_FORBIDDEN,
            ),
            Probe("no token", lambda: request(token=""), Reason.MISSING_TOKEN),
            Probe("a wrong token", lambda: request(token="b" * 43), Reason.INVALID_TOKEN),
            Probe("the owner", request, Reason.OK),
        ),
        "I-11": (
            Probe("an idle gateway", lambda: decide_arrival(0, 2, 0, 16), Reason.OK),
            Probe("a full queue", lambda: decide_arrival(2, 2, 16, 16), Reason.QUEUE_FULL),
            Probe("an overtaker", lambda: decide_arrival(1, 2, 1, 16), Reason.AT_CAPACITY),
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
            Probe("within limits", lambda: evaluate_resources(_IDLE, _LIMITS), Reason.OK),
            Probe("no limits", lambda: evaluate_resources(None, None), Reason.MALFORMED_LIMITS),
        ),
        "I-13": (
            Probe(
                "an unlisted account",
                lambda: require_account("other"),
                Reason.ACCOUNT_UNKNOWN,
            ),
            Probe(
                "too long a secret",
                lambda: require_secret("x" * (MAX_SECRET_BYTES + 1)),
                Reason.SECRET_INVALID,
            ),
        ),
        "I-14": (Probe("a plugin of both sides", plugin_on_both_sides, Reason.PLUGIN_BOTH_SIDES),),
        "I-15": (Probe("an error with a secret in it", leak_a_secret, Reason.SECRET_INVALID),),
        "I-16": (
            Probe("no plugin", lambda: choose_keychain((), None), Reason.PROVIDER_MISSING),
            Probe("no allow-list", lambda: check_source_url(FILE, ()), Reason.SOURCE_NOT_ALLOWED),
            Probe("no rate state", lambda: request(rates=False), Reason.RATE_STATE_UNAVAILABLE),
            Probe(
                "no host",
                lambda: request(
                    policy=guard_policy(hosts=(), routes={"/v1/models": "GET"}, token=Secret(TOKEN))
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
                lambda: request(path="/metrics"),
                Reason.PATH_NOT_ALLOWED,
            ),
            Probe("another method", lambda: request(method="DELETE"), Reason.METHOD_NOT_ALLOWED),
            Probe(
                "an address beyond loopback",
                lambda: (
                    Reason.OK
                    if loopback_hosts("0.0.0.0", 80)  # noqa: S104 - a made-up address that has to be refused
                    else Reason.HOST_NOT_ALLOWED
                ),
                Reason.HOST_NOT_ALLOWED,
            ),
        ),
        "I-18": (),
    }
)
