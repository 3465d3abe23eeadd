from __future__ import annotations

import pytest

from companion_core.runtime.process.handle import describe_exit

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, ""),
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-4, "ended by SIGILL"),
        (-9, "ended by SIGKILL"),
        (0xC000001D - 2**32, "ended by fault 0xC000001D"),
    ],
)
def test_how_a_runtime_ended_is_said_as_a_person_would_look_it_up(code, said) -> None:
    assert describe_exit(code) == said
