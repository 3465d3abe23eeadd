"""Run a local AI runtime on a person's own machine: verified, guarded and confined.

A plugin imports `hookimpl`; a product that embeds the companion imports the other names. All are
loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion_core.companion import (
        Companion,
        CompanionStatus,
        Event,
        EventKind,
        EventStream,
        OnStep,
        Step,
    )
    from companion_core.errors import (
        CompanionError,
        EnvironmentUnavailable,
        PluginFault,
        Reason,
        Refused,
        UsageError,
    )
    from companion_core.hookspecs import hookimpl

__all__ = [
    "Companion",
    "CompanionError",
    "CompanionStatus",
    "EnvironmentUnavailable",
    "Event",
    "EventKind",
    "EventStream",
    "OnStep",
    "PluginFault",
    "Reason",
    "Refused",
    "Step",
    "UsageError",
    "__version__",
    "hookimpl",
]

__version__ = "0.1.0"

_OF_COMPANION = frozenset(
    {"Companion", "CompanionStatus", "Event", "EventKind", "EventStream", "OnStep", "Step"}
)


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from companion_core.hookspecs import hookimpl  # noqa: PLC0415 - loaded on first use

        return hookimpl
    if name in _OF_COMPANION:
        from companion_core import companion  # noqa: PLC0415 - loaded on first use

        return getattr(companion, name)
    if name in __all__:
        from companion_core import errors  # noqa: PLC0415 - loaded on first use

        return getattr(errors, name)
    raise AttributeError(name)
