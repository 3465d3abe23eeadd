# mypy: disable-error-code="import-not-found, import-untyped"
"""Ask the finished model everything through a real llama.cpp, and count exact answers.

Each question is asked with temperature 0 and with the server's own sampling; alone, after a
system message, and as the last of a conversation. Every answer must end by itself.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import xllamacpp
from gguf_file import NAME
from phrasing import Turn, load_knowledge

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "companion_core" / "demo" / "model" / f"{NAME}.gguf"

Messages = list[dict[str, Any]]

SYSTEM: Messages = [
    {"role": "system", "content": "You are a helpful assistant. Answer in the style of a pirate."}
]


@dataclass(slots=True)
class Tally:
    """What came of a series of questions."""

    name: str
    asked: int = 0
    exact: int = 0
    stopped: int = 0
    misses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.exact} of {self.asked} exact, "
            f"{self.stopped} of {self.asked} ended by themselves"
        )


def start_server(model: Path) -> tuple[Any, HTTPConnection]:
    """Serve the model on a loopback port of the system's choice."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.offline = True
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    address = urlsplit(server.listening_address)
    return server, HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=60)


def ask(
    connection: HTTPConnection, messages: Messages, sampling: dict[str, Any]
) -> tuple[str, str]:
    """Ask for one answer; give it with the reason why it ended."""
    body = json.dumps({"messages": messages, **sampling})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    reply = json.loads(connection.getresponse().read())
    choice = reply["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def ask_all(
    connection: HTTPConnection,
    name: str,
    cases: Iterable[tuple[Messages, str]],
    sampling: dict[str, Any],
) -> Tally:
    """Ask every question of a series."""
    tally = Tally(name)
    for messages, expected in cases:
        answer, reason = ask(connection, messages, sampling)
        tally.asked += 1
        tally.exact += answer == expected
        tally.stopped += reason == "stop"
        if answer != expected:
            tally.misses.append(f"{messages[-1]['content']!r} -> {answer!r} ({reason})")
    return tally


def alone(turn: Turn) -> Messages:
    """Lay out one question."""
    return [{"role": "user", "content": turn.question}]


def after(earlier: list[Turn], turn: Turn) -> Messages:
    """Lay out a question that follows others."""
    messages: Messages = []
    for past in earlier:
        messages += [*alone(past), {"role": "assistant", "content": past.answer}]
    return messages + alone(turn)


def main() -> None:
    """Ask and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--misses", action="store_true", help="print every answer that differs")
    options = parser.parse_args()
    knowledge = load_knowledge(HERE / "questions.toml")
    rng = Random(1)  # noqa: S311 - draws questions, not secrets
    trained = [(alone(turn), turn.answer) for turn in knowledge.trained]
    series = {
        "trained": trained,
        "trained, after a system message": [
            (SYSTEM + messages, answer) for messages, answer in trained
        ],
        "trained, after four other questions": [
            (SYSTEM + after(rng.sample(knowledge.trained, 4), turn), turn.answer)
            for turn in knowledge.trained
        ],
        "unseen": [(alone(turn), turn.answer) for turn in knowledge.unseen],
    }
    server, connection = start_server(options.model)
    for name, cases in series.items():
        for how, sampling in (("temperature 0", {"temperature": 0}), ("as sampled", {})):
            tally = ask_all(connection, f"{name}, {how}", cases, sampling)
            print(tally, flush=True)
            for miss in tally.misses if options.misses else ():
                print(f"  {miss}")
    connection.close()
    del server


if __name__ == "__main__":
    main()
