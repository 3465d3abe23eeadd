"""Plan a llama.cpp server: the stand-alone `llama-server`, or the embedded one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from companion_core.errors import Reason
from companion_core.providers import (
    OPENAI_ROUTES,
    CannotPlan,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    UnixChannel,
)
from companion_runtime_llamacpp.sizes import Sizes, choose_sizes

__all__ = ["EMBEDDED_MODULE", "LlamaSpawner"]

EMBEDDED_MODULE: Final = "companion_runtime_llamacpp.embedded"
_PROGRAM: Final = "llama-server"
_KEY_ENV: Final = "LLAMA_API_KEY"
_MOST_LAYERS: Final = 9999
_EMBEDDINGS_PATH: Final = "/v1/embeddings"
# Flags that switch off everything but inference. Each row lists a flag's names, the earlier
# release's first, and its value. A release that knows none of the names lacks the feature.
_HARDENING: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (("--offline",), ()),
    (("--no-webui", "--no-ui"), ()),
    (("--no-slots",), ()),
    (("--cache-ram",), ("0",)),
    (("--cors-origins",), ("localhost",)),
    (("--no-cors-credentials",), ()),
)
# llama.cpp's own fields that reach beyond one request: other slots, adapters, the context.
_DROP_FIELDS: Final = ("id_slot", "lora", "n_discard")


class LlamaSpawner:
    """Describes how llama.cpp is started; never starts it."""

    channels = frozenset({"unix", "tcp"})
    formats = frozenset({"gguf"})
    env_names = frozenset({_KEY_ENV})
    child_env_names: frozenset[str] = frozenset()
    option_names = frozenset({"embeddings", "flash_attention", "gpu_layers"})
    help_arguments = ("--help",)

    def locate(self) -> Sequence[RuntimeBinary]:
        """Find the embedded server and a `llama-server` on PATH; set-up time only."""
        import importlib.util  # noqa: PLC0415 - not needed to plan
        import shutil  # noqa: PLC0415 - not needed to plan

        found = []
        if importlib.util.find_spec("xllamacpp") is not None:
            found.append(
                RuntimeBinary(path="embedded", label="llama.cpp, embedded", version=_version())
            )
        if (path := shutil.which(_PROGRAM)) is not None:
            found.append(RuntimeBinary(path=path, label=_PROGRAM))
        return found

    def plan(self, request: SpawnRequest) -> SpawnPlan:
        """Describe the start.

        Raises:
            CannotPlan: `unknown_option` for a value that an option does not take.
        """
        flash_attention = _flag(request, "flash_attention")
        gpu_layers = _layers(request)
        embeddings = bool(_flag(request, "embeddings"))
        unix = isinstance(request.channel, UnixChannel)
        routes = tuple(r for r in OPENAI_ROUTES if embeddings or r.path != _EMBEDDINGS_PATH)
        if request.embedded:
            argv = _embedded_argv(request, flash_attention, gpu_layers, embeddings=embeddings)
        else:
            argv = _server_argv(request, flash_attention, gpu_layers, embeddings=embeddings)
        return SpawnPlan(
            argv=argv,
            served_model=request.model_id,
            backend_key_env=None if unix else _KEY_ENV,
            routes=routes,
            drop_fields=_DROP_FIELDS,
            gpu=gpu_layers != 0,
        )


def _embedded_argv(
    request: SpawnRequest, flash_attention: bool | None, gpu_layers: int | None, *, embeddings: bool
) -> tuple[str, ...]:
    sizes = _sizes(request, embeddings=embeddings)
    settings = {
        "alias": request.model_id,
        "chat_template": request.chat_template,
        "batch": sizes.batch,
        "embeddings": embeddings,
        "flash_attention": flash_attention,
        "gpu_layers": gpu_layers,
        "parallel": request.parallel,
        "threads": request.threads,
        "total_context": sizes.total_context,
    }
    channel = request.channel
    address = channel.path if isinstance(channel, UnixChannel) else f"{channel.host}:{channel.port}"
    module = ("-I", "-m", EMBEDDED_MODULE)
    return (request.binary, *module, request.model_path, address, json.dumps(settings))


def _server_argv(
    request: SpawnRequest, flash_attention: bool | None, gpu_layers: int | None, *, embeddings: bool
) -> tuple[str, ...]:
    argv = [request.binary, "--model", request.model_path, "--alias", request.model_id]
    if isinstance(request.channel, UnixChannel):
        argv += ["--host", request.channel.path]
    else:
        argv += ["--host", request.channel.host, "--port", str(request.channel.port)]
    argv += ["--parallel", str(request.parallel), "--threads", str(request.threads)]
    # With --parallel llama.cpp divides the context among the places; without, they would share it.
    sizes = _sizes(request, embeddings=embeddings)
    argv += ["--ctx-size", str(sizes.total_context)]
    if sizes.batch is not None:
        argv += ["--batch-size", str(sizes.batch), "--ubatch-size", str(sizes.batch)]
    known = frozenset(re.findall(r"--[a-z][a-z-]+", request.help_text))
    for names, value in _HARDENING:
        # A program without help text is assumed to be one of the pinned, earlier releases.
        name = next((name for name in names if name in known), None if known else names[0])
        argv += [] if name is None else [name, *value]
    if flash_attention is not None:
        argv += ["--flash-attn", "on" if flash_attention else "off"]
    if gpu_layers is not None:
        argv += ["--n-gpu-layers", str(gpu_layers)]
    if embeddings:
        argv += ["--embeddings", "--pooling", "mean"]
    if request.chat_template is not None:
        argv += ["--jinja", "--chat-template", request.chat_template]
    return tuple(argv)


def _sizes(request: SpawnRequest, *, embeddings: bool) -> Sizes:
    return choose_sizes(
        places=request.parallel, context_length=request.context_length, embeddings=embeddings
    )


def _flag(request: SpawnRequest, name: str) -> bool | None:
    value = request.options.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CannotPlan(Reason.UNKNOWN_OPTION)


def _layers(request: SpawnRequest) -> int | None:
    value = request.options.get("gpu_layers")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_LAYERS:
        raise CannotPlan(Reason.UNKNOWN_OPTION)
    return value


def _version() -> str | None:
    from importlib import metadata  # noqa: PLC0415 - not needed to plan

    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return None
