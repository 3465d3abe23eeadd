"""Read the questions and vary their wording, so that the model learns what is asked.

A sample is a conversation as a person would hold it: mostly one question, sometimes a few,
with other openings, synonyms, letter case, punctuation and typing mistakes.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

__all__ = ["Knowledge", "Turn", "load_knowledge"]

AS_WRITTEN = 0.35
"""The share of questions that are asked exactly as the file has them."""

INVENTED = 0.65
"""The share of unknown questions that are made from a frame and a topic."""

PREAMBLED = 0.1
"""The share of reworded questions that begin with a system prompt."""

LONG_ENOUGH_TO_MISTYPE = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the model has to know, and how people word it.

    Attributes:
        trained: Every question of the file with its answer.
        unseen: Wordings for measuring, which training never sees.
        unknown: The answer to any question that is not about the product.
        frames: Sentences with a gap, for invented questions that have the unknown answer.
        topics: Texts that fill the gap.
        openings: Texts that may precede a question.
        preambles: System prompts that may precede a question on a line of their own.
        alike: Rows of synonyms; the first of a row is the one that others replace.
    """

    trained: tuple[Turn, ...]
    unseen: tuple[Turn, ...]
    unknown: str
    frames: tuple[str, ...]
    topics: tuple[str, ...]
    openings: tuple[str, ...]
    preambles: tuple[str, ...]
    alike: tuple[tuple[str, ...], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer once, in the order of the file."""
        return tuple(dict.fromkeys(turn.answer for turn in self.trained))

    def draw(self, rng: Random) -> Turn:
        """Draw a question in some wording, with its answer."""
        turn = rng.choice(self.trained)
        if turn.answer == self.unknown and rng.random() < INVENTED:
            question = rng.choice(self.frames).format(rng.choice(self.topics))
            turn = Turn(question[0].upper() + question[1:], self.unknown)
        if rng.random() < AS_WRITTEN:
            return turn
        question = self._reword(turn.question, rng)
        if rng.random() < PREAMBLED:
            question = f"{rng.choice(self.preambles)}\n{question}"
        return Turn(question, turn.answer)

    def corpus(self, rng: Random, rounds: int) -> list[str]:
        """Give the texts a tokenizer is trained on: questions in many wordings, and answers."""
        questions = [self.draw(rng).question for _ in range(rounds * len(self.trained))]
        return questions + list(self.answers) * (2 * rounds)

    def _reword(self, question: str, rng: Random) -> str:
        for first, *others in rng.sample(self.alike, len(self.alike)):
            if first in question and rng.random() < 0.4:  # noqa: PLR2004 - a probability
                question = question.replace(first, rng.choice(others), 1)
                break
        if rng.random() < 0.3:  # noqa: PLR2004 - a probability
            question = rng.choice(self.openings) + question
        question = _recase(question, rng.random())
        question = _repunctuate(question, rng)
        if rng.random() < 0.12 and len(question) > LONG_ENOUGH_TO_MISTYPE:  # noqa: PLR2004 - a probability
            question = _mistype(question, rng)
        return question.strip()


def load_knowledge(path: Path) -> Knowledge:
    """Read the file of questions."""
    document = tomllib.loads(path.read_text("utf-8"))
    unknown, variation = document["unknown"], document["variation"]
    entries: list[dict[str, Any]] = [*document["answer"], unknown]
    return Knowledge(
        trained=_turns(entries, "asked"),
        unseen=_turns(entries, "unseen"),
        unknown=unknown["text"],
        frames=tuple(unknown["frames"]),
        topics=tuple(unknown["topics"]),
        openings=tuple(variation["openings"]),
        preambles=tuple(variation["preambles"]),
        alike=tuple(tuple(row) for row in variation["alike"]),
    )


def _turns(entries: list[dict[str, Any]], key: str) -> tuple[Turn, ...]:
    return tuple(Turn(question, entry["text"]) for entry in entries for question in entry[key])


def _recase(question: str, chance: float) -> str:
    if chance < 0.4:  # noqa: PLR2004 - people rarely bother with capitals
        return question.lower()
    if chance < 0.44:  # noqa: PLR2004 - and a few write nothing else
        return question.upper()
    return question


def _repunctuate(question: str, rng: Random) -> str:
    chance = rng.random()
    if chance < 0.4:  # noqa: PLR2004 - a probability
        return question.rstrip(".?!")
    if chance < 0.5:  # noqa: PLR2004 - a probability
        return question.rstrip(".?!") + rng.choice("?.!")
    return question


def _mistype(question: str, rng: Random) -> str:
    at = rng.randrange(1, len(question) - 1)
    if rng.random() < 0.5:  # noqa: PLR2004 - a letter is missing, or two have changed places
        return question[:at] + question[at + 1 :]
    return question[: at - 1] + question[at] + question[at - 1] + question[at + 1 :]
