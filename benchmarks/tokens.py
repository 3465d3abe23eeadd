"""Tokens a second through a companion at its defaults, beside the same llama.cpp started by hand.

    python benchmarks/tokens.py [--rounds N] [--words N] [--tokens N] [--model FILE]
                                [--set KEY=VALUE ...]

Not a test: numbers depend on the machine. Both servers are up at once and are asked in turn, one
request at a time, every other round in reverse order. The time is a client's: from before the
request is sent until the answer is there. A round's prompt is new, so that nothing of it is
remembered. The ratio is the median of the rounds' own ratios; it should be at least 0.97.

With COMPANION_TEST_LLAMA_SERVER naming a `llama-server`, both run that, else the library inside
the plugin's extra. `--set threads=1` sets a key of [runtime], to show what one of them does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
from pathlib import Path
from typing import Any, Final

from own_machine import Served, by_hand, machine, model_file

_WORDS: Final = ("river", "stone", "cloud", "forest", "harbour", "winter", "letter", "garden")


def prompt_of(number: int, count: int) -> str:
    """Return a text of so many words that begins otherwise for each number."""
    words = [f"{number}"]
    words += [_WORDS[(number * 7 + place * place) % len(_WORDS)] for place in range(count)]
    return " ".join(words)


def prompt_rate(served: Served, number: int, words: int) -> float:
    """Return how many tokens of a prompt are read in a second."""
    document, seconds = served.complete(prompt_of(number, words), 1)
    return float(document["usage"]["prompt_tokens"]) / seconds


def generation_rate(served: Served, number: int, tokens: int) -> float:
    """Return how many tokens are generated in a second, after a prompt of a few."""
    document, seconds = served.complete(f"{number} rivers are", tokens)
    return float(document["usage"]["completion_tokens"]) / seconds


MEASURES: Final = {"prompt": prompt_rate, "generation": generation_rate}


def measure(
    ours: Served, theirs: Served, rounds: int, amounts: dict[str, int]
) -> dict[str, list[tuple[float, float]]]:
    """Return, for each measure, both rates of every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MEASURES}
    for number in range(1000, 1001 + rounds):
        for name, rate in MEASURES.items():
            amount = amounts[name]
            if number % 2:
                first = rate(ours, number, amount)
                pair = (first, rate(theirs, number, amount))
            else:
                first = rate(theirs, number, amount)
                pair = (rate(ours, number, amount), first)
            if number > 1000:  # noqa: PLR2004 - the first round warms both up
                found[name].append(pair)
    return found


def runtime_keys(settings: list[str], program: Path | None) -> dict[str, Any]:
    """Return the keys of [runtime] for the companion."""
    keys: dict[str, Any] = {}
    if program is not None:
        digest = hashlib.sha256(program.resolve().read_bytes()).hexdigest()
        keys = {"binary": str(program), "binary_sha256": digest}
    for setting in settings:
        key, _, value = setting.partition("=")
        keys[key] = json.loads(value)
    return keys


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--words", type=int, default=600, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=96, help="that are generated")
    parser.add_argument("--model", type=Path, default=model_file())
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    named = os.environ.get("COMPANION_TEST_LLAMA_SERVER")
    program = None if named is None else Path(named)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(machine(chosen.model))
        ours.configure(runtime_keys(chosen.set, program))
        status, _ = ours.up()
        theirs, _ = stack.enter_context(by_hand(chosen.model, program))
        amounts = {"prompt": chosen.words, "generation": chosen.tokens}
        found = measure(ours.client(status), theirs, chosen.rounds, amounts)
    print("| tokens a second | companion | by hand | ratio |")
    print("|---|---|---|---|")
    for name, pairs in found.items():
        mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(first / second for first, second in pairs)
        print(f"| {name} | {mine:.1f} | {other:.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
