"""The embedded server: a program of its own, started by the core under its keeper.

    python -I -m companion_runtime_llamacpp.embedded MODEL ADDRESS SETTINGS

MODEL is the path to open, ADDRESS a socket's path or HOST:PORT, SETTINGS a JSON object. The
key comes in the environment. It imports xllamacpp and the standard library only. It leaves
SIGTERM's default action, so that it ends at once, even with a request in flight.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["build_parameters", "main"]

_MIB = 2**20

xllamacpp: Any = importlib.import_module("xllamacpp")  # it ships no types


def build_parameters(model: str, address: str, settings: dict[str, Any], key: str | None) -> Any:
    """Return llama.cpp's parameters: one model, one address, everything else switched off."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {settings["alias"]}
    if os.path.isabs(address):  # noqa: PTH117 - text for llama.cpp
        parameters.hostnames, parameters.port = [address], 1
    else:
        host, _, port = address.rpartition(":")
        parameters.hostnames, parameters.port = [host], int(port)
    if key is not None:
        parameters.api_keys = [key]

    parameters.n_parallel = settings["parallel"]
    parameters.n_ctx = settings["total_context"]
    parameters.kv_unified = False
    if settings["batch"] is not None:
        parameters.n_batch, parameters.n_ubatch = settings["batch"], settings["ubatch"]
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.cpuparams_batch.n_threads = settings["prompt_threads"]
    if settings["flash_attention"] is not None:
        kinds = xllamacpp.llama_flash_attn_type
        on, off = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED, kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = on if settings["flash_attention"] else off
    if settings["gpu_layers"] is not None:
        parameters.n_gpu_layers = settings["gpu_layers"]
    if settings["embeddings"]:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if settings["projector"] is not None:
        parameters.mmproj.path = settings["projector"]
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path) for path in settings["adapters"]
    ]
    if settings["chat_template"] is not None:
        parameters.chat_template = settings["chat_template"]

    parameters.offline = True
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.endpoint_props = False
    parameters.models_autoload = False
    parameters.cache_ram_mib = 0
    parameters.cors_origins = "localhost"
    parameters.cors_credentials = False
    return parameters


def _free_on_accelerators() -> int:
    """Return the free bytes of all accelerators that llama.cpp has found; 0 without any.

    The first call makes what llama.cpp needs on each, so that two calls differ by the model.
    """
    kinds = xllamacpp.ggml_backend_dev_type
    accelerators = {kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU}
    devices = xllamacpp.get_device_info()
    return sum(int(each["memory_free"]) for each in devices if each["type"] in accelerators)


def main() -> None:
    """Serve until the process is ended."""
    model, address, settings = sys.argv[1:]
    os.umask(0o077)  # not stricter: a GPU's driver makes folders for the code that it compiles
    parameters = build_parameters(
        model, address, json.loads(settings), os.environ.get("LLAMA_API_KEY")
    )
    free = _free_on_accelerators()
    server = xllamacpp.Server(parameters)  # returns once the model is loaded and the server listens
    placed = max(0, free - _free_on_accelerators()) // _MIB
    sys.stdout.write(f"placed on accelerators: {placed} MiB\n")
    sys.stdout.flush()
    if os.path.isabs(address):  # noqa: PTH117 - text for llama.cpp
        Path(address).chmod(0o600)
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
