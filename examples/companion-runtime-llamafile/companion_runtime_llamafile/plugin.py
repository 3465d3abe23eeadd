"""Plan a llamafile server, and judge its health; nothing is started here."""

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
    TcpChannel,
)

__all__ = ["companion_health", "companion_spawn"]

_PROGRAM: Final = "llamafile"
_KEY_ENV: Final = "LLAMA_API_KEY"
_MOST_LAYERS: Final = 9999
_ROUTES: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


class LlamafileSpawner:
    """Describes how `llamafile --server` is started."""

    channels = frozenset({"tcp"})  # its Unix sockets are broken in 0.10
    formats = frozenset({"gguf"})
    env_names = frozenset({_KEY_ENV})
    child_env_names: frozenset[str] = frozenset()
    option_names = frozenset({"gpu_layers"})

    def locate(self) -> Sequence[RuntimeBinary]:
        """Find `llamafile` on PATH; set-up time only."""
        import shutil  # noqa: PLC0415 - not needed to plan

        path = shutil.which(_PROGRAM)
        return [] if path is None else [RuntimeBinary(path=path, label=_PROGRAM)]

    def plan(self, request: SpawnRequest) -> SpawnPlan:
        """Describe the start.

        Raises:
            CannotPlan: `plan_refused` for a form or channel that it does not support,
                `unknown_option` for a value that an option does not take.
        """
        channel = request.channel
        if request.embedded or not isinstance(channel, TcpChannel):
            raise CannotPlan(Reason.PLAN_REFUSED)
        argv = [request.binary, "--server", "-m", request.model_path]
        argv += ["--host", channel.host, "--port", str(channel.port)]
        argv += ["--parallel", str(request.parallel), "--threads", str(request.threads)]
        if request.context_length is not None:  # divided among the parallel requests
            argv += ["--ctx-size", str(request.context_length * request.parallel)]
        layers = _layers(request)
        if layers is not None:
            argv += ["--n-gpu-layers", str(layers)]
        if request.chat_template is not None:
            argv += ["--jinja", "--chat-template", request.chat_template]
        return SpawnPlan(
            argv=tuple(argv),
            served_model=request.model_id,
            backend_key_env=_KEY_ENV,
            routes=tuple(route for route in OPENAI_ROUTES if route.path in _ROUTES),
            # llama.cpp's own fields that reach beyond one request.
            drop_fields=("id_slot", "lora", "n_discard"),
            gpu=layers != 0,
        )


class LlamafileHealth:
    """llama.cpp's health path: 503 while the model is loaded, then 200 with a status of "ok"."""

    path = "/health"

    def judge(self, response: HealthResponse) -> bool:
        """Return True for exactly the answer of a server that has loaded its model."""
        if response.status != 200:  # noqa: PLR2004 - HTTP's "OK"
            return False
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError):
            return False
        return isinstance(answer, dict) and answer.get("status") == "ok"


@hookimpl
def companion_spawn() -> LlamafileSpawner:
    """Register the spawner."""
    return LlamafileSpawner()


@hookimpl
def companion_health() -> LlamafileHealth:
    """Register the health check."""
    return LlamafileHealth()


def _layers(request: SpawnRequest) -> int | None:
    value = request.options.get("gpu_layers")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_LAYERS:
        raise CannotPlan(Reason.UNKNOWN_OPTION)
    return value
