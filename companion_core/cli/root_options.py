"""The options of the root command, which every command takes after its name too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from companion_core.cli.suggestions import instances
from companion_core.config.paths import DEFAULT_INSTANCE

__all__ = ["root_options", "take_root_options"]

C = TypeVar("C", bound=Callable[..., Any])

# By the attribute of `Settings`: the option, what click makes of it, and its default at the root.
_OPTIONS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "config_file": (
        "--config",
        {
            "type": click.Path(path_type=Path, dir_okay=False, readable=False),
            "help": "Configuration file.",
        },
        {"envvar": "COMPANION_CONFIG"},
    ),
    "state_dir": (
        "--state-dir",
        {
            "type": click.Path(path_type=Path, file_okay=False, readable=False),
            "help": "Where models, logs and the control socket live.",
        },
        {"envvar": "COMPANION_STATE_DIR"},
    ),
    "instance": (
        "--instance",
        {
            "metavar": "NAME",
            "help": "A second companion beside the first, with its own state and socket.",
            "shell_complete": instances,
        },
        {"default": DEFAULT_INSTANCE},
    ),
    "quiet": (
        "--quiet",
        {"is_flag": True, "help": "No progress and no announcements."},
        {"default": False},
    ),
}


def root_options(function: C) -> C:
    """Give the root command its options."""
    for name, (option, common, at_root) in reversed(_OPTIONS.items()):
        function = click.option(option, name, **common, **at_root)(function)
    return function


def take_root_options(command: click.Command) -> click.Command:
    """Let a command, and each one below it, take the root's options; the last one given counts."""
    known = {parameter.name for parameter in command.params}
    for name, (option, common, _) in _OPTIONS.items():
        if name not in known:
            command.params.append(
                click.Option(
                    [option, name],
                    **common,
                    default=None,
                    expose_value=False,
                    hidden=True,  # the root's help shows them
                    callback=_remember,
                )
            )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            take_root_options(below)
    return command


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    name = str(parameter.name)
    if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return
    setattr(ctx.obj, name, value)
    ctx.find_root().set_parameter_source(name, ParameterSource.COMMANDLINE)
