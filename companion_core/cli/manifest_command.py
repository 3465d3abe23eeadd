"""`companion manifest`: start, fill, sign and verify a list of models."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from companion_core.authority.publisher import (
    Measured,
    add_file,
    files_of,
    init_draft,
    measure,
    parse_lifetime,
    remove_entry,
    sign_draft,
    verify_file,
)
from companion_core.cli import Settings, echo_result
from companion_core.decisions.redirect import name_address
from companion_core.decisions.source import parse_https_url
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect
from companion_core.system.state_files import open_ordinary
from companion_core.transfer_fault import explain_problem, known_problem

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group("manifest")
def command() -> None:
    """Make, sign and verify a manifest of models."""


@command.command("init")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option(
    "--key-out",
    "key_file",
    type=_FILE,
    required=True,
    help="Where to write the private key; keep it safe.",
)
@_as_json
def init(folder: Path, key_file: Path, as_json: bool) -> None:
    """Start an empty draft in DIR and print the public key."""
    public_key = init_draft(folder, key_file)
    if folder.resolve() in key_file.resolve().parents:
        click.echo(f"companion: move {key_file} away before {folder} is published", err=True)
    echo_result({"ok": True, "public_key": public_key}, public_key, as_json=as_json)


@command.command("add")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("source", metavar="FILE-OR-URL")
@click.option("--id", "model_id", required=True, help="The model; several files may share it.")
@click.option("--url", required=True, help="Where people will fetch the file.")
@click.option("--format", "model_format", required=True, help="Such as gguf.")
@click.option("--licence", help="An SPDX expression.")
@click.option("--chat-template-file", type=_FILE, help="A template instead of the model's own.")
@click.option("--extra-ca-file", type=_FILE, help="An authority to trust beside the system's.")
@_as_json
@click.pass_obj
def add(  # noqa: PLR0917 - click passes options by name
    settings: Settings,
    folder: Path,
    source: str,
    model_id: str,
    url: str,
    model_format: str,
    licence: str | None,
    chat_template_file: Path | None,
    extra_ca_file: Path | None,
    as_json: bool,
) -> None:
    """Enter FILE-OR-URL into the draft, with its size and SHA-256."""
    template = None if chat_template_file is None else _read_text(chat_template_file)
    if "://" in source:
        measured = _measure_url(settings, source, extra_ca_file)
    else:
        measured = _measure_file(Path(source))
    name = add_file(
        folder,
        measured,
        model_id=model_id,
        url=url,
        model_format=model_format,
        licence=licence,
        chat_template=template,
    )
    document = {
        "ok": True,
        "id": model_id,
        "name": name,
        "size": measured.size,
        "sha256": measured.sha256,
        "files": (files := files_of(folder, model_id)),
    }
    text = f"{model_id}: {name}, {measured.size} bytes, SHA-256 {measured.sha256}"
    if len(files) > 1:
        text += f"\n{model_id} is one model of {len(files)} files now: {', '.join(files)}"
    echo_result(document, text, as_json=as_json)


@command.command("remove")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("model_id", metavar="ID")
@click.option("--file", "name", metavar="NAME", help="This file of the model alone.")
@_as_json
def remove(folder: Path, model_id: str, name: str | None, as_json: bool) -> None:
    """Take the model ID, or one of its files, out of the draft; sign it again afterwards.

    What was signed before stays valid until it expires: publish the new manifest soon.
    """
    gone = remove_entry(folder, model_id, name=name)
    document = {"ok": True, "id": model_id, "removed": gone}
    text = f"{model_id}: {', '.join(gone)} left the draft; companion manifest sign makes it so"
    echo_result(document, text, as_json=as_json)


@command.command("sign")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--key", "key_file", type=_FILE, required=True, help="The private key.")
@click.option("--expires", required=True, help="How long it is valid, such as 30d.")
@_as_json
def sign(folder: Path, key_file: Path, expires: str, as_json: bool) -> None:
    """Write DIR/manifest.json from the draft, one version on."""
    now = dt.datetime.now(tz=dt.UTC)
    signed = sign_draft(folder, key_file, lifetime=parse_lifetime(expires), now=now)
    until = _date(signed.manifest.expires)
    document = {
        "ok": True,
        "path": str(signed.path),
        "version": signed.manifest.version,
        "expires": until,
    }
    text = f"{signed.path}: version {signed.manifest.version}, expires {until}"
    echo_result(document, text, as_json=as_json)


@command.command("verify")
@click.argument("file", metavar="MANIFEST", type=_FILE)
@click.option("--trusted-key", "trusted_keys", multiple=True, required=True, help="ed25519:…")
@_as_json
def verify(file: Path, trusted_keys: tuple[str, ...], as_json: bool) -> None:
    """Say whether a companion that trusts the key would accept MANIFEST now."""
    manifest = verify_file(file, list(trusted_keys), now=dt.datetime.now(tz=dt.UTC))
    until = _date(manifest.expires)
    models = [model.id for model in manifest.models]
    document = {"ok": True, "version": manifest.version, "expires": until, "models": models}
    text = f"version {manifest.version}, expires {until}, models: {', '.join(models)}"
    echo_result(document, text, as_json=as_json)


def _measure_file(path: Path) -> Measured:
    try:
        with open_ordinary(path) as file:
            return measure(file.readinto)
    except OSError as error:
        raise click.BadParameter(f"cannot read {path}", param_hint="FILE-OR-URL") from error


def _measure_url(settings: Settings, url: str, extra_ca_file: Path | None) -> Measured:
    from companion_core.egress.tls_context import (  # noqa: PLC0415 - slow; a local file needs no TLS
        build_tls_context,
    )
    from companion_core.models.https_downloader import (  # noqa: PLC0415 - a local file needs none
        HttpsDownloader,
    )

    parsed = parse_https_url(url)
    if isinstance(parsed, Verdict):
        raise error_for(parsed.reason)
    context = build_tls_context(extra_ca_file)
    downloader = HttpsDownloader(settings.egress, lambda: context)
    try:
        with downloader.open(DownloadRequest(url=url)) as stream:
            return measure(stream.readinto)  # type: ignore[attr-defined] # `Downloader.open` promises it, BinaryIO does not name it
    except Redirect as error:
        hint = f"{parsed.host} redirects; give the address it leads to: {name_address(error.url)}"
        raise click.BadParameter(hint, param_hint="FILE-OR-URL") from error
    except DownloadFailed as error:
        detail = explain_problem(known_problem(error.problem), parsed.host)
        raise EnvironmentUnavailable(Reason.DOWNLOAD_FAILED, detail) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"cannot read {path}", param_hint="--chat-template-file"
        ) from error


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
