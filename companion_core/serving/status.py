"""What a companion says of itself at one moment; `to_json` is what `companion status` prints.

The keys are a contract: other programs read them. A new one may come; none changes its meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from companion_core import __version__
from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.decisions.placement import Placement
from companion_core.errors import Reason
from companion_core.providers import ResourceObservation
from companion_core.serving.step import Step

__all__ = [
    "CompanionStatus",
    "GatewayStatus",
    "ManifestStatus",
    "ModelStatus",
    "RuntimeStatus",
    "ServingStatus",
    "SwapStatus",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """The model that is started, served or drained.

    Attributes:
        verified: its proof holds: nobody has asked to write to its files (I-01).
        vouched_by: "publisher" or "you"; None until a list was found that has it.
        held: how it is held against writers: by the system ("lease"), or only by a look at what
            identifies its files and another hash before each start ("identity"); None without one.
    """

    id: str
    verified: bool
    vouched_by: str | None = None
    held: Literal["lease", "identity"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestStatus:
    """The manifest that the model was started from.

    Attributes:
        source: "stored" if its host did not answer, so that the accepted one was used; "own" for
            the person's own list.
        fetched_at: when its host sent it; when the person's own list was signed.
    """

    version: int
    source: Literal["fetched", "stored", "own"]
    fetched_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**dataclasses.asdict(self), "fetched_at": _instant(self.fetched_at)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """Where clients reach it.

    Attributes:
        url: what OpenAI clients take as `base_url`.
        unix_socket: the path of the owner-only socket; None where none was asked for.
    """

    url: str
    unix_socket: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return what a status document says of it."""
        own = {} if self.unix_socket is None else {"unix_socket": self.unix_socket}
        return {"url": self.url, **own}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatus:
    """The runtime's process.

    Attributes:
        name: of the plugin that starts it.
        channel: how the gateway reaches it.
        isolation: how it is confined.
        ceilings: whether the system enforces them or they are observed (I-12).
        ceilings_detail: why, for a person.
        placement: where the model is computed, as the runtime says.
        context_length: tokens of context for each request; None where the runtime chooses.
        model_context_length: tokens of context that the model was made for; None if unknown.
    """

    name: str
    pid: int
    channel: Literal["unix", "tcp", "namespace"]
    isolation: Tier
    ceilings: Literal["hard", "observed"]
    ceilings_detail: str
    placement: Placement = Placement.UNKNOWN
    context_length: int | None = None
    model_context_length: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            **dataclasses.asdict(self),
            "isolation": self.isolation.value,
            "placement": self.placement.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapStatus:
    """A swap that is under way.

    Attributes:
        model: the id of the new model.
        step: its latest step; None while there is none.
    """

    model: str
    step: Step | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        step = None if self.step is None else dataclasses.asdict(self.step)
        return {"model": self.model, "step": step}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus:
    """What a gateway and its runtime say; by default, that neither is there.

    Attributes:
        admission: None while there is no gateway.
        resources: what the runtime's processes use; None while nothing was observed.
        gave_up: why no runtime is started any more; None while there is one or will be.
        last_health_ok_seconds_ago: None while the last health check was not answered well.
    """

    lifecycle: State = State.STOPPED
    gateway: GatewayStatus | None = None
    runtime: RuntimeStatus | None = None
    admission: AdmissionSnapshot | None = None
    resources: ResourceObservation | None = None
    gave_up: Reason | None = None
    last_health_ok_seconds_ago: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "lifecycle": self.lifecycle.value,
            "gateway": None if self.gateway is None else self.gateway.to_json(),
            "runtime": None if self.runtime is None else self.runtime.to_json(),
            "admission": _fields(self.admission),
            "resources": _fields(self.resources),
            "gave_up": None if self.gave_up is None else self.gave_up.value,
            "last_health_ok_seconds_ago": self.last_health_ok_seconds_ago,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanionStatus(ServingStatus):
    """What runs, and why it is or is not available.

    Attributes:
        reason: why it is not available; `ok` where it is.
        pid: of the companion's own process.
        manifest: None until one was accepted.
        swap: the swap that is under way, if there is one.
        step: the latest step of the start that is under way, such as a download; else None.
        version: of companion-core.
        plugins: the name of the plugin in each role.
    """

    available: bool
    reason: Reason
    pid: int
    started_at: datetime
    model: ModelStatus
    manifest: ManifestStatus | None = None
    swap: SwapStatus | None = None
    step: Step | None = None
    version: str = __version__
    plugins: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `companion status --json`."""
        return {
            "available": self.available,
            "reason": self.reason.value,
            "pid": self.pid,
            "started_at": _instant(self.started_at),
            "model": _fields(self.model),
            "manifest": None if self.manifest is None else self.manifest.to_json(),
            **ServingStatus.to_json(self),
            **({} if self.swap is None else {"swap": self.swap.to_json()}),
            **({} if self.step is None else {"step": dataclasses.asdict(self.step)}),
            "version": self.version,
            "plugins": dict(self.plugins),
        }


def _instant(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _fields(part: Any) -> dict[str, Any] | None:
    return None if part is None else dataclasses.asdict(part)
