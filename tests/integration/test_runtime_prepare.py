"""A prepared request reaches the backend, on the standard event loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from runtime_parts import Listener

from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.providers import BackendRequest, Expected, TcpChannel
from companion_core.runtime.start.prepare import send_prepare
from companion_core.system.secret import Secret

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("each_event_loop")]


@contextmanager
def backend(*answers: bytes) -> Iterator[tuple[TcpChannel, list[bytes]]]:
    """Give each request the next answer, and say what the requests were."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(30)
                    request = b""
                    while not request.endswith(b"{}"):
                        request += connection.recv(4096)
                    seen.append(request)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield TcpChannel(host="127.0.0.1", port=listener.getsockname()[1]), seen
        thread.join()


def send(channel: TcpChannel, *expect: Expected) -> list[str]:
    """Return what a listener hears."""
    heard: list[str] = []

    async def life() -> None:
        async with asyncio.timeout(30):
            request = BackendRequest(method="POST", path="/api/create", json="{}", expect=expect)
            listener = Listener(heard.append)
            await send_prepare(
                LiveEgress(), channel, request, key=Secret("the-key"), listener=listener
            )

    asyncio.run(life())
    return heard


def test_it_is_sent_with_its_key_and_body() -> None:
    with backend(b"HTTP/1.0 200 OK\r\n\r\ndone") as (channel, seen):
        heard = send(channel)
    assert heard == ["connectable"]
    assert seen[0].startswith(b"POST /api/create HTTP/1.0\r\n")
    assert b"Authorization: Bearer the-key\r\n" in seen[0]


def test_a_request_at_which_the_backend_failed_itself_is_sent_once_more() -> None:
    with backend(b"HTTP/1.0 500 No\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n") as (channel, seen):
        heard = send(channel)
    assert heard == ["connectable", "not_connectable", "connectable"]
    assert len(seen) == 2
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "answers",
    [
        [b"HTTP/1.0 500 No\r\n\r\n", b"HTTP/1.0 500 No\r\n\r\n"],
        [b"HTTP/1.0 404 No\r\n\r\n"],
        [b""],
    ],
)
def test_another_answer_is_a_refusal(answers) -> None:
    with backend(*answers) as (channel, seen), pytest.raises(CompanionError) as caught:
        send(channel)
    assert (caught.value.reason, caught.value.detail) == (Reason.SPAWN_FAILED, "POST /api/create")
    assert len(seen) == len(answers)


def test_nobody_there_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        channel = TcpChannel(host="127.0.0.1", port=gone.getsockname()[1])
    with pytest.raises(CompanionError) as caught:
        send(channel)
    assert caught.value.reason is Reason.SPAWN_FAILED


SHOWN = b'HTTP/1.0 200 OK\r\n\r\n{"parameters":"stop    a b\\nnum_ctx    512","template":"T"}'
TEMPLATE = Reason.CHAT_TEMPLATE_UNSUPPORTED


def test_what_the_answer_has_to_say_is_found_in_it() -> None:
    with backend(SHOWN) as (channel, _):
        lines = [Expected(member="parameters", line=line) for line in ("num_ctx 512", "stop a b")]
        assert send(channel, *lines, Expected(member="template", unlike="U")) == ["connectable"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SHOWN, Expected(member="parameters", line="num_ctx 51")),
        (SHOWN, Expected(member="absent", line="num_ctx 512")),
        (SHOWN, Expected(member="template", unlike="T", reason=TEMPLATE)),
        (SHOWN, Expected(member="absent", unlike="T", reason=TEMPLATE)),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", Expected(member="a", unlike="b")),
        (b"HTTP/1.0 200 OK\r\n\r\nnum_ctx 512", Expected(member="a", line="num_ctx 512")),
    ],
)
def test_an_answer_that_does_not_say_it_ends_the_start_with_its_reason(answer, expected) -> None:
    with backend(answer) as (channel, _), pytest.raises(CompanionError) as caught:
        send(channel, expected)
    assert caught.value.reason is expected.reason
