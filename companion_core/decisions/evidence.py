"""Rules for this file: a value that proves something can be made only by what proved it.

An evidence class names the one module that may make it. Construction from anywhere else
raises `TypeError`: that is a fault of the program and never an answer to input.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

__all__ = ["Evidence"]


class Evidence:
    """Base of values that are proof; `made_in` is the module whose code may construct them.

    A subclass is a frozen, slotted dataclass. This guards against mistakes, not against
    hostile code in the same process (SECURITY.md).
    """

    __slots__ = ()
    made_in: ClassVar[str] = ""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:  # noqa: D102 - the class docstring describes construction
        caller = sys._getframe(1).f_globals.get("__name__")  # noqa: SLF001 - the only way to see it
        if not cls.made_in or caller != cls.made_in:
            raise TypeError(f"{cls.__name__} is made by {cls.made_in or 'nobody'} alone")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.made_in = cls.__module__

    def __reduce__(self) -> Any:
        raise TypeError("evidence is not copied or stored; it is proved again")
