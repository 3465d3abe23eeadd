"""Plan a llama.cpp server: the stand-alone `llama-server`, or the embedded one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from companion_core.providers import (
    OPENAI_ROUTES,
    Dialect,
    Route,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    UnixChannel,
)
from companion_runtime_llamacpp.options import OPTION_NAMES, Options, read_options
from companion_runtime_llamacpp.sizes import Sizes, choose_sizes

__all__ = ["EMBEDDED_MODULE", "LlamaSpawner"]

EMBEDDED_MODULE: Final = "companion_runtime_llamacpp.embedded"
_PROGRAM: Final = "llama-server"
_KEY_ENV: Final = "LLAMA_API_KEY"
_EMBEDDINGS_PATH: Final = "/v1/embeddings"
# Of those beyond OpenAI's: rerank needs a model and a start of its own kind.
_OWN_ROUTES = (
    Route(method="POST", path="/v1/messages/count_tokens"),
    Route(method="POST", path="/infill"),
)
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
# The first is llama.cpp's own, the second the embedded server's.
_PLACEMENT_TEXTS: Final = (
    "offloaded {placed}/{all} layers to GPU",
    "placed on accelerators: {placed} MiB",
)
# llama.cpp's own fields that reach beyond one request: other slots, adapters, the context.
_DROP_FIELDS: Final = ("id_slot", "lora", "n_discard")


# Its words for what is longer than its context; an embedding is one batch, as long as that.
_DIALECT: Final = Dialect(
    too_long=(
        "request ({tokens} tokens) exceeds the available context size ({limit} tokens)",
        "input ({tokens} tokens) is too large to process. "
        "increase the physical batch size (current batch size: {limit})",
        "input ({tokens} tokens) is larger than the max context size ({limit} tokens)",
    )
)


class LlamaSpawner:
    """Describes how llama.cpp is started; never starts it."""

    channels = frozenset({"unix", "tcp"})
    formats = frozenset({"gguf"})
    env_names = frozenset({_KEY_ENV})
    child_env_names: frozenset[str] = frozenset()
    option_names = OPTION_NAMES
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
        options = read_options(request.options)
        unix = isinstance(request.channel, UnixChannel)
        routes = (*OPENAI_ROUTES, *_OWN_ROUTES)
        if not options.embeddings:
            routes = tuple(route for route in routes if route.path != _EMBEDDINGS_PATH)
        make_argv = _embedded_argv if request.embedded else _server_argv
        return SpawnPlan(
            argv=make_argv(request, options),
            served_model=request.model_id,
            backend_key_env=None if unix else _KEY_ENV,
            routes=routes,
            drop_fields=_DROP_FIELDS,
            gpu=options.gpu_layers != 0,
            placement_texts=_PLACEMENT_TEXTS,
            dialect=_DIALECT,
        )


def _embedded_argv(request: SpawnRequest, options: Options) -> tuple[str, ...]:
    sizes = _sizes(request, options)
    settings = {
        "adapters": _paths(request, "adapter"),
        "alias": request.model_id,
        "chat_template": request.chat_template,
        "batch": sizes.batch,
        "embeddings": options.embeddings,
        "flash_attention": options.flash_attention,
        "gpu_layers": options.gpu_layers,
        "parallel": request.parallel,
        "projector": next(iter(_paths(request, "projector")), None),
        "prompt_threads": options.prompt_threads or request.threads,
        "threads": request.threads,
        "total_context": sizes.total_context,
        "ubatch": sizes.ubatch,
    }
    channel = request.channel
    address = channel.path if isinstance(channel, UnixChannel) else f"{channel.host}:{channel.port}"
    module = ("-I", "-m", EMBEDDED_MODULE)
    return (request.binary, *module, request.model_path, address, json.dumps(settings))


def _server_argv(request: SpawnRequest, options: Options) -> tuple[str, ...]:
    argv = [request.binary, "--model", request.model_path, "--alias", request.model_id]
    for role, flag in (("projector", "--mmproj"), ("adapter", "--lora")):
        for path in _paths(request, role):
            argv += [flag, path]
    if isinstance(request.channel, UnixChannel):
        argv += ["--host", request.channel.path]
    else:
        argv += ["--host", request.channel.host, "--port", str(request.channel.port)]
    argv += ["--parallel", str(request.parallel), "--threads", str(request.threads)]
    if options.prompt_threads is not None:
        argv += ["--threads-batch", str(options.prompt_threads)]
    # With --parallel llama.cpp divides the context among the places; without, they would share it.
    sizes = _sizes(request, options)
    argv += ["--ctx-size", str(sizes.total_context)]
    if sizes.batch is not None:
        argv += ["--batch-size", str(sizes.batch), "--ubatch-size", str(sizes.ubatch)]
    known = frozenset(re.findall(r"--[a-z][a-z-]+", request.help_text))
    for names, value in _HARDENING:
        # A program without help text is assumed to be one of the pinned, earlier releases.
        name = next((name for name in names if name in known), None if known else names[0])
        argv += [] if name is None else [name, *value]
    if options.flash_attention is not None:
        argv += ["--flash-attn", "on" if options.flash_attention else "off"]
    if options.gpu_layers is not None:
        argv += ["--n-gpu-layers", str(options.gpu_layers)]
    if options.embeddings:
        argv += ["--embeddings", "--pooling", "mean"]
    if request.require_gpu and "--verbosity" in known:
        # Else newer releases do not say where the layers are. No prompt is logged at this level.
        argv += ["--verbosity", "4"]
    if request.chat_template is not None:
        argv += ["--jinja", "--chat-template", request.chat_template]
    return tuple(argv)


def _paths(request: SpawnRequest, role: str) -> list[str]:
    """Return where the files of this role are; the parts of a model are found by llama.cpp."""
    return [file.path for file in request.model_files if file.role == role]


def _sizes(request: SpawnRequest, options: Options) -> Sizes:
    return choose_sizes(
        places=request.parallel, context_length=request.context_length, options=options
    )


def _version() -> str | None:
    from importlib import metadata  # noqa: PLC0415 - not needed to plan

    try:
        return metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        return None
