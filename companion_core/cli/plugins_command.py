"""`companion plugins`: list, trust and check plugins, and write a new one for its author.

No plugin is imported in this process; a child process imports those that have to be tried.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.plugin_facts import Document, PluginCatalog, refusal, refusal_of
from companion_core.cli.suggestions import plugin_names
from companion_core.errors import PluginFault, Reason, UsageError
from companion_core.plugin_host import (
    CheckRecord,
    FoundPlugin,
    PluginState,
    State,
    TrustRecord,
    parse_digest,
    record_of,
)
from companion_core.plugin_trial.trial import CHECK_SECONDS, row_of
from companion_core.system.harmless_text import harmless

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
_SHOWN_FILES = 20


@click.group("plugins")
def command() -> None:
    """Say which plugins are installed, trusted and used, and why not."""


@command.command("list")
@_as_json
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every plugin: how far it got, why no further, and what to do."""
    catalog = PluginCatalog(settings, strict=False)
    documents = catalog.documents()
    lines = [_line(document) for document in documents]
    if catalog.store_reason is not Reason.OK:
        lines.append(f"no plugin is trusted: {catalog.store_reason}")
    plugins = [{k: v for k, v in row.items() if k != "files"} for row in documents]
    document = {"store": catalog.store_reason.value, "plugins": plugins}
    echo_result(document, "\n".join(lines), as_json=as_json)


@command.command("info")
@click.argument("name", shell_complete=plugin_names)
@_as_json
@click.pass_obj
def info(settings: Settings, *, name: str, as_json: bool) -> None:
    """Show everything that is known of the plugin NAME."""
    catalog = PluginCatalog(settings, strict=False)
    claims = [row for row in catalog.documents() if row["name"] == name]
    if not claims:
        raise refusal_of(Reason.PLUGIN_NOT_FOUND, name)
    text = "\n\n".join(_facts(row) for row in claims)
    echo_result({"store": catalog.store_reason.value, "plugins": claims}, text, as_json=as_json)


@command.command("trust")
@click.argument("name", shell_complete=plugin_names)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--editable", is_flag=True, help="Trust the present state of a linked source tree.")
@click.option(
    "--digest",
    metavar="HEX",
    help="Trust only code with this SHA-256, as companion plugins info shows it.",
)
@_as_json
@click.pass_obj
def trust(
    settings: Settings, *, name: str, yes: bool, editable: bool, digest: str | None, as_json: bool
) -> None:
    """Trust the code of the plugin NAME as it is installed now.

    It is imported once, in a child with a deadline; if that fails, it is not trusted. From
    then on it runs inside the companion with your rights, and nothing contains a hostile one.
    """
    catalog = PluginCatalog(settings)
    found, state = catalog.only(name)
    if digest is not None:
        _require_digest(found, digest)
    if state.state is State.TRUSTED:
        already = {"ok": True, "name": name, "already": True}
        echo_result(already, f"{name} is trusted already", as_json=as_json)
        return
    document = trust_plugin(catalog, found, state, editable=editable, yes=yes)
    who = f"{name} of {document['distribution']} {document['version']}"
    echo_result(document, f"{who} is trusted: {', '.join(document['hooks'])}", as_json=as_json)


def trust_plugin(
    catalog: PluginCatalog,
    found: FoundPlugin,
    state: PluginState,
    *,
    editable: bool = False,
    yes: bool = False,
) -> Document:
    """Show a plugin, ask the person, try it, and trust it as it is installed now.

    Raises:
        CompanionError: why it cannot be trusted, or that nobody can be asked.
        Abort: the person said no.
    """
    name = found.name
    if found.editable and not editable:
        raise refusal_of(Reason.PLUGIN_EDITABLE, name)
    record = record_of(found)
    reason = catalog.judge_with(record)
    if reason is not Reason.OK:
        raise refusal_of(reason, name, state.detail)
    _confirm(state, record, yes=yes)
    row = row_of(catalog.trial(record).run([name]), name)
    if row["reason"] != Reason.OK.value:
        raise refusal_of(Reason(row["reason"]), name, row["detail"])
    catalog.store.trust(record)
    return {
        "ok": True,
        "name": name,
        "already": False,
        "distribution": record.distribution,
        "version": record.version,
        "digest": record.digest,
        "hooks": row["hooks"],
    }


@command.command("untrust")
@click.argument("name", shell_complete=plugin_names)
@_as_json
@click.pass_obj
def untrust(settings: Settings, *, name: str, as_json: bool) -> None:
    """Stop trusting the plugin NAME."""
    catalog = PluginCatalog(settings)
    known = catalog.store.untrust(name)
    pinned = any(state.pinned for _, state in catalog.plugins if state.name == name)
    text = f"{name} is no longer trusted" if known else f"{name} was not trusted by you"
    if pinned:
        text += "; plugins.pins_file still pins it, and COMPANION_PLUGINS can leave it out"
    document = {"ok": True, "name": name, "was_trusted": known, "pinned": pinned}
    echo_result(document, text, as_json=as_json)


