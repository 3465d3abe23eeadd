"""What `companion run` and `companion chat` make of an answer, of an error and of a prompt."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from companion_core.cli import Settings, conversation
from companion_core.cli.answer_events import Answer, OnText, error_in, read_answer
from companion_core.cli.chat_stream import Sampling
from companion_core.cli.conversation import Talk, prompt_of
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import REASONS, CompanionError, Reason, UsageError, error_for


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}"


def said(text: str | None = None, ended: str | None = None, **delta: str) -> str:
    content = {} if text is None else {"content": text}
    return event(choices=[{"delta": {**content, **delta}, "finish_reason": ended}])


def read(*lines: str) -> tuple[Answer, list[tuple[str, bool]]]:
    answer, heard = Answer(model="tiny"), []
    ticks = iter(range(100))
    read_answer(lines, answer, lambda *text: heard.append(text), clock=lambda: float(next(ticks)))
    return answer, heard


def test_texts_thoughts_and_counts_are_taken_from_the_events() -> None:
    usage = {"completion_tokens": 5, "prompt_tokens": 3, "details": {"cached": 1}}
    answer, heard = read(
        ": a comment of the server's",
        "",
        event(choices=[{"delta": {"role": "assistant", "content": None}}]),
        said(reasoning_content="hm"),
        said("Two"),
        said(" words"),
        said("", "stop"),
        event(choices=[], usage=usage),
        "data: [DONE]",
        said("not heard any more"),
    )
    assert heard == [("hm", True), ("Two", False), (" words", False)]
    assert (answer.text, answer.finish_reason) == ("Two words", "stop")
    assert answer.usage == {"completion_tokens": 5, "prompt_tokens": 3}
    assert answer.tokens_per_second == 2.0


def test_a_rate_is_told_only_where_it_can_be_known() -> None:
    assert read(said("One", "stop"))[0].tokens_per_second is None


@pytest.mark.parametrize(
    "lines",
    [(), (said("half"),), ("data: {",), (event(error={"message": "no"}),), ("<html>",)],
)
def test_an_answer_that_does_not_end_well_is_an_error(lines: Sequence[str]) -> None:
    with pytest.raises(CompanionError) as raised:
        read(*lines)
    assert raised.value.reason is Reason.UPSTREAM_FAILED


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        ('{"error": {"code": "queue_full", "message": "Wait."}}', Reason.QUEUE_FULL, "Wait."),
        ('{"error": {"code": "of_theirs", "message": "A\\u001b[2J"}}', None, "A [2J"),
        ('{"error": {"code": 7, "message": "B"}}', None, "B"),
        ('{"error": "text"}', None, ""),
        ("<html>", None, ""),
        ("", None, ""),
    ],
)
def test_an_error_is_told_in_its_own_words_and_drives_no_terminal(
    body: str, reason: Reason | None, detail: str
) -> None:
    error = error_in(body)
    assert error.reason is (reason or Reason.UPSTREAM_FAILED)
    assert error.detail == detail


def test_words_that_are_the_advice_are_not_said_twice() -> None:
    advice = REASONS[Reason.QUEUE_FULL].advice
    assert error_in(json.dumps({"error": {"code": "queue_full", "message": advice}})).detail == ""


# --- the prompt ---


def test_a_prompt_is_the_argument_or_what_stands_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompt_of("Hello") == "Hello"
    for given in (None, "-"):
        stdin = io.TextIOWrapper(io.BytesIO(b"from a file \xff\n"))
        monkeypatch.setattr("sys.stdin", stdin)
        assert prompt_of(given) == "from a file \N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * (8 * 1024 * 1024 + 1)])
def test_no_prompt_and_one_that_is_too_long_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UsageError):
        prompt_of(None)


def test_without_any_stdin_a_prompt_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError):
        prompt_of(None)


# --- a conversation ---


class Typed:
    """A person who types, and a model whose answers are prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self._answers = list(answers)
        self._lines: list[Any] = []
        monkeypatch.setattr(conversation, "ask_model", self._answer)
        monkeypatch.setattr("builtins.input", self._next)

    def type(self, *lines: Any, system: str | None = None) -> None:
        self._lines = list(lines)
        Talk(Settings(RefusingEgress()), sampling=Sampling(), system=system).converse()

    def _next(self, _prompt: str) -> str:
        line = self._lines.pop(0) if self._lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return str(line)

    def _answer(
        self,
        _settings: Settings,
        messages: Sequence[Any],
        _how: Sampling,
        on_text: OnText,
        **_: Any,
    ) -> Answer:
        self.asked.append(list(messages))
        answer = self._answers.pop(0)
        for part in answer if isinstance(answer, list) else [answer]:
            if isinstance(part, BaseException):
                raise part
            on_text(part, False)  # noqa: FBT003 - the listener's shape
        return Answer(model="tiny")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Typed]:
    return lambda *answers: Typed(monkeypatch, *answers)


