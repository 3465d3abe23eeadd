"""One client of the gateway, on plain HTTP/1.1, that tells exactly what became of a request.

An answer is whole only when its framing is complete and, for a stream, its last event is `[DONE]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Answer", "Asker", "Leave", "NoAnswer"]

_PATH: Final = "/v1/chat/completions"
_LONGEST_HEAD: Final = 1 << 20
OK: Final = 200


class NoAnswer(Exception):
    """The connection ended, or fell silent, before the answer was whole; says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, whole.

    Attributes:
        status: of HTTP.
        code: the reason of a refusal; empty for an answer.
        retry_after: seconds, as the gateway asks; None where it does not.
        text: of the model.
        tokens: that the model is said to have made; None where it is not said.
    """

    status: int
    code: str = ""
    retry_after: float | None = None
    text: str = ""
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """When a client leaves by itself: so many seconds after it has sent its request.

    Attributes:
        seconds: see above.
        begun: these count from the first byte of the answer on.
    """

    seconds: float
    begun: bool = False


class Asker:
    """A client with one connection, which is kept as long as the gateway keeps it.

    Args:
        port: of the gateway.
        token: of the session.
        silence: seconds without a byte after which an answer counts as lost.
    """

    def __init__(self, port: int, token: str, *, silence: float = 60.0) -> None:
        self._port = port
        self._token = token
        self._silence = silence
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: dict[str, Any], leave: Leave | None = None) -> Answer | None:
        """Send one request; return its answer, or None for a client that left by itself.

        Raises:
            NoAnswer: it is not whole.
        """
        payload = json.dumps(body).encode()
        head = f"POST {_PATH} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        head += f"Authorization: Bearer {self._token}\r\nContent-Type: application/json\r\n"
        return await self._exchange(f"{head}Content-Length: {len(payload)}\r\n\r\n", payload, leave)

    async def models(self) -> list[str]:
        """Return the ids in `GET /v1/models`.

        Raises:
            NoAnswer: it is not whole, or a refusal.
        """
        head = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        answer = await self._exchange(
            f"{head}Authorization: Bearer {self._token}\r\n\r\n", b"", None
        )
        if answer is None or answer.status != OK:
            raise NoAnswer("no list of models")
        return [each["id"] for each in json.loads(answer.text)["data"]]

    async def close(self) -> None:
        """Hang up."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, head: str, payload: bytes, leave: Leave | None) -> Answer | None:
        whole = False
        try:
            if self._writer is None or self._reader is None:
                self._reader, self._writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, limit=_LONGEST_HEAD
                )
            self._writer.write(head.encode() + payload)
            if leave is not None and not leave.begun:
                await asyncio.sleep(leave.seconds)
                return None
            async with asyncio.timeout(self._silence):
                raw = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if leave is not None:
                await asyncio.sleep(leave.seconds)
                return None
            answer = await self._read_answer(raw, self._reader)
            whole = "connection: close" not in raw.lower()
        except TimeoutError as error:
            raise NoAnswer("silence") from error
        except asyncio.IncompleteReadError as error:
            raise NoAnswer("cut off") from error
        except OSError as error:
            raise NoAnswer(type(error).__name__) from error
        finally:
            if not whole:
                await self.close()
        return answer

    async def _read_answer(self, raw: str, reader: asyncio.StreamReader) -> Answer:
        status = int(raw.split(" ", 2)[1])
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in raw.split("\r\n")[1:])
        }
        if "content-length" in fields:
            async with asyncio.timeout(self._silence):
                body = await reader.readexactly(int(fields["content-length"]))
        else:
            body = await self._read_chunks(reader)
        if status != OK:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                error = json.loads(body)["error"]
                again = fields.get("retry-after")
                code = str(error.get("code") or error.get("message"))
                return Answer(status, code, None if again is None else float(again))
            return Answer(status, "not from the gateway")
        if fields.get("content-type", "").startswith("text/event-stream"):
            return _read_events(body)
        document = json.loads(body)
        if "choices" not in document:
            return Answer(status, text=body.decode())
        tokens = document.get("usage", {}).get("completion_tokens")
        return Answer(status, text=document["choices"][0]["message"]["content"], tokens=tokens)

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while True:
            async with asyncio.timeout(self._silence):
                size = int(await reader.readuntil(b"\r\n"), 16)
                chunk = await reader.readexactly(size + 2)
            if size == 0:
                return bytes(body)
            body += chunk[:-2]


def _read_events(body: bytes) -> Answer:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1].strip() != b"[DONE]":
        raise NoAnswer("a stream without its last event")
    text = ""
    for event in events[:-1]:
        document = json.loads(event)
        if "error" in document:
            raise NoAnswer("an error inside the stream")
        for choice in document.get("choices", []):
            text += choice.get("delta", {}).get("content") or ""
    return Answer(OK, text=text)
