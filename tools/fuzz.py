"""Fuzz the gateway's parsers with coverage feedback; stops at the first crash or difference.

python tools/fuzz.py [SECONDS]     for each parser, by default 60; needs atheris
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
with atheris.instrument_imports(include=["companion_core.gateway", "companion_core.decisions"]):
    from parser_checks import check_body, check_chunks, check_head, check_response_head


def check_chunks_in_steps(raw: bytes) -> None:
    """Read the size of the segments from the first byte."""
    if raw:
        check_chunks(raw[1:], 1 + raw[0] % 9)


# A well-formed input for each: without one the fuzzer would first have to invent HTTP.
SEEDS = {
    check_head: b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"
    b"Authorization: Bearer abc\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    b"Connection: keep-alive, close\r\nTransfer-Encoding: chunked\r\nSec-Fetch-Mode: cors",
    check_chunks_in_steps: b"\x035\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    check_body: b'{"model":"m","a":[1.5e3,{"b":null,"c":"\\u00e9"}],"A_":true}',
    check_response_head: b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close",
}


# Where atheris writes the input of a finding.
ARTIFACTS = str(Path(tempfile.gettempdir()) / "companion-fuzz-")


def main() -> None:
    """Give each parser a process of its own, because the fuzzer never returns."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    for check, seed in SEEDS.items():
        with tempfile.TemporaryDirectory() as corpus:
            Path(corpus, "seed").write_bytes(seed)
            options = [
                f"-max_total_time={seconds}",
                "-max_len=600",
                f"-artifact_prefix={ARTIFACTS}",
            ]
            child = os.fork()
            if child == 0:
                atheris.Setup([sys.argv[0], *options, "-verbosity=0", corpus], check)
                atheris.Fuzz()
            _, status = os.waitpid(child, 0)
        print(f"{check.__name__}: {'a finding, see above' if status else 'no finding'}", flush=True)
        if status:
            sys.exit(1)


if __name__ == "__main__":
    main()
