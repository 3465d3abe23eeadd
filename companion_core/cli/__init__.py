"""The `companion` command: one file per command, loaded when it is called.

`COMMANDS` is the table that the help, the loader and the tests read. So `--help` imports
no command, and works even if no plugin can be imported.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from companion_core import __version__
from companion_core.cli.root_options import root_options, take_root_options
from companion_core.config.paths import (
    ANY_INSTANCE,
    DEFAULT_INSTANCE,
    InstancePaths,
    default_config_file,
    default_state_dir,
)
from companion_core.egress.interface import Egress
from companion_core.egress.sandboxed import open_doorway
from companion_core.errors import (
    EXIT_CODES,
    CompanionError,
    Culprit,
    PluginFault,
    Reason,
    UsageError,
)
from companion_core.system.harmless_text import harmless
from companion_core.system.lacks import is_lack, lack_of
from companion_core.system.plain_paths import absolute
from companion_core.system.standard_streams import fill_standard_streams

if TYPE_CHECKING:
    from companion_core.config.sections import Config

__all__ = ["COMMANDS", "Settings", "cli", "echo_result", "explain", "is_terminal", "main", "refuse"]

# What a shell sets that asks for suggestions; click answers it.
_COMPLETING: Final = "_COMPANION_COMPLETE"
# The errors of a disk that is full, read-only or broken, from whichever call they come.
_DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass(frozen=True, slots=True)
class _Entry:
    section: str
    help: str


# Command to its place in the help: the daily ones first. The command `x` lives in `x_command`.
COMMANDS: Final[dict[str, _Entry]] = {
    "run": _Entry("Daily", "Ask a model of yours: add it if it is new, start it, answer."),
    "chat": _Entry("Daily", "Ask the model that runs: one answer, or a conversation."),
    "up": _Entry("Daily", "Start the companion and serve the configured model."),
    "down": _Entry("Daily", "Drain and stop the companion."),
    "status": _Entry("Daily", "Say what runs and why it is or is not available."),
    "exec": _Entry("Daily", "Run a program with this session's address and key."),
    "logs": _Entry("Daily", "Say what happened, with times and reasons."),
    "models": _Entry("Daily", "List, add, prove and remove models: a publisher's, and your own."),
    "init": _Entry("Set-up", "Write a commented configuration of what this machine has."),
    "connect": _Entry("Set-up", "Write this gateway into the settings of programs you use."),
    "service": _Entry("Set-up", "Start the companion at each login, by the system."),
    "login": _Entry("Set-up", "Sign in, where a publisher's manifest asks for it."),
    "logout": _Entry("Set-up", "Sign out, and forget the tokens."),
    "doctor": _Entry("Set-up", "Say what is here, what is wrong, and what to do about it."),
    "update": _Entry("Set-up", "Bring what is set up to date, after an upgrade or now and then."),
    "keys": _Entry("Set-up", "Give programs keys of their own, and take them back."),
    "token": _Entry("Set-up", "Print the session token."),
    "metrics": _Entry("Set-up", "Print the gateway's counts and latencies as Prometheus text."),
    "completion": _Entry("Set-up", "Complete commands, ids and names in your shell."),
    "demo": _Entry("Set-up", "Run the whole job once on what ships in the package."),
    "plugins": _Entry("Authors", "List, trust and check plugins; start a new one."),
    "manifest": _Entry("Authors", "Make, sign and verify a manifest of models."),
}


@dataclass(slots=True)
class Settings:
    """The root command's options; every command receives them.

    Attributes:
        egress: the doorway to the machine; only `main` makes the live one.
    """

    egress: Egress
    config_file: Path | None = None
    state_dir: Path | None = None
    instance: str = DEFAULT_INSTANCE
    quiet: bool = False

    @property
    def paths(self) -> InstancePaths:
        """The folders of the chosen instance."""
        if self.instance == ANY_INSTANCE:
            message = f"{ANY_INSTANCE!r} is no instance's name; Companion.open alone takes it"
            raise UsageError(Reason.USAGE, message)
        root = self.state_dir if self.state_dir is not None else default_state_dir()
        return InstancePaths(absolute(root), self.instance)

    @property
    def config(self) -> Path:
        """The configuration file, whether it exists or not."""
        return absolute(self.config_file) if self.config_file else default_config_file()

    def read_config(self) -> Config:
        """Read the configuration; the defaults if the person named none and has no file.

        Raises:
            UsageError: `configuration_invalid`.
        """
        from companion_core.config.reader import load_config  # noqa: PLC0415 - not for --help

        return load_config(self.config, named=self.config_file is not None)

    def root_arguments(self) -> list[str]:
        """Return the root options with which another process finds the same instance."""
        paths = self.paths
        named = self.config_file is not None or self.config.exists()
        return [
            *(("--config", str(self.config)) if named else ()),
            *("--state-dir", str(paths.root)),
            *("--instance", paths.instance),
        ]


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"companion_core.cli.{cmd_name}_command")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 - else our own module is wrong
        return take_root_options(command)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, e.help) for name, e in COMMANDS.items() if e.section == section]
                )


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(version)s")
@root_options
@click.pass_context
def cli(
    ctx: click.Context,
    config_file: Path | None,
    state_dir: Path | None,
    instance: str,
    quiet: bool,
) -> None:
    """Run a local AI runtime on this machine: verified, guarded, and yours alone.

    The options below are taken before or after a command's name.
    """
    settings: Settings = ctx.obj
    settings.config_file = config_file
    settings.state_dir = state_dir
    settings.instance = instance
    settings.quiet = quiet


def main(arguments: list[str] | None = None, *, egress: Egress | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what was typed; that of this process where it is left out.
        egress: the doorway to the machine; the one that the environment asks for where it is
            left out: live, or in an armed sandbox (`COMPANION_SANDBOX`) shut.
    """
    fill_standard_streams()
    argv = sys.argv[1:] if arguments is None else arguments
    settings = Settings(egress=open_doorway() if egress is None else egress)
    if _COMPLETING in os.environ:
        import companion_core.cli.shells  # noqa: F401, PLC0415 - teaches click a shell more
    try:
        result = cli.main(argv, prog_name="companion", standalone_mode=False, obj=settings)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _report(UsageError(Reason.USAGE), argv)
    except click.ClickException as error:
        return _report(UsageError(Reason.USAGE, error.format_message()), argv)
    except CompanionError as error:
        return _report(error, argv)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _report(CompanionError(Reason.INTERRUPTED), argv)
    except BrokenPipeError:
        drop_output(sys.stdout)  # the reader of the pipe has exited
        return EXIT_CODES[Culprit.PROGRAM]
    except Exception as error:
        if is_lack(error):
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                drop_output(sys.stdout)  # stdout itself may be the file that could not be written
            return _report(lack_of(error), argv)
        if os.environ.get("COMPANION_DEBUG") == "1":
            raise
        return _report(CompanionError(Reason.INTERNAL_FAULT, type(error).__name__), argv)
    return result if isinstance(result, int) else 0


