from __future__ import annotations

from dataclasses import dataclass

import pytest

from companion_core.decisions.manifest_kind import Role
from companion_core.decisions.model_files import in_order

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class File:
    name: str
    role: Role = Role.MODEL


FIRST, SECOND, THIRD = (File(f"chat-{number:05d}-of-00003.gguf") for number in (1, 2, 3))
LEADS, FOLLOWS = (File(f"a-{number:05d}-of-00002.GGUF") for number in (1, 2))
SEES, POLITE = File("sees.gguf", Role.PROJECTOR), File("polite.gguf", Role.ADAPTER)


@pytest.mark.parametrize(
    ("signed", "opened"),
    [
        ((FIRST, SECOND, THIRD), (FIRST, SECOND, THIRD)),
        ((THIRD, FIRST, SECOND), (FIRST, THIRD, SECOND)),
        ((SEES, THIRD, POLITE, FIRST), (FIRST, THIRD, SEES, POLITE)),
        ((POLITE, SEES, File("chat.gguf")), (File("chat.gguf"), POLITE, SEES)),
        # Other formats have files of any name, in an order of their own.
        ((File("weights.safetensors"), File("config.json")),) * 2,
        ((FOLLOWS, LEADS), (LEADS, FOLLOWS)),
        ((File("a-00002-of-2.gguf"), File("b.gguf")),) * 2,
        ((), ()),
    ],
)
def test_a_runtime_opens_the_first_part_of_the_model_itself(signed, opened) -> None:
    assert in_order(signed) == opened
