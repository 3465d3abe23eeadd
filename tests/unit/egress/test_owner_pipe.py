"""The named pipe of Windows, against doubles of the system's own calls. Not run on Windows."""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import queue
import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.control.server import PipeDoor
from companion_core.egress.owner_pipe import OwnerPipes, new_pipe_name

pytestmark = pytest.mark.unit

SERVER_PID, SID = 4711, "S-1-5-21-1-2-3-1001"
PIPE_BUSY, NO_DATA, ABORTED, WAIT_TIMEOUT = 231, 232, 995, 258


class WinError(OSError):
    def __init__(self, winerror: int) -> None:
        super().__init__(winerror, "refused")
        self.winerror = winerror


class Overlapped:
    """A connection that is awaited."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.outcome = 0

    def cancel(self) -> None:
        if not self.event.is_set():
            self.outcome = ABORTED

    def GetOverlappedResult(self, wait: int) -> tuple[int, int]:  # noqa: N802 - the system's name
        return 0, self.outcome


class Windows:
    """The system's calls that a pipe needs, made with pipes of this process."""

    WAIT_TIMEOUT = WAIT_TIMEOUT

    def __init__(self) -> None:
        self.opened: dict[int, SimpleNamespace] = {}
        self.closed: list[int] = []
        self.free: queue.Queue[SimpleNamespace] = queue.Queue()
        self.freed = 0
        self.busy = 0
        self.refuse_to_listen = False
        self.sid: str | None = SID
        self._next = 7

    # --- _winapi ---

    def CreateNamedPipe(self, name: str, *settings: Any) -> int:  # noqa: N802 - the system's name
        if self.refuse_to_listen:
            raise WinError(PIPE_BUSY)
        attributes = ctypes.cast(settings[-1], ctypes.POINTER(ctypes.c_uint32))
        server, client = multiprocessing.Pipe()
        end = SimpleNamespace(
            handle=self._next,
            name=name,
            settings=settings,
            length=attributes[0],
            server=server,
            client=client,
            coming=Overlapped(),
        )
        self.opened[end.handle] = end
        self._next += 1
        self.free.put(end)
        return end.handle

    def ConnectNamedPipe(self, handle: int, *, overlapped: bool) -> Overlapped:  # noqa: N802 - the system's name
        assert overlapped
        if self.opened[handle].name == "left":
            raise WinError(NO_DATA)
        self.opened[handle].coming.outcome = 0
        return self.opened[handle].coming

    def WaitForMultipleObjects(self, events: list[Any], every: int, milliseconds: int) -> int:  # noqa: N802 - the system's name
        assert not every
        return 0 if events[0].wait(milliseconds / 1000) else WAIT_TIMEOUT

    def CreateFile(self, name: str, *settings: Any) -> int:  # noqa: N802 - the system's name
        self.client_settings = settings
        if self.busy:
            self.busy -= 1
            raise WinError(PIPE_BUSY)
        while True:
            end = self.free.get(timeout=30)
            if end.handle not in self.closed:
                break
        assert end.name == name
        handle = self._next = self._next + 100
        self.opened[handle] = SimpleNamespace(server=end.client)
        end.coming.event.set()
        return handle

    def WaitNamedPipe(self, name: str, milliseconds: int) -> None:  # noqa: N802 - the system's name
        assert milliseconds == 10_000

    def SetNamedPipeHandleState(self, handle: int, mode: int, *_: None) -> None:  # noqa: N802 - the system's name
        assert mode == 2

    def CloseHandle(self, handle: Any) -> int:  # noqa: N802 - the system's name
        if isinstance(handle, int):
            self.closed.append(handle)
        return 1

    # --- multiprocessing.connection ---

    def PipeConnection(self, handle: int) -> Any:  # noqa: N802 - the library's name
        return self.opened[handle].server

    # --- kernel32 and advapi32 ---

    @property
    def GetCurrentProcess(self) -> Any:  # noqa: N802 - the system's name
        return _Function(lambda: 1)

    def GetNamedPipeServerProcessId(self, handle: Any, pid: Any) -> int:  # noqa: N802 - the system's name
        pid._obj.value = SERVER_PID
        return 1

    def OpenProcessToken(self, process: Any, access: int, token: Any) -> int:  # noqa: N802 - the system's name
        assert access == 8
        token._obj.value = 3
        return 1

    def GetTokenInformation(self, token: Any, kind: int, *_: Any) -> int:  # noqa: N802 - the system's name
        return int(kind == 1)

    def ConvertSidToStringSidW(self, sid: Any, text: Any) -> int:  # noqa: N802 - the system's name
        text._obj.value = self.sid
        return int(self.sid is not None)

    def ConvertStringSecurityDescriptorToSecurityDescriptorW(  # noqa: N802 - the system's name
        self, rights: Any, revision: int, descriptor: Any, size: None
    ) -> int:
        assert revision == 1
        self.rights = rights.value
        descriptor._obj.value = 99
        return 1

    def LocalFree(self, memory: Any) -> None:  # noqa: N802 - the system's name
        self.freed += 1


