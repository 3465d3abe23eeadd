"""`companion up`: start, and serve in the foreground or detached."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from companion_core.cli import Settings, echo_result, explain
from companion_core.cli.detached import start_detached
from companion_core.cli.foreground import harden_process, run_event_loop, run_interruptible
from companion_core.cli.model_swap import swap_model
from companion_core.cli.progress import StepPrinter
from companion_core.cli.status_command import as_text
from companion_core.cli.suggestions import model_ids
from companion_core.config.reader import with_model
from companion_core.config.sections import Config
from companion_core.control.client import ask_running, find_running
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.serving.step import OnStep, Step
from companion_core.system.lacks import lacks_told
from companion_core.system.muted_output import set_output_apart

if TYPE_CHECKING:
    from companion_core.companion import Companion


@click.command("up")
@click.option("--detach", is_flag=True, help="Return when available; the companion keeps running.")
@click.option(
    "--model",
    "model_id",
    metavar="ID",
    help="Serve this model of the manifest; it replaces one that is served now.",
    shell_complete=model_ids,
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
    leaves the old model serving. One that runs already is reported, and goes on.
    """
    if announce_fd is not None:
        return _serve_for_parent(settings, model_id, announce_fd)
    config = _read_config(settings, model_id)
    harden_process()
    try:
        return _up(settings, config, model_id, detach=detach, as_json=as_json)
    except CompanionError as error:
        if error.reason is not Reason.ALREADY_RUNNING:
            raise
        try:
            status = ask_running(settings.paths, settings.egress, "status")
        except CompanionError:  # it starts or ends at this moment
            raise error from None
    click.echo("companion: it runs already", err=True)
    _announce(settings, status, as_json=as_json)
    return 0


def _up(
    settings: Settings, config: Config, model_id: str | None, *, detach: bool, as_json: bool
) -> int:
    printer = StepPrinter(quiet=settings.quiet, as_json=as_json)
    if model_id is not None:
        running = find_running(settings.paths, settings.egress)
        if running is not None:
            status = swap_model(settings, running, model_id, printer)
            _announce(settings, status, as_json=as_json)
            return 0
    if detach:
        _announce(settings, start_detached(settings, model_id, printer), as_json=as_json)
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
    return config


async def _serve(
    settings: Settings,
    config: Config,
    on_step: OnStep,
    announce: Callable[[Companion], None],
) -> int:
    # The parent of a detached companion needs none of what serves, and that takes long to load.
    from companion_core.companion import Companion  # noqa: PLC0415

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
    if companion.gave_up is not None:  # nobody asked for this end
        raise error_for(companion.gave_up)
    return 0


def _serve_for_parent(settings: Settings, model_id: str | None, descriptor: int) -> int:
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

        def on_step(step: Step) -> None:
            tell(step=dataclasses.asdict(step))

        try:
            with lacks_told():
                config = _read_config(settings, model_id)
                harden_process()
                set_output_apart()
                return run_event_loop(_serve(settings, config, on_step, announce))
        except CompanionError as error:
            tell(error=error.reason.value, detail=explain(error))
            raise error_for(
                error.reason
            ) from None  # the person may read the detail, the log must not hold it
