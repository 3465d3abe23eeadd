"""One answer, or a conversation, on a person's terminal.

What a model writes is shown, and never obeyed: on a terminal its control characters do nothing.
Nothing of a conversation is kept on the disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from companion_core.cli import Settings, echo_result, explain, is_terminal
from companion_core.cli.answer_events import Answer, OnText
from companion_core.cli.chat_stream import Sampling, ask_model
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.system.harmless_text import harmless

__all__ = ["Talk", "prompt_of"]

PROMPT: Final = ">>> "
_MOST_PROMPT_BYTES: Final = 8 * 1024 * 1024  # as much as a request's body may have
_HELP: Final = (
    "/clear begins a new conversation; /exit or Ctrl-D leaves; Ctrl-C ends an answer.\n"
    'A text of several lines stands between two lines of """.'
)
_BLOCK: Final = '"""'


def prompt_of(given: str | None) -> str | None:
    """Return what is asked: the argument, or what stands on stdin; None where a person types.

    Raises:
        UsageError: stdin holds no text, or too much of it.
    """
    if given is not None and given != "-":
        if not given.strip():
            raise UsageError(Reason.USAGE, "the prompt is empty")
        return given
    if given is None and is_terminal(sys.stdin):
        return None
    raw = b"" if sys.stdin is None else sys.stdin.buffer.read(_MOST_PROMPT_BYTES + 1)
    if len(raw) > _MOST_PROMPT_BYTES:
        raise UsageError(Reason.USAGE, "the prompt on stdin is longer than 8 MiB")
    text = raw.decode("utf-8", errors="replace")
    if not text.strip():
        raise UsageError(Reason.USAGE, "name a prompt, or write one to stdin")
    return text


class Talk:
    """A conversation with the running model.

    Args:
        settings: say which companion.
        sampling: what the person set about answers.
        system: what the model is told before everything else.
        model_id: the model to ask; None for the one that is served.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sampling: Sampling,
        system: str | None = None,
        model_id: str | None = None,
    ) -> None:
        self._settings = settings
        self._sampling = sampling
        self._system = [{"role": "system", "content": system}] if system else []
        self._said: list[dict[str, str]] = []  # in turns: the person's, the model's
        self._model_id = model_id
        self._printer = _AnswerPrinter()

    def answer_once(self, prompt: str, *, as_json: bool) -> None:
        """Print one answer.

        Raises:
            CompanionError: why there is none.
            KeyboardInterrupt: the person stopped it.
        """
        said = [*self._system, _said_by_person(prompt)]
        if as_json:
            answer = self._ask(said, lambda _text, _thought: None)
            rate = answer.tokens_per_second
            document: dict[str, Any] = {
                "model": answer.model,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": answer.usage,
                "tokens_per_second": None if rate is None else round(rate, 1),
            }
            echo_result(document, "", as_json=True)
            return
        with self._printer.one_answer():
            self._ask(said, self._printer)

    def converse(self) -> None:
        """Ask and answer until the person leaves. Errors are told, and the conversation goes on.

        Raises:
            CompanionError: nothing runs any more.
        """
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - gives `input` its editing; not on Windows
        while (prompt := _next_prompt()) is not None:
            match prompt.strip():
                case "":
                    continue
                case "/exit" | "/bye" | "/quit":
                    return
                case "/clear":
                    self._said.clear()
                case command if command.startswith("/") and " " not in command:
                    click.echo(_HELP, err=True)
                case _:
                    self._exchange(prompt)

    def _exchange(self, prompt: str) -> None:
        """Ask, and remember both sides; what came of a stopped answer is remembered too."""
        heard: list[str] = []

        def hear(text: str, thought: bool) -> None:
            if not thought:
                heard.append(text)
            self._printer(text, thought)

        self._said.append(_said_by_person(prompt))
        try:
            with self._printer.one_answer():
                self._ask_within_context(hear)
        except KeyboardInterrupt:
            pass
        except CompanionError as error:
            if error.reason is Reason.NOT_RUNNING:
                raise
            if told := explain(error):
                click.echo(f"companion: {told}", err=True)
            click.echo(f"companion: {error.reason.value}: {error.advice}", err=True)
        if heard:
            self._said.append({"role": "assistant", "content": "".join(heard)})
        else:
            self._said.pop()  # as if it had not been asked

    def _ask_within_context(self, hear: OnText) -> None:
        """Ask; where the conversation is too long for the model, forget its oldest turn first."""
        while True:
            try:
                self._ask([*self._system, *self._said], hear)
            except CompanionError as error:
                if error.reason is not Reason.CONTEXT_LENGTH_EXCEEDED or len(self._said) == 1:
                    raise
            else:
                return
            del self._said[:2]
            click.echo("companion: the oldest turn is forgotten, to make room", err=True)

    def _ask(self, messages: list[dict[str, str]], on_text: OnText) -> Answer:
        return ask_model(self._settings, messages, self._sampling, on_text, model_id=self._model_id)


def _said_by_person(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _next_prompt() -> str | None:
    """Return what the person types; None once they leave."""
    stopped = False
    while True:
        try:
            line = input(PROMPT)
            return line if line.strip() != _BLOCK else _block()
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            click.echo(err=True)
            if stopped:
                return None
            stopped = True
            click.echo("companion: Ctrl-C again leaves", err=True)


def _block() -> str:
    lines = []
    while (line := input("... ")).strip() != _BLOCK:
        lines.append(line)
    return "\n".join(lines)


class _AnswerPrinter:
    """Prints an answer while it comes; on a terminal without what could drive it."""

    def __init__(self) -> None:
        self._terminal = is_terminal(sys.stdout)
        self._thinks = False
        self._at_line_start = True

    @contextlib.contextmanager
    def one_answer(self) -> Iterator[None]:
        """End the answer's last line, however it ends."""
        self._thinks, self._at_line_start = False, True
        try:
            yield
        finally:
            if not self._at_line_start:
                click.echo()

    def __call__(self, text: str, thought: bool) -> None:
        """Print some more of it."""
        if thought:
            if not self._terminal:
                return
            shown = harmless(text)
            if not os.environ.get("NO_COLOR"):
                shown = click.style(shown, dim=True)
        else:
            shown = harmless(text) if self._terminal else text
        if self._thinks and not thought:
            shown = f"\n\n{shown.lstrip()}"
        self._thinks = thought
        self._at_line_start = text.endswith("\n")
        click.echo(shown, nl=False, color=True)  # what goes to a file is the answer as it came
