"""Call a plugin so that a failure costs that plugin alone.

The call runs in a worker with a deadline. An exception that the seam declares is rebuilt from
its reason and passed on; any other, `SystemExit` included, becomes a `PluginFault` that carries
no text of the foreign exception (I-15). What the plugin prints meanwhile is discarded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from companion_core.errors import PluginFault, Reason
from companion_core.providers import (
    KEYCHAIN_REASONS,
    CannotPlan,
    DownloadFailed,
    KeychainUnavailable,
    OptionInvalid,
    ProbeFailed,
    Redirect,
    ResumeRefused,
)
from companion_core.system.deadline import call_with_deadline, call_with_deadline_async
from companion_core.system.lacks import is_limit, lack_of
from companion_core.system.muted_output import mute_output
from companion_core.transfer_fault import known_problem

__all__ = ["PLUGIN_REASONS", "call_provider", "call_provider_sync"]

T = TypeVar("T")

PLUGIN_REASONS: Final[Mapping[type[Exception], frozenset[Reason]]] = MappingProxyType(
    {
        KeychainUnavailable: KEYCHAIN_REASONS,
        CannotPlan: frozenset(
            {
                Reason.CHAT_TEMPLATE_UNSUPPORTED,
                Reason.MALFORMED_LIMITS,
                Reason.MODEL_FORMAT_UNSUPPORTED,
                Reason.PLAN_REFUSED,
                Reason.RUNTIME_NOT_FOUND,
                Reason.RUNTIME_UNSAFE,
                Reason.UNKNOWN_OPTION,
            }
        ),
        DownloadFailed: frozenset(
            {
                Reason.DISK_UNAVAILABLE,
                Reason.DOWNLOAD_FAILED,
                Reason.EGRESS_REFUSED,
                Reason.SCHEME_NOT_ALLOWED,
                Reason.SIZE_MISMATCH,
                Reason.SOURCE_NOT_ALLOWED,
            }
        ),
    }
)
"""The reasons that a plugin may give, by the exception that carries them (SEAMS)."""


async def call_provider(plugin: str, function: Callable[..., T], *args: Any, seconds: float) -> T:
    """Return `function(*args)` of the plugin named `plugin`, without blocking the event loop.

    Args:
        plugin: the name that a fault carries.
        function: a synchronous method of the plugin's provider.
        args: passed on unchanged; give frozen values.
        seconds: the deadline; a call that misses it is abandoned.

    Raises:
        KeychainUnavailable, CannotPlan, Redirect, ResumeRefused, DownloadFailed, ProbeFailed,
            OptionInvalid: as the plugin raised them, rebuilt.
        EnvironmentUnavailable: `limit_reached`, if the system had nothing left for the call.
        PluginFault: `plugin_call_failed` for any other exception and for a missed
            deadline; `plugin_result_invalid` for an awaitable or generator in place of a value.
    """
    try:
        outcome = await call_with_deadline_async(_outcome, plugin, function, args, seconds=seconds)
    except TimeoutError:
        outcome = PluginFault(Reason.PLUGIN_CALL_FAILED, plugin, "no answer in time")
    return cast("T", _unwrap(outcome))


def call_provider_sync(plugin: str, function: Callable[..., T], *args: Any, seconds: float) -> T:
    """Do what `call_provider` does, for a caller without an event loop."""
    try:
        outcome = call_with_deadline(_outcome, plugin, function, args, seconds=seconds)
    except TimeoutError:
        outcome = PluginFault(Reason.PLUGIN_CALL_FAILED, plugin, "no answer in time")
    return cast("T", _unwrap(outcome))


class _Value:
    """Wraps a result, so that an exception which a plugin returns is not taken for a fault."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def _unwrap(outcome: _Value | Exception) -> object:
    if isinstance(outcome, _Value):
        return outcome.value
    raise outcome


def _outcome(
    plugin: str, function: Callable[..., object], args: tuple[Any, ...]
) -> _Value | Exception:
    # All foreign code runs here, in the worker. So an exception on the waiting side is the
    # caller's own (Ctrl-C, cancellation, the deadline) and never mistaken for the plugin's.
    try:
        with mute_output():
            result = function(*args)
        if inspect.iscoroutine(result):
            result.close()
            return PluginFault(Reason.PLUGIN_RESULT_INVALID, plugin)
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            return PluginFault(Reason.PLUGIN_RESULT_INVALID, plugin)
    except BaseException as error:  # noqa: BLE001 - even SystemExit is the plugin's fault alone
        try:
            if is_limit(error):
                return lack_of(error)
            return _rebuilt(error) or PluginFault(Reason.PLUGIN_CALL_FAILED, plugin)
        except BaseException:  # noqa: BLE001 - reading a hostile exception may raise too
            return PluginFault(Reason.PLUGIN_CALL_FAILED, plugin)
    return _Value(result)


def _rebuilt(error: BaseException) -> Exception | None:
    """Return a new exception of the seam's own class; None if `error` is not of the seam."""
    match error:
        case KeychainUnavailable(reason=reason):
            return KeychainUnavailable(reason) if _may_give(KeychainUnavailable, reason) else None
        case CannotPlan(reason=reason):
            return CannotPlan(reason) if _may_give(CannotPlan, reason) else None
        case DownloadFailed(reason=reason, retryable=retryable, problem=problem):
            if not _may_give(DownloadFailed, reason) or type(retryable) is not bool:
                return None
            return DownloadFailed(
                reason, retryable, None if problem is None else known_problem(problem)
            )
        case OptionInvalid(name=name):
            return OptionInvalid(name) if type(name) is str and name.isidentifier() else None
        case Redirect(url=url):
            return Redirect(url) if type(url) is str else None
        case ResumeRefused():
            return ResumeRefused()
        case ProbeFailed():
            return ProbeFailed()
    return None


def _may_give(kind: type[Exception], reason: object) -> bool:
    return type(reason) is Reason and reason in PLUGIN_REASONS[kind]