@command.command("check")
@click.argument("name", shell_complete=plugin_names)
@_as_json
@click.pass_obj
def check(settings: Settings, *, name: str, as_json: bool) -> None:
    """Run the conformance kit on the trusted plugin NAME and remember the result.

    The result is bound to the code's digest. A keychain is checked for real, under two
    accounts of the check's own. A runtime that is installed here is started with a tiny model.
    """
    from companion_core.testing.rulebook import KIT_VERSION  # noqa: PLC0415 - only `check` needs it

    catalog = PluginCatalog(settings)
    found, state = catalog.only(name)
    if state.state is not State.TRUSTED:
        raise refusal(state)
    report = catalog.trial().run([name], check=name, seconds=CHECK_SECONDS)
    row = row_of(report, name)
    if report is None or row["reason"] != Reason.OK.value:
        raise refusal_of(Reason(row["reason"]), name, row["detail"])
    checked = report["checked"]
    passed, untried, failure = checked["passed"], checked["untried"], checked["failure"]
    reason = Reason(checked["reason"])
    catalog.store.remember_check(
        name,
        CheckRecord(
            digest=found.digest or "",
            kit=KIT_VERSION,
            passed=tuple(passed),
            failure=failure,
            untried=tuple(untried),
            reason=reason.value,
        ),
    )
    if failure:
        raise PluginFault(Reason.PLUGIN_NONCONFORMANT, name, f"{name}: {failure}")
    if reason is not Reason.OK:
        raise refusal_of(reason, name, "\n".join(untried))
    document = {
        "ok": True,
        "name": name,
        "kit": KIT_VERSION,
        "passed": passed,
        "untried": untried,
    }
    lines = [f"{name} passes the conformance kit {KIT_VERSION}: {', '.join(passed)}"]
    lines += [f"  not tried: {text}" for text in untried]
    echo_result(document, "\n".join(lines), as_json=as_json)


@command.command("new")
@click.argument("kind", type=click.Choice(["runtime", "keychain"]))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="The folder that the new one is made in.",
)
@_as_json
def new(kind: str, name: str, into: Path, as_json: bool) -> None:
    """Write the distribution of a new plugin NAME that passes the conformance kit."""
    from companion_core.cli.plugin_template import write_plugin  # noqa: PLC0415 - only `new` needs it

    folder, files = write_plugin(kind, name, into)
    document = {"ok": True, "path": str(folder), "files": files}
    text = "\n".join([f"{folder}:", *(f"  {file}" for file in files)])
    echo_result(document, text, as_json=as_json)


def _require_digest(found: FoundPlugin, digest: str) -> None:
    """Require that the installed code is the code that the person means.

    Raises:
        UsageError: `usage`, if `digest` is no SHA-256.
        PluginFault: `plugin_changed`, with both digests.
    """
    expected = parse_digest(digest)
    if expected is None:
        raise UsageError(Reason.USAGE, "--digest is a SHA-256: 64 hexadecimal digits")
    if found.digest != expected:
        detail = f"SHA-256 {found.digest} is installed, and {expected} was expected"
        raise refusal_of(Reason.PLUGIN_CHANGED, found.name, detail)


def _confirm(state: PluginState, record: TrustRecord, *, yes: bool) -> None:
    """Show what is about to be trusted, and ask."""
    changed = "".join(f"\n  {change}" for change in state.changes)
    facts = (
        f"{record.name}: {record.distribution} {record.version}, {len(record.files)} files\n"
        f"  SHA-256 {record.digest}{changed}"
    )
    click.echo(harmless(facts), err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(Reason.USAGE, "no terminal to ask on; look at these facts, then add --yes")
    question = "It will run with your rights inside the companion. Trust it?"
    click.confirm(question, abort=True, err=True)


def _line(row: Document) -> str:
    who = f"{row['name']:16} {row['state']:11} {row['distribution']} {row['version']}"
    if row["editable"]:
        who += " (editable)"
    if row["reason"] != Reason.OK.value:
        why = ": ".join(filter(None, [row["reason"], row["detail"]]))
        return f"{who}\n  {why}" + (f"\n  fix: {row['fix']}" if row["fix"] else "")
    serves = ", ".join(row["selected_for"] or row["hooks"])
    return f"{who}  {serves}" if serves else who


def _facts(row: Document) -> str:
    shown = {
        "state": row["state"],
        "reason": row["reason"],
        "detail": row["detail"],
        "what to do": row["advice"],
        "fix": row["fix"],
        "distribution": f"{row['distribution']} {row['version']}",
        "module": row["module"],
        "digest": row["digest"] or "",
        "side": row["side"],
        "editable": "yes" if row["editable"] else "",
        "pinned": "by plugins.pins_file" if row["pinned"] else "",
        "hooks": ", ".join(row["hooks"]),
        "selected for": ", ".join(row["selected_for"]),
        "conformance": _conformance(row["conformance"]),
    }
    lines = [row["name"], *(f"  {name:14} {value}" for name, value in shown.items() if value)]
    files = row["files"]
    lines += [f"  file           {file}" for file in files[:_SHOWN_FILES]]
    if len(files) > _SHOWN_FILES:
        lines.append(f"  and {len(files) - _SHOWN_FILES} more")
    return "\n".join(lines)


def _conformance(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    told = [f"{result['result']}, kit {result['kit']} {result['rule']}".rstrip()]
    told += [f"not tried: {text}" for text in result["untried"]]
    return "; ".join(told)
