"""The server: a program of its own, started by the core under its keeper.

    python -I -m companion_runtime_mlx.server MODEL SOCKET SETTINGS

MODEL is one file of the model, and its folder holds the verified files alone; SOCKET is the path
to listen on; SETTINGS is a JSON object. It imports mlx_lm and the standard library only.
"""

from __future__ import annotations

import http.server
import importlib
import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_LINE = "companion-runtime-mlx: listening"
MAX_BODY_BYTES = 32 * 1024 * 1024


class Malformed(Exception):
    """The request is not in a form that this server answers."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last one's `finish` says why the answer ended."""

    text: str
    finish: str | None


class Model:
    """One loaded model; it makes one answer at a time."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.alias: str = settings["alias"]
        self._most_tokens: int = settings["max_tokens"]
        self._busy = threading.Lock()
        self._mlx: Any = importlib.import_module("mlx_lm")
        self._samplers: Any = importlib.import_module("mlx_lm.sample_utils")
        template = settings["chat_template"]
        tokenizer_config = {} if template is None else {"chat_template": template}
        self._model, self._tokenizer = self._mlx.load(
            str(folder), tokenizer_config=tokenizer_config
        )

    def answer(self, question: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield the answer in pieces.

        Raises:
            Malformed: before any piece is generated.
        """
        messages = question.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Malformed
        tokens = question.get("max_completion_tokens", question.get("max_tokens"))
        temperature, top_p = question.get("temperature", 1.0), question.get("top_p", 1.0)
        if tokens is None:
            tokens = self._most_tokens
        if type(tokens) is not int or not 0 < tokens <= self._most_tokens:
            raise Malformed
        if not all(type(number) in {int, float} for number in (temperature, top_p)):
            raise Malformed
        try:
            prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        except Exception as error:  # the model's template is a program and may raise anything
            raise Malformed from error
        sampler = self._samplers.make_sampler(temp=float(temperature), top_p=float(top_p))
        return self._pieces(prompt, tokens, sampler)

    def _pieces(self, prompt: Any, tokens: int, sampler: Any) -> Iterator[Piece]:
        with self._busy:
            for made in self._mlx.stream_generate(
                self._model, self._tokenizer, prompt, max_tokens=tokens, sampler=sampler
            ):
                yield Piece(made.text, made.finish_reason)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `GET /health` and `POST /v1/chat/completions`."""

    protocol_version = "HTTP/1.1"
    model: Model

    def do_GET(self) -> None:
        """Say that the model is loaded; the server does not listen before it is."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self) -> None:
        """Answer a question, whole or as a stream."""
        try:
            question = self._read()
            pieces = self.model.answer(question)
        except Malformed:
            self._send(400, {"error": "malformed question"})
            return
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": "not found"})
        elif question.get("stream"):
            self._stream(pieces)
        else:
            made = list(pieces)
            text = "".join(piece.text for piece in made)
            message = {"role": "assistant", "content": text}
            choice = {
                "index": 0,
                "message": message,
                "finish_reason": made[-1].finish if made else "stop",
            }
            self._send(200, self._around("chat.completion", choice))

    def _read(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise Malformed
        try:
            question = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Malformed from error
        if not isinstance(question, dict):
            raise Malformed
        return question

    def _around(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        common = {"id": "0", "created": 0, "model": self.model.alias}
        return {**common, "object": kind, "choices": [choice]}

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, pieces: Iterator[Piece]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            choice = {"index": 0, "delta": {"content": piece.text}, "finish_reason": piece.finish}
            self._event(json.dumps(self._around("chat.completion.chunk", choice)))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        """Print nothing: no prompt belongs in a log."""


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a socket that only its owner can open."""

    daemon_threads = True


def main() -> None:
    """Load the model, then listen; serve until the process is ended."""
    model_path, socket_path, settings = sys.argv[1:]
    model = Model(Path(model_path).parent, json.loads(settings))
    usual = os.umask(0o177)
    server = UnixServer(socket_path, type("Bound", (Handler,), {"model": model}))
    os.umask(usual)  # MLX needs to make folders while it answers
    print(READY_LINE, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
