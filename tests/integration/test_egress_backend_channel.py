"""The companion's end of a broker's line: takes what it asked for and nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading

import psutil
import pytest

from companion_core.egress.backend_channel import BrokeredChannel
from companion_core.egress.live import LiveEgress
from companion_core.providers import TcpChannel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="sequenced packets and descriptors"),
]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def line():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(10)
    yield ours, theirs
    ours.close()
    theirs.close()


def channel_on(ours, listener) -> BrokeredChannel:
    return BrokeredChannel(ours, TcpChannel(host="127.0.0.1", port=listener.getsockname()[1]))


def answer(theirs, *descriptors: int) -> threading.Thread:
    """Take one question and answer it with what a broker might send."""

    def run() -> None:
        assert theirs.recv(16) == b"c"
        if descriptors:
            socket.send_fds(theirs, [b"k"], list(descriptors))
        else:
            theirs.send(b"e")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_connected_stream_to_the_listener_is_accepted(line, listener) -> None:
    ours, theirs = line

    async def life() -> None:
        channel = channel_on(ours, listener)
        with socket.create_connection(listener.getsockname()) as made:
            thread = answer(theirs, made.fileno())
            taken = await channel.connect()
            thread.join()
        assert taken.getpeername() == listener.getsockname()
        assert taken.gettimeout() == 0
        assert not os.get_inheritable(taken.fileno())
        taken.close()

    asyncio.run(life())


def test_any_other_descriptor_is_refused_and_closed(line, listener) -> None:
    ours, theirs = line

    async def life() -> None:
        channel = channel_on(ours, listener)
        elsewhere = socket.create_server(("127.0.0.1", 0))
        foreign = socket.create_connection(elsewhere.getsockname())
        unconnected = socket.socket()
        datagram = socket.socket(type=socket.SOCK_DGRAM)
        datagram.connect(listener.getsockname())
        pair = socket.socketpair()
        gc.collect()  # descriptors of earlier tests must not be closed in between
        before = psutil.Process().num_fds()
        for other in (foreign, unconnected, datagram, pair[0]):
            thread = answer(theirs, other.fileno())
            with pytest.raises(ConnectionRefusedError):
                await channel.connect()
            thread.join()
        thread = answer(theirs)
        with pytest.raises(ConnectionRefusedError):
            await channel.connect()
        thread.join()
        assert psutil.Process().num_fds() == before
        for each in (elsewhere, foreign, unconnected, datagram, *pair):
            each.close()

    asyncio.run(life())


def test_a_descriptor_that_is_no_socket_is_an_os_error_and_closed(line, listener) -> None:
    ours, theirs = line

    async def life() -> None:
        file = os.open(os.devnull, os.O_RDONLY)
        channel = channel_on(ours, listener)
        gc.collect()  # descriptors of earlier tests must not be closed in between
        before = psutil.Process().num_fds()
        for _ in range(3):
            thread = answer(theirs, file)
            with pytest.raises(OSError, match=r".*"):
                await channel.connect()
            thread.join()
        assert psutil.Process().num_fds() == before
        os.close(file)

    asyncio.run(life())


def test_a_broker_that_has_ended_or_was_closed_refuses(line, listener) -> None:
    ours, theirs = line

    async def life() -> None:
        channel = channel_on(ours, listener)
        theirs.close()
        for _ in range(2):
            with pytest.raises(OSError, match=r".*"):
                await LiveEgress().connect_backend(asyncio.Protocol, channel)
            channel.close()

    asyncio.run(life())


def test_a_caller_that_gives_up_does_not_take_anothers_answer(line, listener) -> None:
    ours, theirs = line

    async def life() -> None:
        channel = channel_on(ours, listener)
        with (
            socket.create_connection(listener.getsockname()) as first,
            socket.create_connection(listener.getsockname()) as second,
        ):
            impatient = asyncio.ensure_future(channel.connect())
            waiting = asyncio.ensure_future(channel.connect())
            await asyncio.sleep(0.01)
            impatient.cancel()
            for made in (first, second):
                thread = answer(theirs, made.fileno())
                await asyncio.to_thread(thread.join)
            with pytest.raises(asyncio.CancelledError):
                await impatient
            taken = await waiting
            assert taken.getsockname() == second.getsockname()
            taken.close()

    asyncio.run(life())
