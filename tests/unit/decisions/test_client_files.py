"""Which programs a session's environment does not reach."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.connect import PROGRAMS
from companion_core.decisions.client_files import FILES, ClientFiles, client_files

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "program", ["aider", "/usr/bin/aider", r"C:\Tools\aider.exe", "AIDER.CMD", "./aider"]
)
def test_a_program_is_known_by_its_name_wherever_it_lies(program: str) -> None:
    assert client_files(program) is FILES["aider"]


@pytest.mark.parametrize(
    "program", ["", "python", "aider2", "/aider/", "my-aider", None, 7, b"aider"]
)
def test_any_other_reads_nothing_that_is_known(program: Any) -> None:
    assert client_files(program) == ClientFiles()


@given(st.text())
def test_it_is_total(program: str) -> None:
    assert isinstance(client_files(program), ClientFiles)


def test_what_can_be_connected_is_known_to_connect() -> None:
    for files in FILES.values():
        assert files.before or files.alone
        assert not files.connect or files.connect in PROGRAMS
