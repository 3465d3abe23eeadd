"""A real llama.cpp tells where it computes and with how much context; a GPU can be required.

The processor is chosen here whatever the machine has, so that the tests say the same everywhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import real_runtimes
import runtime_parts
import serving_parts

from companion_core.decisions.lifecycle import State
from companion_core.decisions.placement import Placement
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.start import sequence

pytestmark = pytest.mark.integration


@pytest.fixture
def make(tmp_path, require_real: Any, monkeypatch: Any) -> Any:
    """Return a function that makes a gateway, on a machine that may have an accelerator."""
    lacking = real_runtimes.missing("llama.cpp")
    require_real(lacking or "", not lacking)
    monkeypatch.setattr(sequence, "has_accelerator", lambda: True)

    def reachable(plan: Any) -> Any:
        # The plan says that no layer goes there; the watch is to rely on llama.cpp's word alone.
        object.__setattr__(plan, "gpu", True)
        return plan

    def serving(**changes: Any) -> Any:
        options = {"gpu_layers": 0}
        return real_runtimes.make_real(
            "llama.cpp", tmp_path, alter=reachable, options=options, **changes
        )

    return serving


@pytest.fixture
def model() -> Any:
    verified = runtime_parts.verified_model(real_runtimes.MODEL)
    yield verified
    verified.close()


def test_the_processor_and_the_models_whole_context_are_told(make, model) -> None:
    async def main() -> dict[str, Any]:
        serving = make(context_length=None)
        async with serving_parts.serving_with(serving, model):
            # The embedded server says it right after it has begun to listen.
            await serving_parts.until(lambda: serving.runtime.placement is not Placement.UNKNOWN)
            return serving.status().to_json()["runtime"]

    told = asyncio.run(main())
    assert told["placement"] == "cpu"
    assert (told["context_length"], told["model_context_length"]) == (512, 512)


def test_a_start_without_the_required_accelerator_is_refused_and_leaves_nothing(
    make, model
) -> None:
    async def main() -> None:
        serving = make(require_gpu=True)
        await serving.open()
        try:
            with pytest.raises(EnvironmentUnavailable) as caught:
                await serving.start(model)
            assert caught.value.reason is Reason.GPU_REQUIRED
            assert caught.value.detail == "computed on the processor"
            assert (serving.status().lifecycle, serving.runtime) == (State.STOPPED, None)
        finally:
            await serving.stop()
            await serving.gateway.close()

    asyncio.run(main())
