"""An answer as it comes over the wire: OpenAI's streaming form, and its errors. No I/O."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from companion_core.control.client import known_reason
from companion_core.errors import REASONS, CompanionError, Reason, error_for

__all__ = ["Answer", "OnText", "error_in", "read_answer"]

# Text, and whether the model only thinks it.
OnText = Callable[[str, bool], None]

_EVENT: Final = "data:"
_END: Final = "[DONE]"
_MOST_SHOWN: Final = 500  # letters of a backend's message


@dataclass(slots=True, kw_only=True)
class Answer:
    """What has come of an answer.

    Attributes:
        model: the id that answered.
        finish_reason: as the model's runtime says it; "" while it goes on.
        usage: tokens, as the runtime counts them; empty if it does not.
        seconds: from the first text to the last.
    """

    model: str
    parts: list[str] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """The answer without what the model only thought."""
        return "".join(self.parts)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the answer; None where nobody counted, or it is too short to say."""
        tokens = self.usage.get("completion_tokens", 0)
        return (tokens - 1) / self.seconds if tokens > 1 and self.seconds > 0 else None


def error_in(body: bytes | str) -> CompanionError:
    """Return the error that an answer other than 2xx says, or an event in the middle of one."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    match document:
        case {"error": {"code": str(code), "message": str(message)}}:
            reason = known_reason(code)
            if reason is Reason.CONTROL_UNAVAILABLE:  # no reason of ours
                reason = Reason.UPSTREAM_FAILED
            return error_for(reason, "" if message == REASONS[reason].advice else _plain(message))
        case {"error": {"message": str(message)}}:
            return error_for(Reason.UPSTREAM_FAILED, _plain(message))
    return error_for(Reason.UPSTREAM_FAILED)


def _plain(message: str) -> str:
    """Return a backend's words, of one line, for a person's terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in message)[:_MOST_SHOWN]


def read_answer(
    lines: Iterable[str],
    answer: Answer,
    on_text: OnText,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Take the events of an answer until it has ended.

    Raises:
        CompanionError: it broke off, or the backend failed in the middle of it.
    """
    began: float | None = None
    for line in lines:
        if not line.startswith(_EVENT):
            continue
        data = line[len(_EVENT) :].strip()
        if data == _END:
            return
        for text, thought in _take(data, answer):
            now = clock()
            began = now if began is None else began
            answer.seconds = now - began
            if not thought:
                answer.parts.append(text)
            on_text(text, thought)
    if not answer.finish_reason:
        raise error_for(Reason.UPSTREAM_FAILED, "the answer broke off")


def _take(data: str, answer: Answer) -> Iterator[tuple[str, bool]]:
    """Yield the texts of one event, and whether each is only a thought; note what else it says."""
    try:
        event = json.loads(data)
    except ValueError:
        raise error_for(Reason.UPSTREAM_FAILED, "the answer is not what was asked for") from None
    match event:
        case {"error": _}:
            raise error_in(data)
        case {"usage": dict(usage)}:
            answer.usage = {name: n for name, n in usage.items() if isinstance(n, int)}
    match event:
        case {"choices": [{**choice}, *_]}:
            if isinstance(ended := choice.get("finish_reason"), str):
                answer.finish_reason = ended
            match choice.get("delta"):
                case {**delta}:
                    for name, thought in (("reasoning_content", True), ("content", False)):
                        if isinstance(text := delta.get(name), str) and text:
                            yield text, thought
