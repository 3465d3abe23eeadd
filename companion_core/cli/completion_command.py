"""`companion completion`: what a shell reads to complete commands, options, ids and names."""

from __future__ import annotations

from typing import Final

import click

_SHELLS: Final = ("bash", "zsh", "fish", "powershell")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what SHELL reads to complete companion's commands, options, ids and names.

    \b
    bash:       > ~/.local/share/bash-completion/completions/companion,
    zsh:        > _companion, in one of the folders of $fpath,
    fish:       > ~/.config/fish/completions/companion.fish,
    powershell: >> $PROFILE

    A new shell knows it then. Ids of models, names of keys and plugins are read from this machine.
    """  # noqa: D301 - click leaves the lines below this sign as they are
    from companion_core.cli.shells import script  # noqa: PLC0415 - what it prints is made by click

    click.echo(script(ctx.find_root().command, shell))
