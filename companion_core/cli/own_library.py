"""What every command needs that looks at or changes the models of a person."""

from __future__ import annotations

import contextlib
import functools
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import click

from companion_core.cli import Settings, is_terminal
from companion_core.cli.foreground import harden_process
from companion_core.cli.progress import StepPrinter
from companion_core.config.sections import Config
from companion_core.decisions.fit import Fit
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.plugin_host import Chosen
from companion_core.providers import Downloader
from companion_core.serving.account import open_account
from companion_core.serving.library import ModelLibrary
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_files import told_fit
from companion_core.serving.own_list import open_own_list_alone, plugins_of_command
from companion_core.serving.step import Step
from companion_core.system.clock import wall_now
from companion_core.system.harmless_text import harmless

__all__ = ["OwnLibrary", "open_library"]

_NO_KEYCHAIN: Final = frozenset({Reason.KEYCHAIN_ABSENT, Reason.PROVIDER_MISSING})


@dataclass(frozen=True, slots=True)
class OwnLibrary:
    """The models, and how this command talks about them.

    Attributes:
        downloader: chooses the plugin that fetches, when it is needed.
        context: how servers are verified, made when it is needed.
        yes: the person said yes beforehand.
    """

    settings: Settings
    config: Config
    models: ModelLibrary
    downloader: Callable[[], Chosen[Downloader]]
    context: Callable[[], ssl.SSLContext]
    printer: StepPrinter
    yes: bool = False

    def progress(self, name: str, what: str) -> Callable[[int, int], None]:
        """Return what hears of bytes done and bytes in all."""
        return lambda done, total: self.printer(Step(name, what, done, total))

    def say(self, line: str) -> None:
        """Tell a person what they should know before the work goes on."""
        if not self.settings.quiet:
            self.printer.clear()
            click.echo(f"companion: {harmless(line)}", err=True)

    @property
    def can_ask(self) -> bool:
        """Whether a person looks at a terminal, and can answer."""
        return is_terminal(sys.stdin) and is_terminal(sys.stderr)

    def ask(self, question: str) -> None:
        """Have the person confirm what cannot be undone; a program is not asked.

        Raises:
            Abort: the person said no.
        """
        if not self.yes and self.can_ask:
            self.printer.clear()
            click.confirm(f"companion: {question}", abort=True, err=True)

    def require_fit(self, model_id: str, fit: Fit) -> None:
        """Have the person confirm a model that this machine has not the memory for.

        Raises:
            EnvironmentUnavailable: `memory_short`: nobody can be asked.
            Abort: the person said no.
        """
        if fit.fits:
            return
        words = f"{model_id} does not fit: {told_fit(fit)}"
        if not self.yes and not self.can_ask:
            raise EnvironmentUnavailable(
                Reason.MEMORY_SHORT, f"{words}; --yes goes on all the same"
            )
        self.printer.clear()
        click.echo(f"companion: {harmless(words)}", err=True)
        self.ask("Go on anyway?")

    @contextlib.contextmanager
    def key_told(self) -> Iterator[None]:
        """Say what to write where no keychain keeps the key of a person's own models."""
        try:
            yield
        except CompanionError as error:
            keyless = error.reason in _NO_KEYCHAIN and "spawn" not in error.detail
            if not keyless or self.config.models.key_file is not None:
                raise
            raise error_for(error.reason, self._key_lines()) from error

    def _key_lines(self) -> str:
        memory = (
            '    [keychain]\n    name = "memory"\n' if self.config.keychain.name is None else ""
        )
        place = self.settings.paths.own_manifest.with_name("key.pem")
        return (
            "nothing here keeps the key that signs your own models. Without a keychain it lies in "
            "a file that models.key_file names. Have companion init write that, or add to "
            f"{self.settings.config}:\n{memory}"
            f'    [models]\n    key_file = "{place}"'
        )


def open_library(
    settings: Settings, *, as_json: bool, yes: bool = False, brief: bool = False
) -> OwnLibrary:
    """Open the lists and the store; nothing is read yet.

    Raises:
        CompanionError: the configuration or a folder is refused.
    """
    harden_process()
    config, paths = settings.read_config(), settings.paths
    paths.prepare()

    @functools.cache
    def context() -> ssl.SSLContext:
        return build_tls_context(config.network.extra_ca_file)

    plugins = plugins_of_command(config, paths, settings.egress, context)
    own = open_own_list_alone(config, paths, plugins)
    tokens = open_account(
        config,
        paths,
        settings.egress,
        context,
        lambda: plugins().select_keychain(config.keychain.name),
    )
    lists = ModelLists(
        config, paths, settings.egress, context(), own, clock=wall_now, tokens=tokens
    )
    return OwnLibrary(
        settings=settings,
        config=config,
        models=ModelLibrary(paths, lists, own),
        downloader=lambda: plugins().select_runtime(config.runtime.name).download,
        context=context,
        printer=StepPrinter(quiet=settings.quiet, as_json=as_json, brief=brief),
        yes=yes,
    )
