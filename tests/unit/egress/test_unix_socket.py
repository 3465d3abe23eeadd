"""What the system says of a Unix socket's other end, told by a double."""

from __future__ import annotations

import errno
import struct
import sys
from typing import Any

import pytest

from companion_core.egress.unix_socket import listener_has_ended, peer_of

pytestmark = pytest.mark.security


class Double:
    """Answers getsockopt as told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def getsockopt(self, _level: int, option: int, _size: int = 0) -> Any:
        answer = self.answer[option] if isinstance(self.answer, dict) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_macos_tells_process_and_user(monkeypatch) -> None:
    raw = struct.pack("IIh16I", 0, 501, 1, *[20] * 16)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peer_of(Double({1: raw, 2: 4711})) == (4711, 501)
    assert peer_of(Double({1: b"", 2: 4711})) == (4711, -1)
    assert not listener_has_ended(Double(OSError(errno.EINVAL, "never asked")))
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert peer_of(Double({1: raw})) == (0, 501)


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERPIDFD")
def test_what_a_system_says_of_one_that_has_ended() -> None:
    for number in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
        assert listener_has_ended(Double(OSError(number, "")))
    assert not listener_has_ended(Double(OSError(errno.ENOPROTOOPT, "before 6.5")))
    with pytest.raises(OSError, match=r".*"):
        listener_has_ended(Double(OSError(errno.EMFILE, "")))
