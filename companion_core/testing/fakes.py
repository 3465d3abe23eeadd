"""Providers for tests, one for each seam of the runtime side; see `fake_keychain` for the other."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from companion_core.errors import Reason
from companion_core.providers import (
    CannotPlan,
    DownloadFailed,
    DownloadRequest,
    HealthResponse,
    ProbeFailed,
    ProbeTarget,
    Redirect,
    ResourceObservation,
    ResumeRefused,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    UnixChannel,
)
from companion_core.testing import fake_runtime

__all__ = [
    "FakeDownloader",
    "FakeHealthChecker",
    "FakeProbe",
    "FakeSpawner",
    "write_fake_runtime",
]


def write_fake_runtime(path: Path) -> Path:
    """Write `fake_runtime` as an executable program and return its path."""
    source = Path(fake_runtime.__file__).read_text(encoding="utf-8")
    path.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
    path.chmod(0o755)
    return path


@dataclass
class FakeSpawner:
    """Plans the program that `write_fake_runtime` wrote.

    Attributes:
        behaviour: the runtime's faults; see `fake_runtime`.
        alter: changes the plan as a hostile plugin would.
        program: the path that `locate` finds; None finds nothing.
    """

    behaviour: tuple[str, ...] = ()
    alter: Callable[[SpawnPlan, SpawnRequest], Any] = lambda plan, _request: plan
    channels: frozenset[str] = frozenset({"unix", "tcp"})
    formats: frozenset[str] = frozenset({"gguf"})
    env_names: frozenset[str] = frozenset({fake_runtime.KEY_ENV, "TEST_MODE"})
    child_env_names: frozenset[str] = frozenset()
    option_names: frozenset[str] = frozenset({"known"})
    program: str | None = None

    def locate(self) -> Sequence[RuntimeBinary]:
        """See `Spawner`."""
        return [] if self.program is None else [RuntimeBinary(path=self.program, label="fake")]

    def plan(self, request: SpawnRequest) -> Any:
        """See `Spawner`; the program is never embedded."""
        if request.embedded:
            raise CannotPlan(Reason.PLAN_REFUSED)
        channel = request.channel
        unix = isinstance(channel, UnixChannel)
        if isinstance(channel, UnixChannel):
            address = channel.path
        else:
            address = f"{channel.host}:{channel.port}"
        plan = SpawnPlan(
            argv=(request.binary, request.model_path, address, *self.behaviour),
            served_model="served",
            backend_key_env=None if unix else fake_runtime.KEY_ENV,
            ready_text=fake_runtime.READY,
            read_paths=(sys.prefix, sys.base_prefix),
            start_deadline_seconds=20,
        )
        return self.alter(plan, request)


@dataclass
class FakeHealthChecker:
    """Healthy on status 200, unless told otherwise.

    Attributes:
        answer: returned in place of the judgement, or raised if it is an exception.
        responses: every response that it was asked to judge.
    """

    path: str = "/health"
    answer: Any = None
    responses: list[HealthResponse] = field(default_factory=list)

    def judge(self, response: HealthResponse) -> bool:
        """See `HealthChecker`."""
        self.responses.append(response)
        if isinstance(self.answer, BaseException):
            raise self.answer
        healthy = response.status == 200 if self.answer is None else self.answer  # noqa: PLR2004 - HTTP's "OK"
        return cast("bool", healthy)


@dataclass
class FakeDownloader:
    """Serves bytes from memory.

    Attributes:
        content: address to bytes; any other address fails.
        redirects: address to the address that it redirects to.
        resumable: it honours ranges.
        truncate: the number of bytes after which a body ends early.
        requests: every request so far.
    """

    content: Mapping[str, bytes]
    redirects: Mapping[str, str] = field(default_factory=dict)
    resumable: bool = True
    truncate: int | None = None
    requests: list[DownloadRequest] = field(default_factory=list)

    def open(self, request: DownloadRequest) -> BinaryIO:
        """See `Downloader`."""
        self.requests.append(request)
        if request.url in self.redirects:
            raise Redirect(self.redirects[request.url])
        if request.url not in self.content:
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
        if request.offset and not self.resumable:
            raise ResumeRefused
        return io.BytesIO(self.content[request.url][request.offset : self.truncate])


@dataclass
class FakeProbe:
    """Reports the given observation; None makes it fail.

    Attributes:
        targets: every target that it was asked about.
    """

    observation: Any = field(
        default_factory=lambda: ResourceObservation(ram_bytes=1, vram_bytes=0, cpu_percent=0.0)
    )
    targets: list[ProbeTarget] = field(default_factory=list)

    def observe(self, target: ProbeTarget) -> ResourceObservation:
        """See `ResourceProbe`."""
        self.targets.append(target)
        if self.observation is None:
            raise ProbeFailed
        return cast("ResourceObservation", self.observation)
