"""The public plugin API, version 1.0: the values that cross a seam and each provider's `Protocol`.

Values are frozen and inert (`str`, `int`, `float`, `bytes`, `bool`, tuples, read-only
mappings), and none that crosses a runtime seam can carry a secret. Every method is synchronous;
the core calls it in a worker with a deadline, and rebuilds what it returns from primitives
before using it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import BinaryIO, Final, Protocol, TypeAlias, runtime_checkable

from companion_core.errors import Reason
from companion_core.transfer_fault import TransferProblem

__all__ = [
    "API_VERSION",
    "INFERENCE_ROUTES",
    "KEYCHAIN_REASONS",
    "MAX_SECRET_BYTES",
    "OPENAI_ROUTES",
    "BackendRequest",
    "CannotPlan",
    "Dialect",
    "DownloadFailed",
    "DownloadRequest",
    "Downloader",
    "Expected",
    "HealthChecker",
    "HealthResponse",
    "HostInfo",
    "Keychain",
    "KeychainStatus",
    "KeychainUnavailable",
    "ModelFile",
    "OptionInvalid",
    "OptionValue",
    "ProbeFailed",
    "ProbeTarget",
    "Redirect",
    "ResourceLimits",
    "ResourceObservation",
    "ResourceProbe",
    "ResumeRefused",
    "Route",
    "RuntimeBinary",
    "SpawnPlan",
    "SpawnRequest",
    "Spawner",
    "TcpChannel",
    "UnixChannel",
]

API_VERSION: Final = "1.0"


OptionValue: TypeAlias = str | int | float | bool
"""A value of [runtime.options] or [keychain.options]."""


class OptionInvalid(Exception):
    """A hook cannot use the value of the option `name`; the person is told the name alone."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What a plugin is told of its host when it registers."""

    api: str
    core_version: str
    platform: str


# --- companion.authority.v1 ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeychainStatus:
    """Whether the OS store can be used now.

    Attributes:
        ok: usable without a prompt.
        reason: `Reason.OK`, or why not.
        device_only: the secret stays on this device; None if the system cannot say.
        session_bound: usable only while the person's desktop session lasts.
    """

    ok: bool
    reason: Reason
    device_only: bool | None = None
    session_bound: bool = False


# The reasons that a keychain may give.
KEYCHAIN_REASONS: Final = frozenset(
    {
        Reason.KEYCHAIN_ABSENT,
        Reason.KEYCHAIN_COLLECTION_MISSING,
        Reason.KEYCHAIN_LOCKED,
        Reason.KEYCHAIN_REFUSED,
        Reason.KEYCHAIN_TIMEOUT,
        Reason.KEYCHAIN_UNTRUSTED,
    }
)

# The longest secret that the core stores, in UTF-8 bytes; a store that cannot hold it refuses.
MAX_SECRET_BYTES: Final = 8192


class KeychainUnavailable(Exception):
    """The store is locked, absent or refuses; `reason`, of `KEYCHAIN_REASONS`, says which."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@runtime_checkable
class Keychain(Protocol):
    """The OS store of secrets (hook `companion_keychain`). Accounts are opaque names.

    A keychain may also have `option_names`, a frozenset of the keys that it knows in
    [keychain.options]; its hook is given them as `options`. Others are refused.
    """

    def status(self) -> KeychainStatus:
        """Say whether the store is usable now; never prompt, never create."""
        ...

    def get(self, account: str) -> str | None:
        """Return the secret, or None if there is no such item; raise in any other case."""
        ...

    def set(self, account: str, secret: str) -> None:
        """Store or replace the secret."""
        ...

    def delete(self, account: str) -> None:
        """Remove the item; an absent one is fine."""
        ...


# --- companion.runtime.v1 -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One request the runtime serves: an exact method and path."""

    method: str
    path: str


OPENAI_ROUTES: Final[tuple[Route, ...]] = (
    Route(method="POST", path="/v1/chat/completions"),
    Route(method="POST", path="/v1/completions"),
    Route(method="POST", path="/v1/embeddings"),
    Route(method="POST", path="/v1/responses"),
    Route(method="POST", path="/v1/messages"),
)
"""What a plan serves that says nothing of its routes."""

