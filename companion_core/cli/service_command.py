"""`companion service`: the companion as a service of the system, from login on."""

from __future__ import annotations

import sys
from typing import Any

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.plugin_facts import PluginCatalog
from companion_core.control.client import find_running
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.service import ServiceFacts, ServiceManager, ServiceState, choose_manager
from companion_core.system.interpreter import running_interpreter

__all__ = ["command", "manager_of"]

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group("service")
def command() -> None:
    """Start the companion at each login, and let the system end it.

    A systemd user unit, a launchd agent or a scheduled task, of your own: nothing needs an
    administrator.
    """


@command.command("install")
@click.option(
    "--print", "only_print", is_flag=True, help="Print what it would write, nothing else."
)
@_as_json
@click.pass_obj
def install(settings: Settings, *, only_print: bool, as_json: bool) -> None:
    """Write the service and start it; installed already, it is written as it should be now.

    A keychain that is bound to a desktop session is refused: the service would find it locked.
    """
    manager = manager_of(settings)
    if only_print:
        click.echo(manager.text, nl=False)
        return
    _require_a_keychain_that_lasts(settings)
    before = manager.status()
    running = find_running(settings.paths, settings.egress)
    by_hand = running is not None and not before.running
    unchanged = before.state is ServiceState.OK and before.running
    if not unchanged:
        settings.paths.prepare()
        manager.install(start=not by_hand)
    after = manager.status()
    document = {**_document(manager), "changed": not unchanged}
    if unchanged:
        text = f"it is installed already, and runs: {manager.file}"
    elif by_hand:
        text = (
            f"written to {manager.file}; a companion that you started runs already, so the service "
            "takes over at the next login (or now: companion down, then companion service install)"
        )
    else:
        text = f"written to {manager.file}, and started by {manager.kind}"
    if sys.platform == "linux" and not unchanged:
        text += "; it runs while you are logged in (loginctl enable-linger: also before and after)"
    echo_result({**document, "running": after.running}, text, as_json=as_json)


@command.command("uninstall")
@_as_json
@click.pass_obj
def uninstall(settings: Settings, *, as_json: bool) -> None:
    """Stop the service, drained, and remove what was written; models and settings stay."""
    manager = manager_of(settings)
    removed = manager.uninstall()
    text = f"removed {manager.file}" if removed else "no service is installed"
    echo_result({"removed": removed, "manager": manager.kind}, text, as_json=as_json)


@command.command("status")
@_as_json
@click.pass_obj
def status(settings: Settings, *, as_json: bool) -> None:
    """Say whether the service is installed, as it should be now, and runs."""
    manager = manager_of(settings)
    document = _document(manager)
    words = {
        ServiceState.ABSENT: "no service is installed; companion service install does",
        ServiceState.OK: f"installed for {manager.kind}: {manager.file}",
        ServiceState.DRIFT: f"{manager.file} is not as it should be now; "
        "companion service install writes it again",
        ServiceState.FOREIGN: f"{manager.file} was not written by companion service",
    }
    text = words[ServiceState(document["state"])]
    if document["installed"]:
        text += f"\n{'it runs' if document['running'] else 'it does not run'}"
    echo_result(document, text, as_json=as_json)


def manager_of(settings: Settings) -> ServiceManager:
    """Return the manager of this system, for this instance."""
    paths = settings.paths
    arguments = ("-P", "-m", "companion_core", *settings.root_arguments(), "--quiet", "up")
    facts = ServiceFacts(
        instance=paths.instance,
        program=running_interpreter().program,
        arguments=arguments,
    )
    return choose_manager(facts, settings.egress, spool=paths.folder)


def _document(manager: ServiceManager) -> dict[str, Any]:
    found = manager.status()
    return {
        "installed": found.state in {ServiceState.OK, ServiceState.DRIFT},
        "state": found.state.value,
        "running": found.running,
        "manager": manager.kind,
        "file": str(manager.file),
    }


def _require_a_keychain_that_lasts(settings: Settings) -> None:
    """Refuse a keychain that goes with the desktop session.

    Raises:
        EnvironmentUnavailable: `keychain_session_bound`.
    """
    catalog = PluginCatalog(settings)
    catalog.documents(ask=settings.paths.keychain_scope)
    answer = (catalog.answers or {}).get("keychain") or {}
    if answer.get("session_bound"):
        raise EnvironmentUnavailable(Reason.KEYCHAIN_SESSION_BOUND, str(answer.get("plugin", "")))
