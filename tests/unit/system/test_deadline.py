"""A call that may hang: waited for in time, and left behind in a thread that nobody joins."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from concurrent.futures import Future
from queue import SimpleQueue

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.system.deadline import (
    CallThreads,
    call_with_deadline,
    call_with_deadline_async,
    result_of,
    start_call,
)

pytestmark = pytest.mark.unit


def test_a_result_and_an_error_come_through():
    assert call_with_deadline(lambda a, b: a + b, 1, 2, seconds=30) == 3
    with pytest.raises(KeyError):
        call_with_deadline({}.__getitem__, "x", seconds=30)
    with pytest.raises(SystemExit):
        call_with_deadline(lambda: (_ for _ in ()).throw(SystemExit(3)), seconds=30)


def test_a_wait_that_is_cancelled_ends_before_its_deadline():
    release, cancelled = threading.Event(), threading.Event()
    cancelled.set()
    with pytest.raises(CompanionError) as caught:
        call_with_deadline(release.wait, 30, seconds=30, cancelled=cancelled)
    assert caught.value.reason is Reason.INTERRUPTED
    release.set()


def test_a_call_that_can_be_cancelled_still_has_its_result_its_error_and_its_deadline():
    never, release = threading.Event(), threading.Event()
    assert call_with_deadline(int, "3", seconds=30, cancelled=never) == 3
    with pytest.raises(KeyError):
        call_with_deadline({}.__getitem__, "x", seconds=30, cancelled=never)
    with pytest.raises(TimeoutError):
        call_with_deadline(release.wait, 30, seconds=0, cancelled=never)
    release.set()


def test_a_call_that_hangs_is_left_behind_in_a_daemon_thread():
    release = threading.Event()
    with pytest.raises(TimeoutError):
        call_with_deadline(release.wait, 30, seconds=0.05)
    hanging = [t for t in threading.enumerate() if t.name == "companion-deadline"]
    assert hanging
    assert all(thread.daemon for thread in hanging)
    release.set()


@pytest.fixture
def threads() -> CallThreads:
    """Threads of this test alone; one without a call ends in a moment."""
    return CallThreads(idle_seconds=0.05)


def test_calls_in_turn_share_a_thread_and_two_at_once_have_two():
    threads = CallThreads(idle_seconds=60)  # no thread ends in between
    first = threads.start(threading.get_ident).result(30)
    assert threads.start(threading.get_ident).result(30) == first
    release = threading.Event()
    waiting = threads.start(lambda: (release.wait(30), threading.get_ident())[1])
    assert threads.start(threading.get_ident).result(30) != first
    release.set()
    assert waiting.result(timeout=30) == first
    assert threads.idle_count == 2


def test_a_thread_that_has_nothing_to_do_ends(threads):
    thread = threads.start(threading.current_thread).result(30)
    thread.join(30)
    assert not thread.is_alive()
    assert threads.idle_count == 0


def test_a_call_that_comes_while_its_thread_gives_up_waiting_is_carried_out(threads):
    calls = SimpleQueue()
    thread = threading.Thread(target=threads._work, args=(calls,), daemon=True)
    thread.start()  # taken already: it is not among the idle ones
    time.sleep(0.2)
    future = Future()
    calls.put((future, int, ("3",)))
    assert future.result(timeout=30) == 3
    thread.join(30)
    assert threads.idle_count == 0


def test_a_thread_keeps_nothing_of_a_call_that_is_over():
    threads = CallThreads(idle_seconds=60)  # it lives on; what it was told must not

    class Secret:
        pass

    def fail(_secret):
        context.set("changed")
        raise KeyError

    secret, context = Secret(), contextvars.ContextVar("context", default="fresh")
    gone = weakref.ref(secret)
    gc.disable()  # the value has to go by its reference count alone
    try:
        call = threads.start(fail, secret)
        with pytest.raises(KeyError):
            call.result(timeout=30)
        del call, secret
        deadline = time.monotonic() + 30  # the thread may still be leaving its call
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
    assert threads.start(context.get).result(30) == "fresh"


def test_the_event_loop_goes_on_while_a_call_hangs():
    begun, release = threading.Event(), threading.Event()

    def hang():
        begun.set()
        return release.wait(60)

    async def run():
        hanging = asyncio.ensure_future(call_with_deadline_async(hang, seconds=60))
        assert await asyncio.to_thread(begun.wait, 30)
        release.set()  # which an event loop that waits for the call would never do
        assert await hanging

    asyncio.run(run())


def test_a_call_that_hangs_is_left_behind_by_the_event_loop_too():
    release = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(call_with_deadline_async(release.wait, 60, seconds=0.05))
    release.set()


def test_a_cancellation_is_never_swallowed_by_a_result_that_comes_with_it():
    """Before Python 3.12, asyncio.wait_for returns the result and forgets the cancellation."""

    async def run():
        call = asyncio.ensure_future(call_with_deadline_async(lambda: 1, seconds=30))
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251 - the result is there, the loop has not seen it
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())


@pytest.mark.parametrize("quick", [True, False])
def test_the_result_of_a_call_is_waited_for_however_long_it_takes(quick):
    release = threading.Event()
    if quick:
        release.set()

    async def life():
        call = start_call(lambda: release.wait(30) and 3)
        waiting = asyncio.ensure_future(result_of(call))
        await asyncio.sleep(0.01)
        release.set()
        assert await waiting == 3
        with pytest.raises(KeyError):
            await result_of(start_call({}.__getitem__, "x"))
        with pytest.raises(TimeoutError, match="its own"):
            await result_of(start_call(fail_late))

    def fail_late():
        time.sleep(0.01)
        raise TimeoutError("its own")

    asyncio.run(life())
