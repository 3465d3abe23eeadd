"""A model of several files is served by a real llama.cpp: each reaches it by its role."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import real_runtimes
import runtime_parts
import serving_parts
from split_model import split_model

from companion_core.decisions.isolation import Tier

pytestmark = pytest.mark.integration


@pytest.fixture
def parts(tmp_path, require_real: Any) -> Any:
    lacking = real_runtimes.missing("llama.cpp")
    require_real(lacking or "", not lacking)
    folder = tmp_path / "parts"
    folder.mkdir()
    return split_model(real_runtimes.MODEL, folder, 3)


@pytest.mark.parametrize("tier", [Tier.BUBBLEWRAP, Tier.NONE])
def test_a_model_in_three_parts_answers_as_the_whole_does(tmp_path, parts, tier) -> None:
    def answer(name: str, *files: Any) -> Any:
        model = runtime_parts.verified_model(*files)

        async def ask() -> Any:
            serving = real_runtimes.make_real("llama.cpp", tmp_path / name, tier=tier)
            async with serving_parts.serving_with(serving, model):
                return await serving_parts.chat(serving, temperature=0, max_tokens=12)

        try:
            return asyncio.run(ask())
        finally:
            model.close()

    whole = answer("whole", real_runtimes.MODEL)
    split = answer("split", *parts)
    assert (split[0], whole[0]) == (200, 200)
    assert split[1]["choices"][0]["message"] == whole[1]["choices"][0]["message"]
