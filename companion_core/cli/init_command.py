"""`companion init`: a commented configuration of what is on this machine."""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any, Final

import click

from companion_core.cli import Settings, echo_result, is_terminal
from companion_core.cli.foreground import harden_process
from companion_core.cli.machine_survey import survey_machine
from companion_core.cli.model_sources import Wanted
from companion_core.cli.own_library import open_library
from companion_core.cli.run_command import known_or_added
from companion_core.config.edit import NewKey, add_keys, replace_text
from companion_core.config.proposal import EMBEDDED, new_file, propose
from companion_core.config.reader import parse_config, read_document
from companion_core.config.sections import Config
from companion_core.config.writer import write_config
from companion_core.control.client import find_running
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.runtime import digest_binary
from companion_core.system.harmless_text import harmless
from companion_core.system.plain_paths import plain_file

__all__ = ["command"]

_HEADER_LINES: Final = 2  # of a difference: the names of the two texts


@click.command("init")
@click.option("--model", "source", metavar="SOURCE", help="Add this model, and serve it.")
@click.option("--manifest", "manifest_url", metavar="URL", help="Of a publisher.")
@click.option("--trusted-key", "trusted_keys", metavar="KEY", multiple=True, help="Of the same.")
@click.option("--accept-runtime", is_flag=True, help="Record the digest of an upgraded runtime.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(
    settings: Settings,
    *,
    source: str | None,
    manifest_url: str | None,
    trusted_keys: tuple[str, ...],
    accept_runtime: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write a configuration with what this machine has, and a comment on each key.

    It looks for runtimes, on PATH too, which nothing else does, and records the path and digest
    of the one it found; it names the keychain, or what takes its place on a server without one.
    No file is needed to serve a model of your own (`companion run`).

    Run again, it shows what it would add to the file, and adds it once you say yes. What you
    wrote stays, with its order and its comments. Without a terminal an existing file is changed
    with --yes alone. SOURCE is what `companion run` takes.
    """
    harden_process()
    if accept_runtime:
        if source is not None or manifest_url is not None or trusted_keys:
            raise UsageError(Reason.USAGE, "--accept-runtime does nothing else; give it alone")
        _accept_runtime(settings, as_json=as_json)
        return
    if (manifest_url is None) != (not trusted_keys):
        raise UsageError(Reason.USAGE, "--manifest and --trusted-key belong together; give both")
    before = _read(settings)
    config = Config() if before is None else before[0]
    keys = [*_publisher(config, manifest_url, trusted_keys)]
    survey = survey_machine(settings, config)
    proposal = propose(config, survey.found)
    for note in (*survey.notes, *proposal.notes):
        click.echo(f"companion: {harmless(note)}", err=True)
    if config.runtime.binary is None and not survey.found.fitting(config):
        raise EnvironmentUnavailable(Reason.RUNTIME_NOT_FOUND, config.runtime.name or "")
    keys += proposal.keys
    if before is None:
        start = new_file(config, survey.found, publisher=manifest_url is not None)
    else:
        start = before[1]
    text = add_keys(start, keys)
    written = _write(settings, before, text, yes=yes, as_json=as_json)
    document: dict[str, Any] = {
        "ok": True,
        "config": str(settings.config),
        "written": written,
        "added": {f"{key.section}.{key.name}": key.value for key in keys},
        "model": None,
    }
    if source is not None and written is not False:
        document["model"] = _model(settings, source, yes=yes, as_json=as_json)
    state = {None: "has everything already", True: "is written", False: "was not changed"}[written]
    lines = [f"{settings.config} {state}"]
    if document["model"] is not None:
        lines.append(f"{document['model']} is ready; companion up serves it")
    if written is False:
        lines.append("companion init --yes writes it")
    echo_result(document, "\n".join(lines), as_json=as_json)


def _read(settings: Settings) -> tuple[Config, str] | None:
    """Return the configuration and its text; None if there is no file yet."""
    path = settings.config
    if not os.path.lexists(path):
        return None
    document, text = read_document(path)
    return parse_config(document, source=str(path), text=text), text


def _publisher(config: Config, url: str | None, trusted_keys: tuple[str, ...]) -> list[NewKey]:
    if url is None:
        return []
    parse_config(
        {"manifest": {"url": url, "trusted_keys": list(trusted_keys)}}, source="companion init"
    )
    if config.manifest is not None:
        same = (config.manifest.url, set(config.manifest.trusted_keys)) == (url, set(trusted_keys))
        if not same:
            what = "the file names another manifest or other keys; change it there yourself"
            raise UsageError(Reason.USAGE, what)
        return []
    about = "The models of a publisher: where the signed manifest is, and which keys may sign it."
    return [
        NewKey(section="manifest", name="url", value=url, comment=about),
        NewKey(section="manifest", name="trusted_keys", value=trusted_keys),
    ]


def _write(
    settings: Settings, before: tuple[Config, str] | None, text: str, *, yes: bool, as_json: bool
) -> bool | None:
    """Show what would change and write it; None if nothing would, False if nobody said yes.

    Raises:
        Abort: the person said no.
    """
    old = None if before is None else before[1]
    if text == old:
        return None
    if not as_json:
        click.echo(harmless(text if old is None else _difference(old, text)))
    can_ask = is_terminal(sys.stdin) and is_terminal(sys.stderr) and not as_json
    if not yes and can_ask:
        click.confirm(f"companion: write this into {settings.config}?", abort=True, err=True)
    elif not yes and old is not None:
        return False
    write_config(settings.config, text, before=old)
    return True


def _difference(old: str, new: str) -> str:
    """Return the lines that change and no other: options of a plugin may be secrets."""
    pair = old.splitlines(), new.splitlines()
    return "\n".join([*difflib.unified_diff(*pair, lineterm="", n=0)][_HEADER_LINES:])


def _model(settings: Settings, source: str, *, yes: bool, as_json: bool) -> str:
    """Add the model if it is new, and name it in the configuration, unless one is named there."""
    library = open_library(settings, as_json=as_json, yes=yes)
    model_id = known_or_added(library, Wanted(source=source))
    library.printer.clear()
    before = _read(settings)
    if before is None:
        raise UsageError(Reason.CONFIGURATION_INVALID, f"{settings.config} was removed")
    config, text = before
    if config.model.id is None:
        named = add_keys(text, [NewKey(section="model", name="id", value=model_id)])
        write_config(settings.config, named, before=text)
    elif config.model.id != model_id:
        kept = f"model.id in {settings.config} names {config.model.id}, and stays"
        click.echo(f"companion: {kept}; companion up --model {model_id}", err=True)
    return model_id


def _accept_runtime(settings: Settings, *, as_json: bool) -> None:
    before = _read(settings)
    if before is None:
        absent = f"{settings.config}: there is no such file; companion init writes one"
        raise UsageError(Reason.CONFIGURATION_INVALID, absent)
    config, written = before
    binary = config.runtime.binary
    if binary is None or binary == EMBEDDED:
        text = "the runtime is embedded: it is proved with its plugin, and no digest is recorded"
        echo_result({"ok": True, "changed": False, "sha256": None}, text, as_json=as_json)
        return
    recorded, digest = config.runtime.binary_sha256, digest_binary(plain_file(binary))
    if digest != recorded:
        new = (
            add_keys(written, [NewKey(section="runtime", name="binary_sha256", value=digest)])
            if recorded is None
            else replace_text(written, "runtime", "binary_sha256", digest)
        )
        write_config(settings.config, new, before=written)
        if find_running(settings.paths, settings.egress) is not None:
            told = "the companion that runs keeps to the old record: companion down, companion up"
            click.echo(f"companion: {told}", err=True)
    document = {"ok": True, "changed": digest != recorded, "binary": binary, "sha256": digest}
    told = "is recorded" if digest != recorded else "was recorded already"
    echo_result(document, f"{binary} {told}: SHA-256 {digest}", as_json=as_json)
