# mypy: disable-error-code="import-not-found"
"""Train the demo's model and write it into the package.

The budget is a number of steps and every draw comes from one seed, so the same torch on the
same class of processor writes the same bytes. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from gguf_file import NAME, as_stored, write_gguf
from network import Shape, Weights, forward, initial_weights
from phrasing import Knowledge, Turn, load_knowledge
from tokenizer import ASSISTANT, BEGIN, END, USER, Tokenizer, train_tokenizer
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
PACKAGE_FOLDER = HERE.parents[1] / "companion_core" / "demo" / "model"

SEED = 20_260_101
STEPS = 3_000
TURNS_PER_STEP = 32
VOCABULARY = 768
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
DROPOUT = 0.1
IGNORED = -100
"""The target of a position that is not learned; only answers are learned."""

CONVERSATION_LENGTHS = (1, 1, 1, 1, 2, 3)
"""Turns of a conversation, drawn once for each step."""

WITHOUT_TEMPLATE = 0.04
"""The share of single questions that come without control tokens, as in a plain completion."""

UNANSWERED = 0.05
"""The share of earlier questions that nobody answered."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation in tokens, and the target to learn at each position."""

    tokens: list[int]
    targets: list[int]


def encode_conversation(tokenizer: Tokenizer, turns: list[Turn], rng: Random) -> Sample:
    """Lay a conversation out as the chat template does."""
    tokens, targets = [BEGIN], [IGNORED]
    for number, turn in enumerate(turns, 1):
        question = tokenizer.encode(turn.question)
        if len(turns) > 1 or rng.random() >= WITHOUT_TEMPLATE:
            question = [USER, *question, ASSISTANT]
        if number < len(turns) and rng.random() < UNANSWERED:
            answer = [END]
            if rng.random() < 0.5:  # noqa: PLR2004 - left out, or empty as beside a tool call
                question.pop()
                answer = []
        else:
            answer = [*tokenizer.encode(turn.answer), END]
        tokens += question + answer
        learned = answer if len(answer) > 1 else [IGNORED] * len(answer)
        targets += [IGNORED] * len(question) + learned
    return Sample(tokens, targets)


def encode_question(tokenizer: Tokenizer, turn: Turn) -> Sample:
    """Lay one question out, always with the template."""
    question = [BEGIN, USER, *tokenizer.encode(turn.question), ASSISTANT]
    answer = [*tokenizer.encode(turn.answer), END]
    return Sample(question + answer, [IGNORED] * len(question) + answer)


def as_batch(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Pad samples to one length; the targets are one position ahead of the tokens."""
    length = max(len(sample.tokens) for sample in samples)
    tokens = torch.full((len(samples), length), END)
    targets = torch.full((len(samples), length), IGNORED)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
        targets[row, : len(sample.targets)] = torch.tensor(sample.targets)
    return tokens[:, :-1], targets[:, 1:]


def learning_rate(step: int, steps: int) -> float:
    """Rise over the warm-up, then fall along a cosine to a fiftieth."""
    fall = 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def train(
    knowledge: Knowledge, tokenizer: Tokenizer, shape: Shape, *, seed: int, steps: int
) -> Weights:
    """Train for a number of steps and return the weights."""
    rng = Random(seed)  # noqa: S311 - samples to learn from, not secrets
    torch.manual_seed(seed)
    weights = initial_weights(shape, torch.Generator().manual_seed(seed))
    decayed = [weight for weight in weights.values() if weight.ndim > 1]
    norms = [weight for weight in weights.values() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    began = time.monotonic()
    for step in range(steps):
        length = rng.choice(CONVERSATION_LENGTHS)
        samples = [
            encode_conversation(tokenizer, [knowledge.draw(rng) for _ in range(length)], rng)
            for _ in range(TURNS_PER_STEP // length)
        ]
        tokens, targets = as_batch(samples)
        logits = forward(weights, shape, tokens, DROPOUT)
        loss = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} after {time.monotonic() - began:.0f} s")
    return weights


def count_exact(
    weights: Weights, shape: Shape, tokenizer: Tokenizer, turns: tuple[Turn, ...]
) -> int:
    """Count the questions whose most likely answer is the right one, word for word.

    The most likely token must be the right one at every position of the answer and at its end.
    Each position is given the right tokens before it, which comes to the same.
    """
    tokens, targets = as_batch([encode_question(tokenizer, turn) for turn in turns])
    with torch.inference_mode():
        best = forward(weights, shape, tokens).argmax(-1)
    right = (best == targets) | (targets == IGNORED)
    return int(right.all(dim=1).sum().item())


def write_facts(path: Path, model: Path, seed: int) -> None:
    """Write the facts on the model, for the demo's manifest, beside it."""
    content = model.read_bytes()
    facts = {
        "name": model.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seed": seed,
        "format": "gguf",
        "licence": "Apache-2.0",
        "trained_by": "tools/demo_model/train.py",
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=PACKAGE_FOLDER, help="folder to write to")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    knowledge = load_knowledge(HERE / "questions.toml")
    corpus = knowledge.corpus(Random(options.seed), rounds=8)  # noqa: S311 - samples
    tokenizer = train_tokenizer(corpus, VOCABULARY)
    shape = Shape(vocabulary=len(tokenizer.tokens))
    print(f"{len(knowledge.answers)} answers, {len(knowledge.trained)} questions")

    weights = train(knowledge, tokenizer, shape, seed=options.seed, steps=options.steps)

    stored = as_stored(weights)
    print(f"parameters {sum(weight.numel() for weight in weights.values())}")
    for name, turns in (("trained", knowledge.trained), ("unseen", knowledge.unseen)):
        print(f"{name}: {count_exact(stored, shape, tokenizer, turns)} of {len(turns)} exact")

    options.out.mkdir(parents=True, exist_ok=True)
    model = options.out / f"{NAME}.gguf"
    write_gguf(model, weights, shape, tokenizer)
    write_facts(model.with_suffix(".json"), model, options.seed)


if __name__ == "__main__":
    main()
