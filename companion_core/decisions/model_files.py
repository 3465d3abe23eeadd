"""Rules: in which order the files of one model are handed on.

A runtime opens the first file, and finds the other parts of a split model by their names. Imports
values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from companion_core.decisions.manifest_kind import Role

__all__ = ["in_order"]

# As llama.cpp names the parts of a split model.
_LATER_PART: Final = re.compile(r".*-(?!00001-)\d{5}-of-\d{5}\.gguf", re.IGNORECASE | re.DOTALL)


class _File(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...


_SomeFile = TypeVar("_SomeFile", bound=_File)


def in_order(files: Iterable[_SomeFile]) -> tuple[_SomeFile, ...]:
    """Return the files with the model's own first, and of a split model the first part.

    Others keep the order in which they were signed.
    """
    return tuple(
        sorted(
            files,
            key=lambda file: (
                file.role is not Role.MODEL,
                _LATER_PART.fullmatch(file.name) is not None,
            ),
        )
    )
