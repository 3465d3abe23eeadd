"""A runtime without a model, run as a program: well behaved, unless its arguments say otherwise.

    python -IS fake_runtime.py MODEL ADDRESS [BEHAVIOUR ...]

ADDRESS is a socket's path or HOST:PORT. It reads the model, announces `READY`, answers
`GET /health` and echoes completions, streamed if asked; it fails at the first `/stumble`. It takes
one connection at a time. Its announcement also says when it was ready, in seconds of the
monotonic clock, and the key that it was given, which no log may show.
BEHAVIOUR is any of: exit, hang (never ready), slow (loads before it listens), busy (listens
first, and answers 503 while it loads), never (always 503), stubborn (ignores SIGTERM),
offspring (a grandchild in its own session; not on Windows), leak (a descendant with another
environment), wide (listens on every address; SIGUSR1 makes any runtime do so later), aside (a
thread with descriptors of its own listens on every address; on Linux), udp (has a UDP socket).
On SIGUSR2 it exits with 1. It imports the standard library only, nothing of this package.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

READY = "fake runtime: ready"
KEY_ENV = "FAKE_RUNTIME_KEY"

_FOREVER_SECONDS = 3600
_NOT_YET = b"HTTP/1.0 503 loading\r\n\r\n"
_LOADING_SECONDS = 0.25
_CLONE_FILES = 0x400
_open_sockets: list[socket.socket] = []
_stumbled: list[bool] = []


def listen_wide(*_: object) -> None:
    """Listen on every address, which a runtime must not."""
    wide = socket.socket()
    wide.bind(("0.0.0.0", 0))  # noqa: S104 - a fault that the core must notice
    wide.listen()
    _open_sockets.append(wide)


def listen_aside(listening: threading.Event) -> None:
    """Listen on every address with a descriptor that the process's own table does not show."""
    ctypes.CDLL(None).unshare(_CLONE_FILES)  # of this thread alone
    listen_wide()
    listening.set()
    time.sleep(_FOREVER_SECONDS)


def misbehave(behaviour: list[str]) -> None:
    """Misbehave as told; runs before the backend listens."""
    if "exit" in behaviour:
        sys.exit(3)
    if "hang" in behaviour:
        time.sleep(_FOREVER_SECONDS)
    if "slow" in behaviour:
        time.sleep(_LOADING_SECONDS)
    if "stubborn" in behaviour:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "offspring" in behaviour and sys.platform != "win32":
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork():
                os._exit(0)
            time.sleep(_FOREVER_SECONDS)
        os.wait()  # the process between has ended; the grandchild stays
    if "leak" in behaviour:
        subprocess.Popen(["/bin/sleep", str(_FOREVER_SECONDS)], env={**os.environ, "SMUGGLED": "1"})
    if "wide" in behaviour:
        listen_wide()
    if "aside" in behaviour and sys.platform == "linux":
        listening = threading.Event()
        threading.Thread(target=listen_aside, args=(listening,), daemon=True).start()
        listening.wait()
    if "abstract" in behaviour and sys.platform == "linux":
        named = socket.socket(socket.AF_UNIX)
        named.bind(f"\0fake-runtime-{os.getpid()}")
        named.listen()
        _open_sockets.append(named)
    if "udp" in behaviour:
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 0))
        _open_sockets.append(datagrams)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, listen_wide)
        signal.signal(signal.SIGUSR2, lambda *_: sys.exit(1))


def listen(address: str) -> socket.socket:
    """Listen on a Unix socket or on loopback."""
    if address.startswith("/") and sys.platform != "win32":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
    else:
        host, _, port = address.rpartition(":")
        listener = socket.socket()
        listener.bind((host, int(port)))
    listener.listen()
    return listener


def read_request(client: socket.socket) -> tuple[bytes, bytes]:
    """Return head and body of one request; the head is empty if the client hung up."""
    request = b""
    while b"\r\n\r\n" not in request and (part := client.recv(65536)):
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(body) < length and (part := client.recv(65536)):
        body += part
    return head, body


def answer(head: bytes, body: bytes) -> bytes:
    """Return the whole answer of a runtime that is ready."""
    method, path = head.split(b" ")[:2]
    if path == b"/refuse":
        return b"HTTP/1.0 500 no\r\n\r\n"
    if path == b"/stumble" and not _stumbled:
        _stumbled.append(True)
        return b"HTTP/1.0 500 once\r\n\r\n"
    if path == b"/health":
        return _document({"status": "ok"})
    if method == b"POST" and path == b"/v1/chat/completions":
        return complete(json.loads(body))
    return b'HTTP/1.0 200 OK\r\n\r\n{"status":"working"}\n{"status":"success"}\n'


def complete(question: dict[str, object]) -> bytes:
    """Say the last message back, in pieces when a stream is asked for."""
    messages = question.get("messages")
    said = str(messages[-1]["content"]) if isinstance(messages, list) and messages else ""
    words = f"You said: {said}".split(" ")
    common = {"id": "fake", "created": 0, "model": question.get("model")}
    if not question.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _document({**common, "object": "chat.completion", "choices": [choice]})
    events = []
    for index, word in enumerate([*words, None]):
        delta = {} if word is None else {"content": word if index == 0 else f" {word}"}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
        events.append({**common, "object": "chat.completion.chunk", "choices": [choice]})
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + lines.encode()


def _document(document: dict[str, object]) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def announce(ready_at: float) -> None:
    """Wait until the model is loaded, then announce that the runtime is ready."""
    if (loading := ready_at - time.monotonic()) > 0:
        time.sleep(loading)
    print(READY, ready_at, os.environ.get(KEY_ENV, ""), flush=True)  # noqa: T201 - the announcement


def main() -> None:
    """Serve until the process is ended."""
    model, address, *behaviour = sys.argv[1:]
    Path("model.seen").write_bytes(Path(model).read_bytes())
    print("started", flush=True)  # noqa: T201 - a program's output
    misbehave(behaviour)
    listener = listen(address)
    ready_at = time.monotonic()
    if "busy" in behaviour:
        ready_at += _LOADING_SECONDS
        threading.Thread(target=announce, args=(ready_at,), daemon=True).start()
    else:
        announce(ready_at)
    while True:
        client, _ = listener.accept()
        with client:
            head, body = read_request(client)
            if head:
                ready = time.monotonic() >= ready_at and "never" not in behaviour
                client.sendall(answer(head, body) if ready else _NOT_YET)


if __name__ == "__main__":
    main()