def test_each_question_brings_the_conversation_along(typed: Any, capsys: Any) -> None:
    person = typed("One.", "Two.", "Three.")
    person.type("first", "", "second", "/clear", '"""', "third,", "on two lines", '"""', system="S")
    system = {"role": "system", "content": "S"}
    first = {"role": "user", "content": "first"}
    one = {"role": "assistant", "content": "One."}
    assert person.asked == [
        [system, first],
        [system, first, one, {"role": "user", "content": "second"}],
        [system, {"role": "user", "content": "third,\non two lines"}],
    ]
    assert capsys.readouterr().out == "One.\nTwo.\nThree.\n"


def test_the_oldest_turn_goes_where_the_context_is_too_short(typed: Any, capsys: Any) -> None:
    too_long = error_for(Reason.CONTEXT_LENGTH_EXCEEDED, "600 of 512")
    person = typed("One.", "Two.", too_long, "Three.")
    person.type("first", "second", "third")
    assert [m["content"] for m in person.asked[-1]] == ["second", "Two.", "third"]
    assert "the oldest turn is forgotten" in capsys.readouterr().err


def test_a_single_question_that_is_too_long_is_told_and_forgotten(typed: Any, capsys: Any) -> None:
    person = typed(error_for(Reason.CONTEXT_LENGTH_EXCEEDED, "600 of 512"), "Two.")
    person.type("long", "short")
    assert [m["content"] for m in person.asked[-1]] == ["short"]
    told = capsys.readouterr().err
    assert "600 of 512" in told
    assert f"companion: {Reason.CONTEXT_LENGTH_EXCEEDED}: " in told


def test_what_came_of_a_stopped_answer_is_remembered(typed: Any, capsys: Any) -> None:
    person = typed(["Half of", KeyboardInterrupt()], [KeyboardInterrupt()], "Three.")
    person.type("first", "second", "third")
    assert [m["content"] for m in person.asked[-1]] == ["first", "Half of", "third"]
    assert capsys.readouterr().out == "Half of\nThree.\n"


def test_a_companion_that_has_ended_ends_the_conversation(typed: Any) -> None:
    person = typed(error_for(Reason.NOT_RUNNING))
    with pytest.raises(CompanionError) as raised:
        person.type("first", "second")
    assert raised.value.reason is Reason.NOT_RUNNING
    assert len(person.asked) == 1


@pytest.mark.parametrize("leave", ["/exit", "/bye", "/quit"])
def test_a_person_leaves_by_a_word_or_by_two_interrupts(typed: Any, leave: str) -> None:
    person = typed("One.")
    person.type(KeyboardInterrupt(), "first", leave, "never")
    person.type(KeyboardInterrupt(), KeyboardInterrupt(), "never")
    assert len(person.asked) == 1


def test_on_a_terminal_an_answer_moves_nothing(
    typed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(conversation, "is_terminal", lambda _stream: True)
    hostile = "a\x1b[2J\x9b1m\r\x07\u202eb\tc\n"
    typed(hostile).type("first")
    mark = "\N{REPLACEMENT CHARACTER}"
    assert capsys.readouterr().out == f"a{mark}[2J{mark}1m{mark}{mark}{mark}b\tc\n"
    monkeypatch.setattr(conversation, "is_terminal", lambda _stream: False)
    typed(hostile).type("first")
    assert capsys.readouterr().out == hostile
