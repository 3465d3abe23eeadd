from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Callable

import pytest

from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, Refused
from companion_core.plugin_host.calls import PLUGIN_REASONS, call_provider, call_provider_sync
from companion_core.providers import (
    CannotPlan,
    DownloadFailed,
    KeychainUnavailable,
    ProbeFailed,
    Redirect,
    ResumeRefused,
)

pytestmark = pytest.mark.unit

SECRET = "a-foreign-secret"


def run_async(function: Callable[..., object], *args: object, seconds: float = 5.0) -> object:
    return asyncio.run(call_provider("lamp", function, *args, seconds=seconds))


def run_sync(function: Callable[..., object], *args: object, seconds: float = 5.0) -> object:
    return call_provider_sync("lamp", function, *args, seconds=seconds)


@pytest.fixture(params=[run_async, run_sync], ids=["async", "sync"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    return request.param


def raising(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


def test_a_value_comes_back_as_it_is(run):
    value = object()
    assert run(lambda given: given, value) is value
    assert run(lambda: None) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, SECRET, SECRET),
        BlockingIOError(errno.EAGAIN, SECRET),
        RuntimeError("can't start new thread"),
        MemoryError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_plugin_is_blamed_where_the_system_has_nothing_left(run, error: BaseException):
    with pytest.raises(EnvironmentUnavailable) as caught:
        run(raising(error))
    assert caught.value.reason is Reason.LIMIT_REACHED
    assert SECRET not in f"{caught.value!r} {caught.value.detail}"


def test_a_recursion_without_end_is_the_plugins_fault(run):
    with pytest.raises(PluginFault):
        run(raising(RecursionError(SECRET)))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        TimeoutError(SECRET),
        SystemExit(SECRET),
        KeyboardInterrupt(SECRET),
        GeneratorExit(SECRET),
        asyncio.CancelledError(SECRET),
        StopIteration(SECRET),
        PluginFault(Reason.PLUGIN_CHANGED, SECRET, SECRET),
        Refused(Reason.DIGEST_MISMATCH, SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_it_raises_is_a_fault_without_its_text(run, error: BaseException):
    with pytest.raises(PluginFault) as caught:
        run(raising(error))
    fault = caught.value
    assert (fault.reason, fault.plugin) == (Reason.PLUGIN_CALL_FAILED, "lamp")
    assert SECRET not in f"{fault} {fault.detail}"
    assert fault.__cause__ is None
    assert fault.__context__ is None


@pytest.mark.parametrize(
    "error",
    [
        KeychainUnavailable(Reason.KEYCHAIN_LOCKED),
        CannotPlan(Reason.PLAN_REFUSED),
        DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True),
        Redirect("https://models.example.org/a"),
        ResumeRefused(),
        ProbeFailed(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_seams_own_exceptions_pass(run, error: Exception):
    error.__cause__ = ValueError(SECRET)
    with pytest.raises(type(error)) as caught:
        run(raising(error))
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert caught.value is not error
    assert caught.value.__cause__ is None


def forged(error: Exception, reason: object) -> Exception:
    error.reason = reason
    return error


@pytest.mark.parametrize(
    "error",
    [
        forged(KeychainUnavailable(Reason.KEYCHAIN_LOCKED), SECRET),
        KeychainUnavailable(Reason.OK),
        KeychainUnavailable(Reason.DIGEST_MISMATCH),
        forged(CannotPlan(Reason.PLAN_REFUSED), "plan_refused"),
        CannotPlan(Reason.KEYCHAIN_LOCKED),
        DownloadFailed(Reason.OK, retryable=True),
        DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=SECRET),
        Redirect(7),
    ],
)
def test_a_seams_exception_with_another_reason_is_a_fault(run, error: Exception):
    with pytest.raises(PluginFault) as caught:
        run(raising(error))
    assert caught.value.reason is Reason.PLUGIN_CALL_FAILED


class Lying(KeychainUnavailable):
    def __init__(self) -> None:
        Exception.__init__(self, SECRET)

    @property
    def reason(self) -> Reason:
        raise SystemExit(SECRET)


class Derived(CannotPlan):
    pass


def test_a_subclass_with_surprises_is_a_fault(run):
    with pytest.raises(PluginFault):
        run(raising(Lying()))


def test_a_plain_subclass_comes_back_as_the_seams_own(run):
    with pytest.raises(CannotPlan) as caught:
        run(raising(Derived(Reason.UNKNOWN_OPTION)))
    assert type(caught.value) is CannotPlan


async def coroutine() -> int:
    return 1


def generator():
    yield 1


async def asynchronous_generator():
    yield 1


class Awaitable:
    def __await__(self):
        return iter(())


@pytest.mark.parametrize("function", [coroutine, generator, asynchronous_generator, Awaitable])
def test_an_awaitable_or_a_generator_is_no_value(run, function: Callable[[], object]):
    with pytest.raises(PluginFault) as caught:
        run(function)
    assert caught.value.reason is Reason.PLUGIN_RESULT_INVALID
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors


def test_a_call_that_hangs_is_left_behind(run):
    release, threads = threading.Event(), []

    def hang() -> None:
        threads.append(threading.current_thread())
        release.wait(30)

    with pytest.raises(PluginFault) as caught:
        run(hang, seconds=0.05)
    assert caught.value.reason is Reason.PLUGIN_CALL_FAILED
    release.set()  # its late answer reaches no caller and fails nothing
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_the_callers_own_cancellation_is_not_the_plugins():
    async def cancelled() -> None:
        release = threading.Event()
        task = asyncio.create_task(call_provider("lamp", release.wait, 30, seconds=20))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        finally:
            release.set()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_no_seam_may_give_ok():
    assert all(Reason.OK not in reasons for reasons in PLUGIN_REASONS.values())
