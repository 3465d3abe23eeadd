from __future__ import annotations

import pytest

from companion_core.errors import REASONS, Reason
from companion_core.runtime.process.handle import describe_exit

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, ""),
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "ended by SIGKILL"),
        (0xC0000005 - 2**32, "ended by fault 0xC0000005"),
    ],
)
def test_how_a_runtime_ended_is_said_as_a_person_would_look_it_up(code, said) -> None:
    assert describe_exit(code) == said


@pytest.mark.parametrize(("code", "named"), [(-4, "SIGILL"), (0xC000001D - 2**32, "0xC000001D")])
def test_a_program_for_another_processor_is_told_as_that_and_no_other_end_is(code, named) -> None:
    assert named in describe_exit(code)
    assert "built for another processor" in describe_exit(code)
    assert "processor" not in REASONS[Reason.RUNTIME_EXITED].advice
