"""Start a companion that keeps running, and follow it until it is available.

It is a child in a session of its own, `companion up --announce-fd`, which reports its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import IO, Any, Final

from companion_core.cli import Settings
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.serving.step import OnStep, Step
from companion_core.system.bounded_log import open_log
from companion_core.system.interpreter import running_interpreter
from companion_core.system.lacks import lack_of, lacks_told
from companion_core.system.stop_signals import stop_signals_interrupt, stop_signals_wait

__all__ = ["start_detached"]

# -P: import nothing from the working folder, which is the instance's.
_SELF: Final = ("-P", "-m", "companion_core")


def start_detached(settings: Settings, model_id: str | None, on_step: OnStep) -> dict[str, Any]:
    """Return the status of a companion that was started now, once it is available. Blocks.

    Args:
        settings: say which instance.
        model_id: what it serves; None for the configured model.
        on_step: hears its steps.

    Raises:
        CompanionError: why it does not serve.
        KeyboardInterrupt: the person gave the start up; nothing of it runs.
    """
    if sys.platform == "win32":
        raise error_for(Reason.USAGE, "--detach is not for Windows: give it a window of its own")
    program = running_interpreter().program
    settings.paths.prepare()
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, encoding="utf-8") as pipe,
        _open_log(settings) as log,
        stop_signals_interrupt() as finish,
    ):
        child = None
        try:
            arguments = ["up", "--announce-fd", str(writing)]
            if model_id is not None:
                arguments += ["--model", model_id]
            with lacks_told(Reason.SPAWN_FAILED), stop_signals_wait():
                child = settings.egress.start_process(
                    [program, *_SELF, *settings.root_arguments(), *arguments],
                    env=os.environ,
                    cwd=str(settings.paths.folder),
                    stdout=log,
                    stderr=log,
                    pass_fds=[writing],
                )
            os.close(writing)
            status = _follow(pipe, on_step)
            finish()
        except KeyboardInterrupt:
            if child is not None:
                _interrupt(child)
            raise
    return status


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Make the child give up its start; a further interrupt makes it stop at once."""
    while child.poll() is None:
        child.terminate()
        with contextlib.suppress(KeyboardInterrupt):
            child.wait()


def _follow(pipe: IO[str], on_step: OnStep) -> dict[str, Any]:
    """Relay the child's steps; return its status, or raise the error that ended it."""
    for line in pipe:
        message = json.loads(line)
        if "step" in message:
            on_step(Step(**message["step"]))
        elif "available" in message:
            status: dict[str, Any] = message["available"]
            return status
        else:
            raise error_for(Reason(message["error"]), message["detail"])
    raise CompanionError(Reason.INTERNAL_FAULT)


def _open_log(settings: Settings) -> IO[bytes]:
    path = settings.paths.log
    try:
        return os.fdopen(open_log(path), "ab", buffering=0)
    except OSError as error:
        raise lack_of(error, path=path) from error
