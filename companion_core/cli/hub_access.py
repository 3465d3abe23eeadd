"""Ask a model hub for a command: whether it may be asked, with which token, and for which files."""

from __future__ import annotations

import os
import threading

import click

from companion_core.authority.hub import Hub
from companion_core.authority.hub_token import find_hub_token
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.own_library import OwnLibrary
from companion_core.decisions.hub import HubFile
from companion_core.decisions.hub_answers import hub_settings
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.models.transfer import Download
from companion_core.serving.known_models import KnownModel
from companion_core.serving.remote_files import HUB_PACE, HubDownload, not_offline
from companion_core.serving.step import Step

__all__ = ["hub_token_option", "open_hub", "pull_model"]

hub_token_option = click.option(
    "--hub-token", is_flag=True, help="Send your token to the hub: HF_TOKEN, or its file."
)


def open_hub(library: OwnLibrary, *, hub_token: bool) -> Hub:
    """Return the hub that the environment names; it is not asked yet.

    Raises:
        EnvironmentUnavailable: `download_failed`: the environment wants no hub to be asked.
        UsageError: it names none that may be asked, or there is no token.
    """
    told = hub_settings(os.environ)
    if told.offline:
        raise EnvironmentUnavailable(
            Reason.DOWNLOAD_FAILED, "HF_HUB_OFFLINE is set, so the hub is not asked"
        )
    if isinstance(told.endpoint, Verdict):
        raise UsageError(Reason.USAGE, "HF_ENDPOINT is no https address")
    return Hub(
        told.endpoint,
        egress=library.settings.egress,
        context=library.context(),
        token=find_hub_token(os.environ) if hub_token else None,
        waits=lambda host, seconds: library.printer(
            Step("wait", f"{host} answers again in {seconds} s")
        ),
    )


def pull_model(library: OwnLibrary, model: KnownModel, *, hub_token: bool) -> None:
    """Fetch what is missing of a known model and prove all of it; a hub is asked as for `add`.

    Raises:
        CompanionError: as `ModelLibrary.pull`; the hub gives it only to some, or is not asked.
        UsageError: a token is to be sent, and the model is of no hub.
        KeyboardInterrupt: the person stopped it; what came stays.
    """
    chosen = library.downloader()
    download: Download = not_offline(chosen.provider.open, os.environ)
    told = hub_settings(os.environ)
    hub: Hub | None = None
    if not told.offline and not isinstance(told.endpoint, Verdict):
        hub = open_hub(library, hub_token=hub_token)
        files = {
            url.text: HubFile(path=file.name, size=file.size, sha256=file.sha256)
            for file in model.files
            for url in file.urls
            if hub.is_mine(url.text) and "/resolve/" in url.path
        }
        if hub_token and not files:
            raise UsageError(
                Reason.USAGE, f"--hub-token: {model.id} is not of the hub at {hub.endpoint.host}"
            )
        asking = HubDownload(hub, download)
        asking.know(files)
        download = asking
    tell = library.progress("verify" if model.stored else "download", model.id)

    def pull(cancelled: threading.Event) -> None:
        if hub is not None:
            hub.cancelled = cancelled
        library.models.pull(
            model.id,
            download,
            chosen.plugin,
            progress=tell,
            cancelled=cancelled,
            pace=None if hub is None else HUB_PACE,
        )

    run_cancellable(pull)
