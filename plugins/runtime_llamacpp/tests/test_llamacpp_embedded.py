"""The child's own parameters, on the real library."""

from __future__ import annotations

import importlib.util
import os

import pytest

pytestmark = pytest.mark.integration

SETTINGS = {
    "adapters": [],
    "alias": "tiny",
    "batch": None,
    "chat_template": None,
    "embeddings": False,
    "flash_attention": None,
    "gpu_layers": None,
    "parallel": 2,
    "projector": None,
    "prompt_threads": 3,
    "threads": 3,
    "total_context": 1024,
    "ubatch": None,
}


@pytest.fixture
def build():
    for part in ("companion_runtime_llamacpp", "xllamacpp"):
        if importlib.util.find_spec(part) is None:
            missing = (
                pytest.fail if os.environ.get("COMPANION_REQUIRE_REAL") == "1" else pytest.skip
            )
            missing(f"a real part is missing: {part}")
    from companion_runtime_llamacpp import embedded  # noqa: PLC0415 - it may be missing

    return embedded.build_parameters


def test_everything_but_inference_is_off(build) -> None:
    parameters = build("/proc/self/fd/7", "/run/backend.sock", SETTINGS, None)
    assert parameters.model.path == "/proc/self/fd/7"
    assert parameters.hostnames == ["/run/backend.sock"]
    assert parameters.model_alias == {"tiny"}
    assert parameters.api_keys == []
    assert (parameters.n_ctx, parameters.n_parallel, parameters.kv_unified) == (1024, 2, False)
    assert (parameters.n_batch, parameters.n_ubatch) == (2048, 512)  # llama.cpp's own
    assert parameters.cpuparams.n_threads == 3
    assert parameters.offline
    assert parameters.cache_ram_mib == 0
    assert parameters.cors_origins == "localhost"
    for name in ("ui", "endpoint_slots", "endpoint_props", "endpoint_metrics", "cors_credentials"):
        assert getattr(parameters, name) is False, name
    assert parameters.server_tools == []
    assert parameters.mmproj.path == ""
    assert parameters.lora_adapters == []


def test_settings_reach_the_library(build) -> None:
    changed = SETTINGS | {
        "chat_template": "T",
        "adapters": ["/verified/polite.gguf", "/verified/brief.gguf"],
        "batch": 512,
        "projector": "/verified/sees.gguf",
        "prompt_threads": 6,
        "ubatch": 256,
        "embeddings": True,
        "flash_attention": False,
        "gpu_layers": 7,
        "total_context": 0,
    }
    parameters = build("/m", "127.0.0.1:4711", changed, "k")
    assert (parameters.hostnames, parameters.port) == (["127.0.0.1"], 4711)
    assert parameters.api_keys == ["k"]
    assert (parameters.n_ctx, parameters.kv_unified) == (0, False)
    assert (parameters.n_batch, parameters.n_ubatch) == (512, 256)
    threads = (parameters.cpuparams.n_threads, parameters.cpuparams_batch.n_threads)
    assert threads == (3, 6)
    assert parameters.mmproj.path == "/verified/sees.gguf"
    adapters = [(adapter.path, adapter.scale) for adapter in parameters.lora_adapters]
    assert adapters == [("/verified/polite.gguf", 1.0), ("/verified/brief.gguf", 1.0)]
    assert parameters.n_gpu_layers == 7
    assert parameters.chat_template == "T"
    assert parameters.embedding
    assert parameters.flash_attn_type == 0
