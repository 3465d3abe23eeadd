"""Plan the embedded MLX server, and judge its health; nothing is started here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from companion_core import hookimpl
from companion_core.errors import Reason
from companion_core.providers import (
    OPENAI_ROUTES,
    CannotPlan,
    HealthResponse,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    UnixChannel,
)

__all__ = ["companion_health", "companion_spawn"]

SERVER: Final = "companion_runtime_mlx.server"
# The same text as in the server, which runs alone and cannot import this module.
READY_LINE: Final = "companion-runtime-mlx: listening"
HEALTHY: Final = b'{"status": "ok"}'
_LIBRARY: Final = "mlx_lm"
_DEFAULT_TOKENS: Final = 2048
_MOST_TOKENS: Final = 1_000_000


class MlxSpawner:
    """Describes the server of this distribution, run by the running interpreter."""

    channels = frozenset({"unix"})
    formats = frozenset({"mlx"})
    env_names: frozenset[str] = frozenset()
    child_env_names: frozenset[str] = frozenset()
    option_names = frozenset({"max_tokens"})

    def locate(self) -> Sequence[RuntimeBinary]:
        """Find the library; set-up time only."""
        import importlib.util  # noqa: PLC0415 - not needed to plan

        if importlib.util.find_spec(_LIBRARY) is None:
            return []
        return [RuntimeBinary(path="embedded", label="MLX, embedded")]

    def plan(self, request: SpawnRequest) -> SpawnPlan:
        """Describe the start.

        Raises:
            CannotPlan: `plan_refused` for a form or channel that it does not support,
                `unknown_option` for a value that an option does not take.
        """
        channel = request.channel
        if not request.embedded or not isinstance(channel, UnixChannel):
            raise CannotPlan(Reason.PLAN_REFUSED)
        settings = {
            "alias": request.model_id,
            "chat_template": request.chat_template,
            "max_tokens": _max_tokens(request),
        }
        return SpawnPlan(
            argv=(
                request.binary,
                *("-I", "-m", SERVER),
                request.model_path,
                channel.path,
                json.dumps(settings),
            ),
            served_model=request.model_id,
            ready_text=READY_LINE,
            routes=tuple(r for r in OPENAI_ROUTES if r.path == "/v1/chat/completions"),
            gpu=True,
        )


class MlxHealth:
    """Judges the server's own health path; the server listens only once the model is loaded."""

    path = "/health"

    def judge(self, response: HealthResponse) -> bool:
        """Return True for exactly the answer that the server gives."""
        return response.status == 200 and response.body == HEALTHY  # noqa: PLR2004 - HTTP's "OK"


@hookimpl
def companion_spawn() -> MlxSpawner:
    """Register the spawner."""
    return MlxSpawner()


@hookimpl
def companion_health() -> MlxHealth:
    """Register the health check."""
    return MlxHealth()


def _max_tokens(request: SpawnRequest) -> int:
    value = request.options.get("max_tokens", _DEFAULT_TOKENS)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_TOKENS:
        raise CannotPlan(Reason.UNKNOWN_OPTION)
    return value
