"""A byte-pair tokenizer with the semantics of llama.cpp's `llama` vocabulary.

Pieces are merged best score first, leftmost first on a tie; a character without a piece is
spelled in bytes. No piece spans a space or mixes letters with punctuation, so a question
reads the same with and without its question mark.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CONTROL_TOKENS", "Tokenizer", "train_tokenizer"]

CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
UNKNOWN, BEGIN, END, USER, ASSISTANT = range(len(CONTROL_TOKENS))
BYTE_TOKENS = tuple(f"<0x{value:02X}>" for value in range(256))
SPACE = "\u2581"
PRINTABLE = tuple(chr(code) for code in range(33, 127))

_PIECES = re.compile(f"{SPACE}?[A-Za-z]+|.", re.DOTALL)


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: control tokens, bytes, characters, then merges in order of their rank.

    Attributes:
        characters: The single characters that have a token of their own.
        merges: The longer pieces, the most frequent first.
    """

    characters: tuple[str, ...]
    merges: tuple[str, ...]
    _seen: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every token; its index is its number."""
        return (*CONTROL_TOKENS, *BYTE_TOKENS, *self.characters, *self.merges)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each token."""
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each merge: the lowest is merged first."""
        return {piece: rank for rank, piece in enumerate(self.merges)}

    @property
    def scores(self) -> list[float]:
        """What llama.cpp sorts merges by: the highest is merged first."""
        fixed = len(CONTROL_TOKENS) + len(BYTE_TOKENS)
        never = -1e4
        return [
            *([0.0] * fixed),
            *([never] * len(self.characters)),
            *(-float(rank) for rank in range(len(self.merges))),
        ]

    def encode(self, text: str) -> list[int]:
        """Turn text into token numbers. Control tokens in the text are plain characters."""
        numbers: list[int] = []
        for piece in _PIECES.findall(text.replace(" ", SPACE)):
            if piece not in self._seen:
                self._seen[piece] = tuple(self._encode_piece(piece))
            numbers.extend(self._seen[piece])
        return numbers

    def _encode_piece(self, piece: str) -> Iterable[int]:
        parts = list(piece)
        while True:
            ranked = [
                (self.ranks[left + right], at)
                for at, (left, right) in enumerate(pairwise(parts))
                if left + right in self.ranks
            ]
            if not ranked:
                break
            _, at = min(ranked)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        for part in parts:
            if part in self.numbers:
                yield self.numbers[part]
            else:
                yield from (self.numbers[BYTE_TOKENS[value]] for value in part.encode())


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Merge the most frequent neighbours until the vocabulary has `size` tokens."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_PIECES.findall(text.replace(" ", SPACE)))
    letters = {letter for word in words for letter in word if letter.isprintable()}
    characters = tuple(sorted(letters | {SPACE, *PRINTABLE}))
    room = size - len(CONTROL_TOKENS) - len(BYTE_TOKENS) - len(characters)
    split = {word: list(word) for word in words}
    merges: dict[str, None] = {}
    while len(merges) < room:
        pairs: Counter[str] = Counter()
        for word, parts in split.items():
            for left, right in pairwise(parts):
                if left + right not in merges:
                    pairs[left + right] += words[word]
        best = max(pairs, key=lambda piece: (pairs[piece], piece))
        merges[best] = None
        for parts in split.values():
            _merge(parts, best)
    return Tokenizer(characters, tuple(merges))


def _merge(parts: list[str], piece: str) -> None:
    at = 0
    while at < len(parts) - 1:
        if parts[at] + parts[at + 1] == piece:
            parts[at : at + 2] = [piece]
        at += 1
