from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.oauth import read_callback
from companion_core.decisions.oauth.callback import MAX_HEAD_BYTES

pytestmark = pytest.mark.unit

HOST = "127.0.0.1:49152"
RIGHT = b"GET /callback?code=a&state=b HTTP/1.1\r\nHost: 127.0.0.1:49152\r\nAccept: */*"


def status(head: bytes) -> int:
    seen = read_callback(head, host=HOST, path="/callback")
    assert seen.params is None
    return seen.status


def test_the_browsers_own_request_is_read() -> None:
    seen = read_callback(RIGHT, host=HOST, path="/callback")
    assert seen.params == {"code": "a", "state": "b"}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"GET", b"POST", 405),
        (b"GET", b"HEAD", 405),
        (b"GET", b"get", 400),
        (b"GET ", b"GET  ", 400),
        (b"/callback?", b"/Callback?", 404),
        (b"/callback?", b"/callback/?", 404),
        (b"/callback?", b"//callback?", 404),
        (b"/callback?", b"/%63allback?", 404),
        (b"/callback?", b"http://127.0.0.1:49152/callback?", 400),
        (b"code=a", b"code=a&code=b", 400),
        (b"code=a", b"code=a#x", 400),
        (b"code=a&state=b", b"", 400),
        (b"?code=a&state=b", b"", 400),
        (b"HTTP/1.1", b"HTTP/2.0", 400),
        (b"HTTP/1.1", b"", 400),
        (b"127.0.0.1", b"localhost", 403),
        (b"127.0.0.1", b"evil.example", 403),
        (b":49152\r\n", b"\r\n", 403),
        (b"Host: 127.0.0.1:49152\r\n", b"", 400),
        (b"Host:", b"Host: 127.0.0.1:49152\r\nHost:", 400),
        (b"Host:", b"Host :", 400),
        (b"Accept: */*", b"Content-Length: 3", 400),
        (b"Accept: */*", b"Transfer-Encoding: chunked", 400),
        (b"Accept: */*", b"nonsense", 400),
        (b"Accept: */*", b"Accept: a\r\n folded", 400),
        (b"Accept: */*", b"Accept: a\nHost: x", 400),
        (b"Accept: */*", b"Accept: " + b"x" * MAX_HEAD_BYTES, 400),
    ],
)
def test_any_other_request_gets_a_status(old: bytes, new: bytes, code: int) -> None:
    assert old in RIGHT
    assert status(RIGHT.replace(old, new, 1)) == code


def test_a_query_with_two_readings_is_told_from_a_stray() -> None:
    doubled = RIGHT.replace(b"code=a", b"code=a&code=b")
    assert read_callback(doubled, host=HOST, path="/callback").malformed
    assert not read_callback(b"GET / HTTP/1.1", host=HOST, path="/callback").malformed


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(head: bytes) -> None:
    assert read_callback(head, host=HOST, path="/callback").status in {400, 403, 404, 405}


def test_only_bytes_are_read() -> None:
    assert read_callback("GET", host=HOST, path="/callback").params is None
    assert read_callback(RIGHT, host=None, path="/callback").params is None