INFERENCE_ROUTES: Final[tuple[Route, ...]] = (
    *OPENAI_ROUTES,
    Route(method="POST", path="/v1/messages/count_tokens"),
    Route(method="POST", path="/v1/rerank"),
    Route(method="POST", path="/infill"),
)
"""All that a plan may name: each takes JSON with a model's name, and is an inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeBinary:
    """A runtime program that `locate` found.

    Attributes:
        path: absolute, or "embedded" for a module of this plugin that the running interpreter
            runs.
        label: the name for a person.
        version: as the program states it; None if unknown.
        files: libraries whose digests are pinned together with the program.
    """

    path: str
    label: str
    version: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One verified file of the model; `size` in bytes, `sha256` in lower-case hex.

    Attributes:
        role: "model" for the weights, or a part of them, or what belongs beside them;
            "projector" for what turns images or sound into what the model reads; "adapter" for
            what changes the weights, such as a LoRA.
    """

    name: str
    path: str
    sha256: str
    size: int
    role: str = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixChannel:
    """The backend listens on this Unix socket, inside a 0700 folder."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpChannel:
    """The backend listens on this loopback address, behind a per-start key."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Ceilings for the runtime's whole process tree; None: no ceiling for VRAM."""

    max_ram_bytes: int
    max_vram_bytes: int | None
    max_cpu_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnRequest:
    """Everything that a spawner may use to plan; paths are absolute.

    Attributes:
        binary: proved by the core; the running interpreter when `embedded`.
        model_path: the first verified file: of a split model the first part. It may be
            `/proc/self/fd/N`. Pass it on verbatim.
        model_files: all verified files, those of the role "model" first; several lie under their
            own names in one folder, which holds nothing else.
        chat_template: from the signed manifest; None means the model's own.
        model_chat_template: the model's own, in Jinja's language, where its file has one. It is
            for runtimes that do not read it there.
        channel: where the backend has to listen; the core chooses it.
        private_dir: 0700, for this start only; the child's working folder and HOME.
        data_dir: 0700, reused by later starts.
        parallel: the most requests that the gateway has in flight.
        context_length: in tokens, for each request in flight: as configured, at most the model's
            own, or that where nothing is configured and the memory can hold it. A runtime gets
            `parallel` contexts of this length. None means the model's own, which is unknown here.
        help_text: what a stand-alone program printed for `help_arguments`; "" if nothing.
        require_gpu: the person refuses a start whose runtime does not tell that it placed
            something of the model on an accelerator (`SpawnPlan.placement_texts`).
    """

    binary: str
    embedded: bool
    model_id: str
    model_path: str
    chat_template: str | None
    model_files: tuple[ModelFile, ...]
    channel: UnixChannel | TcpChannel
    private_dir: str
    data_dir: str
    limits: ResourceLimits
    parallel: int
    threads: int
    context_length: int | None
    options: Mapping[str, str | int | float | bool] = field(
        default_factory=lambda: MappingProxyType({})
    )
    help_text: str = ""
    model_chat_template: str | None = None
    require_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """A request that the core sends once the backend listens, before health.

    Attributes:
        json: the body, already serialised; None sends none.
        send_model: send the bytes of the verified model file as the body instead.
        expect_status: any other status fails the start.
        expect_last_line: literal text of the last line of a line-delimited answer.
        unless_stored: do not send it if its result exists and is proved unchanged: for
            `send_model` the model's bytes at `SpawnPlan.model_link`, else everything that
            `SpawnPlan.store` held after the last successful start with the same requests.
        expect: what the answer says.
    """

    method: str
    path: str
    json: str | None = None
    send_model: bool = False
    expect_status: tuple[int, ...] = (200,)
    expect_last_line: str | None = None
    unless_stored: bool = False
    expect: tuple[Expected, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the answer to a request of the plan has to say, as JSON.

    Attributes:
        member: of the answer's object; its value is text.
        line: one line of that text, each run of blanks as one.
        unlike: the text is not this.
        reason: of the failed start; one that `CannotPlan` may have, or `spawn_failed`.
    """

    member: str
    line: str | None = None
    unlike: str | None = None
    reason: Reason = Reason.SPAWN_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Where the runtime's API differs from OpenAI's; the gateway translates.

    The model's name needs no entry: where `SpawnPlan.served_model` is another than the client's,
    requests and answers are translated.

    Attributes:
        rename_fields: a field as clients name it, and as the runtime reads it. Where a request has
            both, the first one counts.
        too_long: texts of the error with which the runtime answers a request that is longer than
            its context, with `{tokens}` and `{limit}` in place of the two numbers. Clients get
            400 `context_length_exceeded` instead, with both.
        cuts_at: tokens from which on the runtime silently cuts a request. The gateway has the
            runtime count a request that may be so long, and refuses it with both numbers.
    """

    rename_fields: tuple[tuple[str, str], ...] = ()
    too_long: tuple[str, ...] = ()
    cuts_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnPlan:
    """How a runtime is started; the core checks every field before it acts.

    Attributes:
        argv: absolute program and its arguments; never a shell.
        served_model: the model name that the backend expects in request bodies.
        env: added to the core's base environment; names must be in `Spawner.env_names`.
        backend_key_env: the core puts a fresh key under this name and sends it as Bearer.
        prepare: requests sent once the backend listens.
        model_link: a path under data_dir at which the core lets the runtime read the file: as a
            read-only mount or a link. If it can make neither, it makes a copy, or nothing if
            `prepare` sends the model `unless_stored`.
        model_copies: files under data_dir that the backend makes of the model; hashed again.
        store: the folder under data_dir that `prepare` fills. Before a start the core removes
            whatever in it is not proved unchanged.
        ready_text: literal text on stdout or stderr that announces "listening".
        routes: what the runtime serves, within the core's allow-list.
        drop_fields: request fields that the gateway removes.
        read_paths: what isolation must leave readable.
        gpu: isolation must leave the accelerator reachable.
        placement_texts: texts of lines by which the runtime tells, while it starts, how much of
            the model it placed on an accelerator: `{placed}` stands for that number, `{all}` for
            how much there is, if it says so. "0" placed means that the processor computes.
        dialect: where its API differs from OpenAI's.
    """

    argv: tuple[str, ...]
    served_model: str
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    backend_key_env: str | None = None
    prepare: tuple[BackendRequest, ...] = ()
    model_link: str | None = None
    model_copies: tuple[str, ...] = ()
    store: str | None = None
    ready_text: str | None = None
    start_deadline_seconds: float = 120
    routes: tuple[Route, ...] = OPENAI_ROUTES
    drop_fields: tuple[str, ...] = ()
    read_paths: tuple[str, ...] = ()
    gpu: bool = False
    placement_texts: tuple[str, ...] = ()
    dialect: Dialect = field(default_factory=Dialect)


class CannotPlan(Exception):
    """The spawner declines; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@runtime_checkable
class Spawner(Protocol):
    """Plans how a runtime is started (hook `companion_spawn`).

    Attributes:
        channels: of {"unix", "tcp"}, what the backend can listen on.
        formats: the model formats that it runs, such as {"gguf"}.
        env_names: variables that its plans may set, beyond the core's base.
        child_env_names: variables that the runtime may add for its descendants.
        option_names: the keys that it knows in [runtime.options]; others are refused.

    A spawner may also have `help_arguments`, a tuple of texts such as ("--help",). With them the
    core runs a stand-alone program once, and passes what it printed to `plan`.
    """

    @property
    def channels(self) -> frozenset[str]: ...  # noqa: D102 - under Attributes
    @property
    def formats(self) -> frozenset[str]: ...  # noqa: D102 - under Attributes
    @property
    def env_names(self) -> frozenset[str]: ...  # noqa: D102 - under Attributes
    @property
    def child_env_names(self) -> frozenset[str]: ...  # noqa: D102 - under Attributes
    @property
    def option_names(self) -> frozenset[str]: ...  # noqa: D102 - under Attributes

    def locate(self) -> Sequence[RuntimeBinary]:
        """Find runtime programs; called at set-up time only, and nothing else searches."""
        ...

    def plan(self, request: SpawnRequest) -> SpawnPlan:
        """Describe the start; pure. Raise `CannotPlan` to decline."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthResponse:
    """The backend's answer to the health path, relayed by the gateway."""

    status: int
    body: bytes
    served_model: str


@runtime_checkable
class HealthChecker(Protocol):
    """Judges the runtime's health answer (hook `companion_health`).

    Attributes:
        path: where the core sends its GET.
    """

    @property
    def path(self) -> str: ...  # noqa: D102 - under Attributes

    def judge(self, response: HealthResponse) -> bool:
        """Return True only when the runtime can serve its model now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """What to fetch: an admitted https address, from `offset` bytes on.

    Attributes:
        validator: what the server called the bytes that are there already.
        length: how many bytes are wanted, None for all; the core takes no more of those that come.
            Bytes of a known length may be asked for without a validator: the core proves them by
            themselves.
    """

    url: str
    offset: int = 0
    validator: str | None = None
    length: int | None = None


class Redirect(Exception):
    """The server answered with another address; the core decides whether to follow."""

    def __init__(self, url: str) -> None:
        super().__init__("redirect")
        self.url = url


class ResumeRefused(Exception):
    """The server does not honour the range; the core starts again from zero."""


class DownloadFailed(Exception):
    """The transport failed; `retryable` when trying again may help.

    Attributes:
        problem: what stopped it, for the words that a person reads; None if that is not known.
    """

    def __init__(
        self, reason: Reason, retryable: bool, problem: TransferProblem | None = None
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retryable = retryable
        self.problem = problem


@runtime_checkable
class Downloader(Protocol):
    """Fetches bytes (hook `companion_download`); it never decides whether they are right."""

    def open(self, request: DownloadRequest) -> BinaryIO:
        """Return an object with `readinto()` and `close()`.

        Raises:
            Redirect: instead of following one.
            ResumeRefused: the request asks for a range and the server does not honour it.
            DownloadFailed: for any other failure.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """The process ids of the runtime's own tree."""

    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceObservation:
    """What the tree uses now; `cpu_percent` is of the whole machine, 0 to 100."""

    ram_bytes: int
    vram_bytes: int
    cpu_percent: float


class ProbeFailed(Exception):
    """The numbers could not be read; raise rather than guess."""


@runtime_checkable
class ResourceProbe(Protocol):
    """Reads the resources of the given processes (hook `companion_probe`)."""

    def observe(self, target: ProbeTarget) -> ResourceObservation:
        """Return what the processes use together, or raise `ProbeFailed`.

        The core passes no process once the runtime has ended, so the probe can release it.
        """
        ...