def _report(error: CompanionError, argv: list[str]) -> int:
    """Report the error, with --json on stdout too; stderr ends with `companion: REASON: advice`."""
    if "--json" in argv[: argv.index("--")] if "--" in argv else "--json" in argv:
        document = {"ok": False, "reason": error.reason.value, "advice": error.advice}
        with contextlib.suppress(OSError):
            click.echo(json.dumps(document))
    return refuse(error)


def refuse(error: CompanionError) -> int:
    """Print the refusal and its advice on stderr, and return the exit code."""
    try:
        if explanation := explain(error):
            click.echo(f"companion: {explanation}", err=True)
        click.echo(f"companion: {error.reason.value}: {error.advice}", err=True)
    except OSError:
        drop_output(sys.stderr)
    return error.exit_code


def explain(error: CompanionError) -> str:
    """Return the details beyond the reason: the plugin at fault, a file, a line."""
    plugin = f"plugin {error.plugin}" if isinstance(error, PluginFault) and error.plugin else ""
    return harmless(": ".join(part for part in (plugin, error.detail) if part))


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether the stream is a terminal; a standard stream that was closed is None."""
    return stream is not None and stream.isatty()


def drop_output(stream: IO[str] | None) -> None:
    """Discard what is still buffered: Python would try to write it at exit and fail again."""
    if stream is not None:
        with contextlib.suppress(OSError):
            descriptor = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def echo_result(
    document: dict[str, Any], text: str, *, as_json: bool, styled: bool = False
) -> None:
    """Print a command's result: one JSON document, or the same facts as text.

    Args:
        document: the facts.
        text: the same; what others wrote in it is made harmless, unless that is done already.
        as_json: print the document.
        styled: the text has colours of its own, and nothing that does harm.
    """
    click.echo(json.dumps(document) if as_json else text if styled else harmless(text))
