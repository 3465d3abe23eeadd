"""The child process that imports plugins, so that what they do ends with it.

    python -P -m companion_core.plugin_trial.child < REQUEST > REPORT

REQUEST is a JSON object: the `records` of trust, the `names` that may load, the configured
`runtime`, `keychain` and `keychain_options`; `check`, a plugin to run the conformance kit on, or
null; and `ask`, the keychain scope for which the selected providers are asked what they find here,
or null.
REPORT says how far each plugin got. The child is not a sandbox: a plugin has the person's
rights here too, and could forge its own report.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from companion_core.egress.refusing import RefusingEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.plugin_host import KeychainOptions, LoadedPlugins, PluginState, TrustRecord
from companion_core.plugin_trial.provider_answers import ask_providers
from companion_core.serving.assembly import load_every_plugin
from companion_core.system.lacks import is_lack, lack_of
from companion_core.testing.plugin_kit import check_plugin

__all__ = ["report_on"]


def report_on(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load what the request names, and return the report."""
    os.environ["COMPANION_PLUGINS"] = ",".join(request["names"])
    records = {row["name"]: TrustRecord(**row) for row in request["records"]}
    loaded = load_every_plugin(
        RefusingEgress(),
        lambda: build_tls_context(None),
        records,
        keychain=KeychainOptions(
            name=request["keychain"], values=request.get("keychain_options", {})
        ),
    )
    selected = dict(_select(loaded, request))
    report: dict[str, Any] = {
        "plugins": [_row(plugin, selected) for plugin in loaded.plugins],
        "checked": None,
        "answers": None,
    }
    if request["check"] is not None:
        report["checked"] = _check(loaded, request["check"])
    if request.get("ask") is not None:
        report["answers"] = ask_providers(
            loaded, request["ask"], runtime=request["runtime"], keychain=request["keychain"]
        )
    return report


def _row(plugin: PluginState, selected: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "group": plugin.group,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "core": plugin.core,
        "state": plugin.state.value,
        "reason": plugin.reason.value,
        "detail": plugin.detail,
        "hooks": sorted(role.hook for role in plugin.roles),
        "selected_for": []
        if plugin.reason.value != "ok"
        else sorted(role for role, name in selected.items() if name == plugin.name),
    }


def _select(loaded: LoadedPlugins, request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each role that can be filled, and the plugin that would fill it."""
    with contextlib.suppress(CompanionError):
        runtime = loaded.select_runtime(request["runtime"])
        for role in ("spawn", "health", "download", "probe"):
            yield role, getattr(runtime, role).plugin
    with contextlib.suppress(CompanionError):
        yield "keychain", loaded.select_keychain(request["keychain"]).plugin


def _check(loaded: LoadedPlugins, name: str) -> dict[str, Any]:
    try:
        result = check_plugin(loaded, name)
    except AssertionError as error:
        empty = {"passed": [], "untried": [], "reason": Reason.OK.value}
        return {**empty, "failure": _printable(str(error))}
    return {
        "passed": result.passed,
        "untried": [_printable(text) for text in result.untried],
        "reason": result.reason.value,
        "failure": "",
    }


def _printable(text: str) -> str:
    """Return what may reach a terminal of a text that quotes the plugin's answer."""
    return text.encode("unicode_escape").decode("ascii")


def main() -> NoReturn:
    """Answer the request on standard input, then end every thread that a plugin left."""
    request = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    # A plugin that prints or reads must not reach the report or the request.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    os.write(report, json.dumps(_report_or_lack(request)).encode())
    os._exit(0)


def _report_or_lack(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report; in its place what the environment lacks, for which no plugin is blamed."""
    try:
        return report_on(request)
    except Exception as error:
        lack = error if isinstance(error, EnvironmentUnavailable) else None
        if lack is None and is_lack(error):
            lack = lack_of(error)
        if lack is None:
            raise
        return {"lack": {"reason": lack.reason.value, "detail": _printable(lack.detail)}}


if __name__ == "__main__":
    main()
