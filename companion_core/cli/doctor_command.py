"""`companion doctor`: checks every invariant, the configuration and the machine.

The doctor imports every side of the core, so the functions import it when they run: the help
must not load it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from companion_core.cli import Settings, echo_result, is_terminal, refuse
from companion_core.errors import Reason, UsageError, error_for

if TYPE_CHECKING:
    from companion_core.doctor import Check, PluginSurvey, Situation, Status, Tended

_OPTIONS: Final = ("config_file", "state_dir", "instance")
_COLOURS: Final = {"ok": "green", "fail": "red", "repaired": "yellow", "skip": "bright_black"}
_LINE_WIDTH: Final = 40


@click.command("doctor")
@click.option("--repair", is_flag=True, help="Put right what is harmless to put right.")
@click.option(
    "--yes",
    is_flag=True,
    help="With --repair: say yes to what it asks, such as whether this machine's time is right.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a support request's archive, without secrets, to this new file.",
)
@click.option("--failures", is_flag=True, help="Show only what failed or was repaired.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    repair: bool,
    yes: bool,
    bundle: Path | None,
    failures: bool,
    as_json: bool,
) -> int:
    """Say what is here, whether each invariant holds, and what to do if one does not.

    Exits with 0 when all is well or was repaired, 3 when a rule is broken, 4 when the
    environment lacks something. Nothing is changed without --repair, which closes the modes of
    the companion's own files and removes what a dead companion left. It asks you before it
    changes what protects from old manifests: that the clock was later once, or a damaged record.
    """
    from companion_core.cli.foreground import harden_process  # noqa: PLC0415 - not for --help
    from companion_core.doctor import (  # noqa: PLC0415 - not for --help
        LINE_WIDTH,
        examine,
        new_bundle,
        write_bundle,
    )
    from companion_core.system.stop_signals import (  # noqa: PLC0415 - not for --help
        stop_signals_interrupt,
    )

    settings: Settings = ctx.obj
    if yes and not repair:
        raise UsageError(Reason.USAGE, "--yes answers what --repair asks; give both")
    harden_process()
    progress = _Progress(quiet=settings.quiet or as_json)
    situation = _situation(ctx, settings, repair=repair)
    situation.confirm = functools.partial(_confirm, progress, yes=yes)
    with stop_signals_interrupt(), contextlib.ExitStack() as stack:
        file = None if bundle is None else stack.enter_context(new_bundle(bundle))
        stack.callback(progress.clear)
        report = examine(situation, on_check=progress)
        if file is not None:
            write_bundle(file, report, situation)
    report = dataclasses.replace(report, failures=failures)
    style = _style if _wants_colour() else _plain
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else LINE_WIDTH
    text = "\n".join(report.lines(style, width=width))
    echo_result(report.document(), text, as_json=as_json, styled=True)
    if report.judgement.exit_code:
        refuse(error_for(report.judgement.reason))
    return report.judgement.exit_code


def _situation(ctx: click.Context, settings: Settings, *, repair: bool) -> Situation:
    from companion_core.doctor import Situation  # noqa: PLC0415 - not for --help

    root = ctx.find_root()
    sources = {name: root.get_parameter_source(name) for name in _OPTIONS}
    return Situation(
        paths=settings.paths,
        config_file=lambda: settings.config,
        origins={
            name: {"COMMANDLINE": "option", "ENVIRONMENT": "environment"}.get(
                source.name if source is not None else "", "default"
            )
            for name, source in sources.items()
        },
        environ=os.environ,
        egress=settings.egress,
        survey=lambda: _survey(settings),
        connected=lambda: _connected(settings),
        services=lambda: _services(settings),
        repair=repair,
    )


def _connected(settings: Settings) -> list[Tended]:
    if not settings.paths.connections.is_dir():
        return []  # nothing is made to find nothing
    from companion_core.cli.connect_command import connections_of, wanted_of  # noqa: PLC0415 - not for --help
    from companion_core.connect import PROGRAMS  # noqa: PLC0415 - not for --help
    from companion_core.doctor import Tended  # noqa: PLC0415 - not for --help

    connections, wanted = connections_of(settings), wanted_of(settings)
    looks = [connections.look(name, wanted) for name in PROGRAMS]
    return [
        Tended(
            name=look.name,
            state=look.state,
            detail=look.detail,
            mend=functools.partial(connections.lead, look.name, wanted),
        )
        for look in looks
        if look.connected
    ]


def _services(settings: Settings) -> list[Tended]:
    from companion_core.cli.service_command import manager_of  # noqa: PLC0415 - not for --help
    from companion_core.doctor import Tended  # noqa: PLC0415 - not for --help

    manager = manager_of(settings)
    state = manager.look().value
    if state == "absent":
        return []
    mend = functools.partial(manager.install, start=False)
    return [Tended(name=str(manager.file), state=state, detail="", mend=mend)]


def _survey(settings: Settings) -> PluginSurvey:
    from companion_core.cli.plugin_facts import PluginCatalog  # noqa: PLC0415 - not for --help
    from companion_core.doctor import PluginSurvey  # noqa: PLC0415 - not for --help

    catalog = PluginCatalog(settings, strict=False)
    return PluginSurvey(
        documents=catalog.documents(ask=settings.paths.keychain_scope),
        store_reason=catalog.store_reason,
        answers=catalog.answers,
    )


def _confirm(progress: _Progress, question: str, *, yes: bool) -> bool:
    """Ask the person; without a terminal the answer is no, unless --yes gave it."""
    if yes:
        return True
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return False
    progress.clear()
    return click.confirm(question, default=False, err=True)


def _wants_colour() -> bool:
    return is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")


def _plain(text: str, _status: Status) -> str:
    return text


def _style(text: str, status: Status) -> str:
    return click.style(text, fg=_COLOURS[status.value], bold=status.value == "fail")


class _Progress:
    """Shows on a terminal which check is running."""

    def __init__(self, *, quiet: bool) -> None:
        self._draws = is_terminal(sys.stderr) and not quiet and "CI" not in os.environ

    def __call__(self, check: Check) -> None:
        """Show the check that begins."""
        if self._draws:
            click.echo(f"\r{f'looking at: {check.title}':{_LINE_WIDTH}}", err=True, nl=False)

    def clear(self) -> None:
        """Erase the line."""
        if self._draws:
            click.echo("\r" + " " * _LINE_WIDTH + "\r", err=True, nl=False)
