"""`companion up`: start, and serve in the foreground or detached."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any, Final

import click

from companion_core.cli import Settings, echo_result, explain
from companion_core.cli.foreground import harden_process, run_event_loop, run_interruptible
from companion_core.cli.model_swap import swap_model
from companion_core.cli.progress import StepPrinter
from companion_core.cli.status_command import as_text
from companion_core.companion import Companion
from companion_core.config.reader import with_model
from companion_core.config.sections import Config
from companion_core.control.client import find_running
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.serving.default_model import with_default_model
from companion_core.serving.step import OnStep, Step
from companion_core.system.interpreter import running_interpreter
from companion_core.system.muted_output import set_output_apart
from companion_core.system.os_compat import NO_FOLLOW
from companion_core.system.stop_signals import stop_signals_interrupt, stop_signals_wait

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
# -P: import nothing from the working folder, which is the instance's.
_SELF: Final = (sys.executable, "-P", "-m", "companion_core")


@click.command("up")
@click.option("--detach", is_flag=True, help="Return when available; the companion keeps running.")
@click.option(
    "--model",
    "model_id",
    metavar="ID",
    help="Serve this model of the manifest; it replaces one that is served now.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document when available.")
@click.option("--announce-fd", type=int, hidden=True, help="Tell a waiting parent on this pipe.")
@click.pass_obj
def command(
    settings: Settings,
    *,
    detach: bool,
    model_id: str | None,
    as_json: bool,
    announce_fd: int | None,
) -> int:
    """Start the companion and serve the configured model.

    Fetches the manifest, downloads and verifies the model, starts the runtime and serves once
    it has answered a health check. Ctrl-C drains; a second one stops at once.

    With --model, a companion that already serves another model replaces it: it fetches and
    verifies the new model while it serves the old one, drains, and serves the new one at the
    same address and with the same token. This command then returns; Ctrl-C before the drain
    leaves the old model serving.
    """
    config = _read_config(settings, model_id)
    harden_process()
    if announce_fd is not None:
        set_output_apart()
        return _serve_for_parent(settings, config, announce_fd)
    printer = StepPrinter(quiet=settings.quiet)
    if model_id is not None:
        running = find_running(settings.paths, settings.egress)
        if running is not None:
            status = swap_model(settings, running, model_id, printer)
            _announce(settings, status, as_json=as_json)
            return 0
    if detach:
        _announce(settings, _detach(settings, model_id, printer), as_json=as_json)
        return 0

    def announce(companion: Companion) -> None:
        _announce(settings, companion.status().to_json(), as_json=as_json)

    return run_event_loop(_serve(settings, config, printer, announce))


def _announce(settings: Settings, status: dict[str, Any], *, as_json: bool) -> None:
    if as_json or not settings.quiet:
        echo_result(status, as_text(status), as_json=as_json)


def _read_config(settings: Settings, model_id: str | None) -> Config:
    config = settings.read_config()
    if model_id is not None:
        return with_model(config, model_id)
    return with_default_model(config, settings.paths)


async def _serve(
    settings: Settings,
    config: Config,
    on_step: OnStep,
    announce: Callable[[Companion], None],
) -> int:
    paths = settings.paths
    companion = Companion.open(
        config,
        state_dir=paths.root,
        instance=paths.instance,
        egress=settings.egress,
        on_step=on_step,
    )
    interrupted_by = 0

    def on_interrupt(number: int, count: int) -> None:
        nonlocal interrupted_by
        interrupted_by = number
        companion.request_stop(now=count > 1)

    async def run() -> None:
        async with companion:
            announce(companion)
            await companion.wait_for_stop_request()

    await run_interruptible(run(), on_interrupt=on_interrupt)
    if interrupted_by == signal.SIGINT:
        raise CompanionError(Reason.INTERRUPTED)
    return 0


# --- detached: a child in its own session that reports its steps to this process ------------


def _serve_for_parent(settings: Settings, config: Config, descriptor: int) -> int:
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def tell(**message: Any) -> None:
            # The parent may have been interrupted; the companion keeps running without it.
            try:
                if not pipe.closed:
                    pipe.write(json.dumps(message) + "\n")
                    pipe.flush()
            except OSError:
                pipe.close()

        def announce(companion: Companion) -> None:
            tell(available=companion.status().to_json())
            pipe.close()

        try:
            return run_event_loop(
                _serve(settings, config, lambda step: tell(step=dataclasses.asdict(step)), announce)
            )
        except CompanionError as error:
            tell(error=error.reason.value, detail=explain(error))
            raise error_for(
                error.reason
            ) from None  # the person may read the detail, the log must not hold it


def _detach(settings: Settings, model_id: str | None, on_step: OnStep) -> dict[str, Any]:
    if sys.platform == "win32":
        raise error_for(Reason.USAGE, "--detach is not for Windows: give it a window of its own")
    running_interpreter()  # else `_SELF` would be another program
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
            with stop_signals_wait():
                child = settings.egress.start_process(
                    [*_SELF, *settings.root_arguments(), *arguments],
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
    path = settings.paths.logs / "companion.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW
    try:
        file = os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
        if os.fstat(file.fileno()).st_size > MAX_LOG_BYTES:
            file.truncate(0)
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
    return file
