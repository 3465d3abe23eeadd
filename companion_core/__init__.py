"""Run a local AI runtime on a person's own machine: verified, guarded and confined.

A plugin imports `hookimpl`; a product that embeds the companion imports `Companion`. Both are
loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion_core.companion import Companion
    from companion_core.hookspecs import hookimpl

__all__ = ["Companion", "__version__", "hookimpl"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from companion_core.hookspecs import hookimpl  # noqa: PLC0415 - loaded on first use

        return hookimpl
    if name == "Companion":
        from companion_core.companion import Companion  # noqa: PLC0415 - loaded on first use

        return Companion
    raise AttributeError(name)
