"""`companion run` and `companion chat` with a real llama.cpp: on a terminal and from a script."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_parts import within

from companion_core.errors import Reason

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

UNLOCKED_KEYRING = Path(__file__).parents[1] / "support" / "unlocked_keyring.py"
SMOLLM2 = Path(__file__).parents[2] / ".venv" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ASKED = "How do I stop it?"
ANSWERED = "companion down"


@pytest.fixture
def me(world: Any) -> Any:
    """A person without a keychain and without a publisher, who has a GGUF file."""
    world.file = world.folder / "small.gguf"
    world.file.write_bytes(world.content)
    world.config_file.write_text(
        "[runtime]\nthreads = 1\n[keychain]\nname = 'memory'\n"
        f"[models]\nkey_file = '{world.folder / 'own.pem'}'\n"
    )
    return world


class Terminal:
    """A person's terminal with one command in it."""

    def __init__(self, argv: list[str]) -> None:
        self.primary, secondary = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "CI": "1"},
            preexec_fn=lambda: _control(secondary),  # noqa: PLW1509 - the child has one thread
        )
        os.close(secondary)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.primary, text.encode())

    def interrupt(self, shown: str) -> str:
        """Press Ctrl-C until `shown` appears: one in the moment of a new prompt is not seen there.

        Python's readline looks for signals before it waits for a key, and a signal in between the
        two is told with the next key.
        """
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.expect(shown, 3)
        return self.expect(shown, 3)

    def expect(self, text: str, seconds: float = 60) -> str:
        """Return what was shown up to `text`, and forget it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.primary], [], [], left)
            assert ready, f"{text!r} was not shown, but {self.shown!r}"
            try:
                self.shown += os.read(self.primary, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended with {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.primary)


def _control(terminal: int) -> None:
    import fcntl  # noqa: PLC0415 - does not exist on Windows
    import termios  # noqa: PLC0415 - the same

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(world: Any, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(world.argv(*arguments))
    try:
        yield opened
    finally:
        opened.close()


def test_a_file_becomes_an_answer_and_the_second_time_nothing_is_added_or_started(me: Any) -> None:
    first = me.companion("run", str(me.file), ASKED)
    assert first.returncode == 0, first.stderr
    assert ANSWERED in first.stdout
    assert "small is recorded in your name" in first.stderr
    assert "companion down ends it" in first.stderr
    pid = me.status()["pid"]

    second = me.companion("run", str(me.file), ASKED, "--json")
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    answer = json.loads(second.stdout)
    assert (answer["model"], answer["finish_reason"]) == ("small", "stop")
    assert ANSWERED in answer["answer"]
    assert answer["usage"]["completion_tokens"] > 1
    assert answer["tokens_per_second"] > 0
    by_id = me.companion("run", "small", "-", input=ASKED)
    assert by_id.stdout == first.stdout
    assert me.status()["pid"] == pid


def test_another_model_takes_the_place_of_the_one_that_runs(me: Any) -> None:
    assert me.companion("run", str(me.file), ASKED).returncode == 0
    token = me.companion("token").stdout
    other = me.companion("run", str(me.file), ASKED, "--id", "other")
    assert other.returncode == 0, other.stderr
    assert "it changes from small to other" in other.stderr
    assert ANSWERED in other.stdout
    assert me.status()["model"]["id"] == "other"
    assert me.companion("token").stdout == token


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "{folder}/none.gguf", "x"), 2, "is no file on this machine"),
        (("run", "{folder}", "x"), 2, "is a folder"),
        (("run", "{folder}/companion.toml", "x"), 3, "is no GGUF file"),
        (("run", "nothing", "x"), 3, "companion models add"),
        (("run", "{folder}/small.gguf", " "), 2, "the prompt is empty"),
        (("run", "{folder}/small.gguf"), 2, "name a prompt"),
        (("chat", "x"), 5, "companion up"),
    ],
)
def test_what_cannot_be_answered_is_refused_plainly_and_leaves_nothing_running(
    me: Any, arguments: tuple[str, ...], code: int, says: str
) -> None:
    named = [each.format(folder=me.folder) for each in arguments]
    done = me.companion(*named, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert me.processes() == []


def test_a_conversation_is_typed_on_a_terminal(me: Any) -> None:
    with terminal(me, "run", str(me.file)) as typed:
        typed.expect("small listens")
        typed.expect(">>> ")
        typed.type(f"{ASKED}\n")
        assert ANSWERED in typed.expect(">>> ")
        typed.type('"""\n')
        typed.expect("... ")
        typed.type("How do I\n")
        typed.expect("... ")
        typed.type("stop it?\n")
        typed.expect("... ")
        typed.type('"""\n')
        assert "`" in typed.expect(">>> ")
        typed.type("/what\n")
        typed.expect("/clear begins a new conversation")
        typed.expect(">>> ")
        typed.interrupt("Ctrl-C again leaves")
        typed.expect(">>> ")
        typed.type("\x04")
        assert typed.process.wait(30) == 0
    assert me.status()["available"] is True


@pytest.fixture
def real_model(require_real: Callable[[str, bool], None]) -> Path:
    require_real("SmolLM2-135M (make .venv/.models)", SMOLLM2.exists())
    return SMOLLM2


def test_an_answer_that_is_stopped_frees_the_model_and_the_conversation_goes_on(
    me: Any, real_model: Path
) -> None:
    with terminal(me, "run", str(real_model), "--id", "smol", "--temperature", "0") as typed:
        typed.expect(">>> ")
        typed.type("Tell me a very long story about a river.\n")
        typed.expect("river.")  # the terminal's echo
        typed.expect(" the ")
        typed.type("\x03")
        typed.expect(">>> ")
        assert within(lambda: me.status()["admission"]["in_flight"] == 0, 5)
        typed.type("/exit\n")
        assert typed.process.wait(30) == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A home as short as a person's: the sockets below it have paths of at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="h-") as folder:
        yield Path(folder)


def test_a_real_model_answers_without_a_file_of_configuration_by_a_key_in_the_keyring(
    home: Path, real_model: Path, require_real: Callable[[str, bool], None]
) -> None:
    tools = ("gnome-keyring-daemon", "dbus-run-session")
    require_real("gnome-keyring", all(map(shutil.which, tools)))
    (home / "run").mkdir(mode=0o700)
    companion = f"'{sys.executable}' -m companion_core"
    ask = f"{companion} run '{real_model}' 'Name three rivers.' --temperature 0"
    done = subprocess.run(
        [
            *("dbus-run-session", "--", "sh", "-c"),
            f"'{sys.executable}' '{UNLOCKED_KEYRING}' password && {ask} && {ask} --json; "
            f"code=$?; {companion} status --json; {companion} down; exit $code",
        ],
        env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text, second, status = done.stdout.rsplit("\n", 4)[:3]
    assert json.loads(second)["answer"] in text
    assert json.loads(status)["model"]["vouched_by"] == "you"
    assert json.loads(status)["plugins"]["keychain"] == "linux"
    assert done.stderr.count("is recorded in your name") == 1


def test_a_model_that_is_not_served_is_refused_in_the_gateways_words(me: Any) -> None:
    assert me.companion("run", str(me.file), ASKED).returncode == 0
    done = me.companion("chat", ASKED, "--model", "other", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["reason"] == Reason.MODEL_NOT_SERVED
    long = me.companion("chat", "-", input="word " * 20_000)
    assert long.returncode == 3
    assert Reason.CONTEXT_LENGTH_EXCEEDED in long.stderr
    assert "tokens" in long.stderr
