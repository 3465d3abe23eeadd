import asyncio
import threading
import time

import pytest

from companion_core.deadline import call_with_deadline, call_with_deadline_async

pytestmark = pytest.mark.unit


def test_a_result_and_an_error_come_through():
    assert call_with_deadline(lambda a, b: a + b, 1, 2, seconds=5) == 3
    with pytest.raises(KeyError):
        call_with_deadline({}.__getitem__, "x", seconds=5)
    with pytest.raises(SystemExit):
        call_with_deadline(lambda: (_ for _ in ()).throw(SystemExit(3)), seconds=5)


def test_a_call_that_hangs_is_left_behind_in_a_daemon_thread():
    release = threading.Event()
    with pytest.raises(TimeoutError):
        call_with_deadline(release.wait, 30, seconds=0.05)
    hanging = [t for t in threading.enumerate() if t.name == "companion-deadline"]
    assert hanging
    assert all(thread.daemon for thread in hanging)
    release.set()
    for thread in hanging:
        thread.join(5)


def test_the_event_loop_goes_on_while_a_call_hangs():
    release = threading.Event()

    async def run():
        ticks = 0
        hanging = asyncio.ensure_future(call_with_deadline_async(release.wait, 30, seconds=0.2))
        while not hanging.done():
            ticks += 1
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await hanging
        return ticks

    assert asyncio.run(run()) > 3
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
