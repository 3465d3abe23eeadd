"""How a file is opened on Windows, against a double of its library."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from companion_core.models.windows_file import open_for_reading_alone

pytestmark = pytest.mark.unit


class Kernel32:
    def __init__(self, handle: int | None) -> None:
        self.calls = []

        def create(*arguments):
            self.calls.append(arguments)
            assert len(arguments) == len(create.argtypes)
            return handle

        self.CreateFileW = create


def test_reading_is_all_that_it_shares() -> None:
    kernel32, adopted = Kernel32(44), []
    path = Path("C:/models/x")
    opened = open_for_reading_alone(path, kernel32, lambda *made: adopted.append(made) or 7)
    assert opened == 7
    assert kernel32.calls == [(str(path), 0x80000000, 0x1, None, 3, 0x00200000, None)]
    assert adopted == [(44, os.O_RDONLY)]


@pytest.mark.parametrize("handle", [None, ctypes.c_void_p(-1).value])
def test_a_file_that_somebody_writes_to_is_not_opened(handle) -> None:
    def adopt(*_):
        raise AssertionError

    with pytest.raises(OSError, match=r".*"):
        open_for_reading_alone(Path("C:/models/x"), Kernel32(handle), adopt)
