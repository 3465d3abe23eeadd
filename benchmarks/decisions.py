"""Time the decisions that every request passes; prints a table of medians.

    python benchmarks/decisions.py

Not a test: numbers depend on the machine. The aim is about 1 µs for the guard on a parsed
head and about 2 µs for the whole decision; parsing a head takes about 4 µs.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable

from companion_core.decisions.guard import RateBudgets, guard_policy, verify_request
from companion_core.decisions.rate import RateWindow
from companion_core.decisions.request_gate import gate_request
from companion_core.decisions.verdict import OK
from companion_core.gateway.http.body import encode_body, parse_body
from companion_core.gateway.http.chunked import ChunkFramer
from companion_core.gateway.http.head import RequestHead, parse_head
from companion_core.gateway.queue import AdmissionQueue
from companion_core.system.secret import Secret

ROUNDS, CALLS = 15, 20_000
TOKEN = "a" * 43

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\n"
    b"Host: 127.0.0.1:40123\r\n"
    b"Accept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\n"
    b"Accept: application/json\r\n"
    b"Content-Type: application/json\r\n"
    b"User-Agent: OpenAI/Python 1.0\r\n"
    b"X-Stainless-Lang: python\r\n"
    b"X-Stainless-Async: false\r\n"
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
    b"Content-Length: 90"
)
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello there"}],"stream":true,"seed":1}'
EVENT = b"a6\r\n" + b"x" * 0xA6 + b"\r\n"


def median_microseconds(call: Callable[[], object]) -> float:
    """Return the median time of one call over all rounds."""
    rounds = timeit.repeat(call, number=CALLS, repeat=ROUNDS)
    return statistics.median(rounds) / CALLS * 1e6


def main() -> None:
    """Measure and print."""
    head = parse_head(HEAD)
    if not isinstance(head, RequestHead):
        raise SystemExit("the sample head was refused")
    policy = guard_policy(
        hosts=("127.0.0.1:40123", "localhost:40123", "[::1]:40123"),
        routes={"/v1/chat/completions": "POST", "/v1/models": "GET"},
        token=Secret(TOKEN),
    )
    budgets = RateBudgets(RateWindow.per_minute(10**9), RateWindow.per_minute(10**9))
    queue = AdmissionQueue(max_in_flight=2, queue_bound=16, deadline_seconds=30)
    fields = parse_body(BODY, "m")
    framer = ChunkFramer()
    clock = iter(range(10**9))

    def guard() -> object:
        return verify_request(
            head.method,
            head.path,
            head.headers,
            head.token,
            policy,
            budgets,
            float(next(clock)),
        )

    def decide() -> object:
        verdict = guard()
        return verdict, gate_request(OK, queue.arrival(), OK)

    def rewrite() -> object:
        assert isinstance(fields, dict)  # noqa: S101 - narrows the type of a constant sample
        return encode_body(fields, "s", frozenset({"cache"}))

    rows: tuple[tuple[str, Callable[[], object]], ...] = (
        ("parse a head of 10 fields", lambda: parse_head(HEAD)),
        ("guard on a parsed head", guard),
        ("guard, lifecycle, admission, resources", decide),
        ("parse a JSON body", lambda: parse_body(BODY, "m")),
        ("write it again", rewrite),
        ("follow one streamed event", lambda: framer.feed(EVENT)),
    )
    for name, call in rows:
        print(f"{name:40} {median_microseconds(call):6.2f} µs")


if __name__ == "__main__":
    main()
