"""The host of tests and of the demo, where the system has no thread left for a connection."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.tls_host import TlsHost

pytestmark = pytest.mark.integration

SECONDS = 5.0


def test_a_connection_without_a_thread_is_ended_and_the_host_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def refuse(_thread: threading.Thread) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    context = CertificateAuthority(tmp_path).server_context("127.0.0.1")
    with TlsHost(context, {}) as host:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with socket.create_connection(("127.0.0.1", host.port), SECONDS) as client:
            assert refused.wait(SECONDS)
            until = time.monotonic() + SECONDS
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            assert time.monotonic() < until
        monkeypatch.undo()
