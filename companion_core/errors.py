"""The closed list of reasons, the advice for each, and one exception class per culprit.

Outside this process a refusal shows its reason alone: no message carries a secret, a digest,
a URL, a path or a person's text (invariant I-15). `REASONS`, written in reasons.toml, is the
table that the command line, the gateway, the documentation and the tests read.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    MODEL_IN_USE = "model_in_use"
    MODEL_REMOVED = "model_removed"

    # The manifest (I-02).
    MANIFEST_MALFORMED = "manifest_malformed"
    MANIFEST_SIGNATURE_INVALID = "manifest_signature_invalid"
    MANIFEST_EXPIRED = "manifest_expired"
    MANIFEST_NOT_YET_VALID = "manifest_not_yet_valid"
    MANIFEST_ROLLED_BACK = "manifest_rolled_back"
    MANIFEST_UNTRUSTED = "manifest_untrusted"
    MANIFEST_UNAVAILABLE = "manifest_unavailable"
    MANIFEST_MEMORY_DAMAGED = "manifest_memory_damaged"
    CLOCK_SET_BACK = "clock_set_back"
    MODEL_NOT_IN_MANIFEST = "model_not_in_manifest"
    MODEL_FORMAT_UNSUPPORTED = "model_format_unsupported"
    MODEL_ID_TAKEN = "model_id_taken"
    PERSONAL_KEY_MISSING = "personal_key_missing"

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
    SWAP_IN_PROGRESS = "swap_in_progress"

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
    CLIENT_KEYS_DAMAGED = "client_keys_damaged"
    CLIENT_FILE_FOREIGN = "client_file_foreign"
    CLIENT_DRIFTED = "client_drifted"

    # The body and the request to the backend.
    LENGTH_REQUIRED = "length_required"
    BODY_TOO_LARGE = "body_too_large"
    HEAD_TOO_LARGE = "head_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    EXPECTATION_FAILED = "expectation_failed"
    REQUEST_TIMEOUT = "request_timeout"
    MALFORMED_BODY = "malformed_body"
    MODEL_NOT_SERVED = "model_not_served"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    UPSTREAM_FAILED = "upstream_failed"
    CONNECTION_LIMIT = "connection_limit"

    # Starting and watching the runtime (I-05 to I-08).
    RUNTIME_NOT_FOUND = "runtime_not_found"
    EMBEDDED_UNREACHABLE = "embedded_unreachable"
    INTERPRETER_MISSING = "interpreter_missing"
    RUNTIME_UNSAFE = "runtime_unsafe"
    RUNTIME_CHANGED = "runtime_changed"
    PLAN_REFUSED = "plan_refused"
    UNKNOWN_OPTION = "unknown_option"
    CHAT_TEMPLATE_UNSUPPORTED = "chat_template_unsupported"
    GPU_REQUIRED = "gpu_required"
    SPAWN_FAILED = "spawn_failed"
    START_TIMEOUT = "start_timeout"
    RUNTIME_EXITED = "runtime_exited"
    RUNTIME_ENVIRONMENT = "runtime_environment"
    RUNTIME_LISTENS_WIDE = "runtime_listens_wide"
    BACKEND_OPEN = "backend_open"
    BACKEND_FOREIGN = "backend_foreign"
    ISOLATION_UNAVAILABLE = "isolation_unavailable"
    HEALTH_FAILED = "health_failed"
    CRASH_LOOP = "crash_loop"
    MEMORY_SHORT = "memory_short"
    STALE_RUNTIME = "stale_runtime"
    PROCESS_UNREADABLE = "process_unreadable"
    LIMIT_REACHED = "limit_reached"

    # The keychain (I-13).
    KEYCHAIN_ABSENT = "keychain_absent"
    KEYCHAIN_COLLECTION_MISSING = "keychain_collection_missing"
    KEYCHAIN_LOCKED = "keychain_locked"
    KEYCHAIN_REFUSED = "keychain_refused"
    KEYCHAIN_TIMEOUT = "keychain_timeout"
    KEYCHAIN_UNTRUSTED = "keychain_untrusted"
    KEYCHAIN_SESSION_BOUND = "keychain_session_bound"
    SERVICE_MANAGER_ABSENT = "service_manager_absent"
    SERVICE_FOREIGN = "service_foreign"
    SERVICE_DRIFTED = "service_drifted"
    ACCOUNT_UNKNOWN = "account_unknown"
    SECRET_INVALID = "secret_invalid"  # noqa: S105 - a reason, not a secret

    # Plugins.
    PLUGIN_NOT_FOUND = "plugin_not_found"
    PLUGIN_STORE_MALFORMED = "plugin_store_malformed"
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
    PLUGIN_NONCONFORMANT = "plugin_nonconformant"
    PROVIDER_MISSING = "provider_missing"
    PROVIDER_AMBIGUOUS = "provider_ambiguous"

    # OAuth sign-in (RFC 6749, 7636, 8252, 8414, 8628, 9207).
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
    ID_TOKEN_INVALID = "id_token_invalid"  # noqa: S105 - a reason, not a secret
    CLOCK_DIFFERS = "clock_differs"
    SIGN_IN_REQUIRED = "sign_in_required"
    SIGN_IN_UNAVAILABLE = "sign_in_unavailable"
    SIGN_IN_UNSUPPORTED = "sign_in_unsupported"
    SIGN_IN_TIMEOUT = "sign_in_timeout"
    BROWSER_UNAVAILABLE = "browser_unavailable"

    # Lanes and consent.
    ALLOW = "allow"
    LANE_POLICY_DENIED = "lane_policy_denied"
    CLOUD_CONSENT_REQUIRED = "cloud_consent_required"

    # The program, its control socket and its doorway.
    USAGE = "usage"
    CONFIGURATION_INVALID = "configuration_invalid"
    CONTROL_UNAVAILABLE = "control_unavailable"
    EGRESS_REFUSED = "egress_refused"
    STALE_STATE = "stale_state"
    CHECK_TIMEOUT = "check_timeout"
    NOT_APPLICABLE = "not_applicable"
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


class _Reasons(Mapping[Reason, ReasonInfo]):
    """Reads the table on first use: most commands never need it."""

    def __getitem__(self, reason: Reason) -> ReasonInfo:
        return _read_table()[reason]

    def __iter__(self) -> Iterator[Reason]:
        return iter(_read_table())

    def __len__(self) -> int:
        return len(_read_table())


@functools.cache
def _read_table() -> Mapping[Reason, ReasonInfo]:
    import tomllib  # noqa: PLC0415 - most commands never need it

    text = Path(__file__).with_name("reasons.toml").read_text(encoding="utf-8")
    return {
        Reason(name): ReasonInfo(Culprit(row["culprit"]), row["advice"])
        for name, row in tomllib.loads(text).items()
    }


REASONS: Final[Mapping[Reason, ReasonInfo]] = _Reasons()


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
