"""Rules for this file: what a backend is asked to count before a request that it might cut.

Some backends silently cut what is longer than their context. None of them says beforehand how
many tokens a text has, but each says of an answer how many it read. So a request that may be too
long is preceded by one that has all its text in one piece, which no backend drops, and asks for
one token; where a backend keeps what it has read, that is no work done twice. A request that has
fewer bytes than the context has tokens needs none: a token has one byte or more. No I/O.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from companion_core.gateway.http.chunked import ChunkFramer
from companion_core.gateway.http.response_head import ResponseHead

__all__ = ["CountedAnswer", "counting_fields", "may_be_cut"]

# What a chat template may add beyond the bytes that roles and names take in the request.
_TEMPLATE_TOKENS: Final = 256
_MOST_KEPT: Final = 4096
_FIRST_ERROR: Final = 400
_FIRST_OWN_ERROR: Final = 500
_NO_TEXT: Final = frozenset({"role", "type", "image_url", "input_audio"})
_TOKENS: Final = re.compile(rb'"prompt_tokens": ?([0-9]{1,9})')


def may_be_cut(size: int, cuts_at: int) -> bool:
    """Tell whether a body of `size` bytes may have as many tokens as the backend cuts at."""
    return size + _TEMPLATE_TOKENS > cuts_at


def counting_fields(fields: dict[str, Any], cuts_at: int) -> list[dict[str, Any]]:
    """Return the fields of the requests that have the backend count this one's text."""
    if "messages" in fields:
        text = _conversation(fields["messages"], fields.get("tools"))
        return [{"messages": [{"role": "user", "content": text}], "max_tokens": 1}]
    name = "input" if "input" in fields else "prompt"
    given = fields.get(name)
    texts = given if isinstance(given, list) else [given]
    one = {} if name == "input" else {"max_tokens": 1}
    return [
        {name: text, **one}
        for text in texts
        if isinstance(text, str) and may_be_cut(len(text.encode(errors="replace")), cuts_at)
    ]


def _conversation(messages: Any, tools: Any) -> str:
    """Return all text of a conversation; a single message's as it will be read again."""
    texts = _texts(messages)
    if isinstance(messages, list):
        # About what a template writes around each further message.
        texts += ["message of a role"] * (len(messages) - 1)
    if tools:
        texts.append(json.dumps(tools))
    return "\n".join(texts)


def _texts(value: Any) -> list[str]:
    """Return every text in it, but no image or sound: those take tokens of another kind."""
    texts: list[str] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, list):
            waiting += reversed(one)
        elif isinstance(one, dict):
            waiting += [one[name] for name in reversed(one) if name not in _NO_TEXT]
    return texts


class CountedAnswer:
    """The answer to a request that only counts; its end says what was read.

    Attributes:
        failed: the backend refused it, as it will refuse the request itself. A failure of its own
            says nothing of that: the request might be taken, and cut.
    """

    __slots__ = ("_framer", "_text", "failed")

    def __init__(self) -> None:
        self._framer: ChunkFramer | None = None
        self._text = b""
        self.failed = False

    def begin(self, head: ResponseHead, body: bytes) -> None:
        """Take the head and what has come with it."""
        self._framer = ChunkFramer(collect=True) if head.chunked else None
        self.failed = _FIRST_ERROR <= head.status < _FIRST_OWN_ERROR
        self.feed(body)

    def feed(self, data: bytes) -> None:
        """Take more of it, of which only the end is kept."""
        if self._framer is not None:
            self._framer.feed(data)
            data = bytes(self._framer.payload)
            self._framer.payload.clear()
        self._text = (self._text + data)[-_MOST_KEPT:]

    def tokens(self) -> int | None:
        """Return how many tokens the backend read; None where it does not say."""
        found = _TOKENS.search(self._text)
        return None if found is None else int(found[1])