class _Function:
    """A function of a library, whose result's type can be set."""

    def __init__(self, function: Callable[[], int]) -> None:
        self._function = function
        self.restype: Any = None

    def __call__(self) -> int:
        return self._function()


@pytest.fixture
def windows() -> Windows:
    return Windows()


@pytest.fixture
def pipes(windows: Windows) -> OwnerPipes:
    return OwnerPipes(windows, windows, windows, windows)


def test_the_pipe_lets_the_person_in_alone(windows: Windows, pipes: OwnerPipes) -> None:
    handle = pipes.listen("name", first=True)
    assert windows.rights == f"D:P(A;;GA;;;{SID})"
    open_mode, pipe_mode, *_ = windows.opened[handle].settings
    assert open_mode & 0x00080000  # FILE_FLAG_FIRST_PIPE_INSTANCE
    assert pipe_mode & 0x8  # PIPE_REJECT_REMOTE_CLIENTS
    assert windows.opened[handle].length == (24 if ctypes.sizeof(ctypes.c_void_p) == 8 else 12)
    assert windows.freed == 2
    later = pipes.listen("name", first=False)
    assert not windows.opened[later].settings[0] & 0x00080000


def test_a_person_who_cannot_be_named_gets_no_pipe(windows: Windows, pipes: OwnerPipes) -> None:
    windows.sid = None
    with pytest.raises(OSError, match="identifier"):
        pipes.listen("name", first=True)
    assert windows.opened == {}


def test_each_name_is_new() -> None:
    names = {new_pipe_name() for _ in range(10)}
    assert len(names) == 10
    assert all(re.fullmatch(r"\\\\\.\\pipe\\companion-[0-9a-f]{32}", name) for name in names)


def test_a_wait_for_a_client_ends_in_time(windows: Windows, pipes: OwnerPipes) -> None:
    handle = pipes.listen("name", first=True)
    assert pipes.wait_for_client(handle, 0.01) is None
    assert windows.closed == []


def test_a_client_that_left_at_once_is_no_fault_of_the_pipe(
    windows: Windows, pipes: OwnerPipes
) -> None:
    handle = pipes.listen("left", first=True)
    end = pipes.wait_for_client(handle, 1)
    windows.opened[handle].client.close()
    assert end is not None
    with pytest.raises(ConnectionResetError):
        end.receive(100, 1)


def test_a_busy_pipe_is_waited_for(windows: Windows, pipes: OwnerPipes) -> None:
    pipes.listen("name", first=True)
    windows.busy = 1
    assert pipes.connect("name", 10).peer() == (SERVER_PID, 0)
    assert windows.client_settings[-2] & 0x00110000 == 0x00110000  # the server cannot act as us


def serve(pipes: OwnerPipes, client: Callable[[str], Any]) -> Any:
    async def answer(line: bytes) -> bytes:
        return json.dumps({"heard": json.loads(line)}).encode() + b"\n"

    async def run() -> Any:
        door = PipeDoor(pipes, answer)
        try:
            return await asyncio.to_thread(client, door.address)
        finally:
            await door.close()
            assert not door._thread.is_alive()

    return asyncio.run(run())


def test_questions_are_answered_one_after_another_and_at_once(pipes: OwnerPipes) -> None:
    def client(address: str) -> list[Any]:
        first, second = (pipes.connect(address, 10) for _ in range(2))
        said = [json.loads(end.ask(b"%d" % n, 100)) for n, end in ((2, second), (1, first))]
        for end in (first, second):
            end.close()
        return said

    assert serve(pipes, client) == [{"heard": 2}, {"heard": 1}]


def test_a_pipe_that_fails_for_a_while_is_served_again(windows: Windows, pipes: OwnerPipes) -> None:
    def client(address: str) -> Any:
        windows.refuse_to_listen = True
        first = pipes.connect(address, 10)
        assert json.loads(first.ask(b"1", 100)) == {"heard": 1}
        windows.refuse_to_listen = False
        return json.loads(pipes.connect(address, 10).ask(b"2", 100))

    assert serve(pipes, client) == {"heard": 2}


def test_an_answer_that_does_not_come_or_is_too_long_is_a_failure(
    windows: Windows, pipes: OwnerPipes
) -> None:
    handle = pipes.listen("name", first=True)
    end = pipes.connect("name", 0.01)
    with pytest.raises(TimeoutError):
        end.ask(b"1", 100)
    windows.opened[handle].server.send_bytes(b"x" * 101)
    with pytest.raises(OSError, match="message"):
        end.receive(100, 1)


def test_a_pipe_whose_name_is_taken_is_refused(windows: Windows, pipes: OwnerPipes) -> None:
    windows.refuse_to_listen = True
    with pytest.raises(OSError, match="refused"):
        serve(pipes, lambda _address: None)
