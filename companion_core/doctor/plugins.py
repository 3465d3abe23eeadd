"""Checks of the plugins: how far each got, and what the selected ones find on this machine.

A child answered all of it (`plugin_trial.trial`); no plugin is imported in this process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from companion_core.doctor.checks import Check, PluginSurvey, Situation
from companion_core.doctor.findings import Finding, Row, Section, Status, broken, fine, skipped
from companion_core.errors import Reason
from companion_core.plugin_host import find_plugins, require_reachable
from companion_core.runtime import EMBEDDED, prove_binary
from companion_core.serving.assembly import choose_interpreter

__all__ = ["checks"]

BINARY_SECONDS: Final = 60.0
# The person does not trust them, or left them out: such plugins break nothing.
_LEFT_OUT: Final = frozenset(
    {Reason.PLUGIN_UNTRUSTED, Reason.PLUGIN_EDITABLE, Reason.PLUGIN_NARROWED}
)


def check_plugins(situation: Situation) -> list[Row]:
    """Return a row for each plugin: name, distribution, version, and how far it got."""
    situation.plugins = survey = situation.survey()
    names = Counter(document["name"] for document in survey.documents)
    rows = [_row(document, names[document["name"]]) for document in survey.documents]
    if survey.store_reason is not Reason.OK:
        found = broken(survey.store_reason, "no plugin is trusted")
    else:
        found = fine(f"{len(rows)} plugins, none of them imported in this process")
    summary = Row(id="plugins", title="plugins", section=Section.PLUGINS, finding=found)
    return [summary, *rows]


def _row(document: Mapping[str, Any], claims: int) -> Row:
    name = document["name"]
    rival = f".{document['distribution']}" if claims > 1 else ""
    return Row(
        id=f"plugin.{name}{rival}",
        title=name,
        section=Section.PLUGINS,
        finding=_finding(document),
    )


def _finding(document: Mapping[str, Any]) -> Finding:
    reason = Reason(document["reason"])
    who = f"{document['distribution']} {document['version']}, {document['state']}"
    if reason is Reason.OK:
        serves = ", ".join(document["selected_for"])
        return fine(f"{who}{f' for {serves}' if serves else ''}")
    detail = ": ".join(filter(None, [who, document["detail"]]))
    if reason in _LEFT_OUT:
        return skipped(reason, detail, fix=document["fix"])
    return broken(reason, detail, fix=document["fix"])


def check_sides(situation: Situation) -> Finding:
    """Require that no distribution is on both sides (I-14)."""
    sides: dict[str, set[str]] = {}
    for document in _survey(situation).documents:
        if not document["core"]:
            sides.setdefault(document["distribution"], set()).add(document["side"])
    both = sorted(name for name, found in sides.items() if len(found) > 1)
    if both:
        return broken(Reason.PLUGIN_BOTH_SIDES, ", ".join(both), fix=f"pip uninstall {both[0]}")
    return fine(f"{len(sides)} distributions, each on one side")


def check_keychain(situation: Situation) -> Finding:
    """Say whether the selected keychain can be used and returns what was stored (I-13)."""
    answer = _answer(situation, "keychain")
    if answer["reason"] != Reason.OK.value:
        return _refused(answer)
    if not answer["proved"]:
        return broken(Reason.KEYCHAIN_UNTRUSTED, answer["plugin"])
    about = [f"{answer['plugin']}: a test value was written, read and deleted"]
    if answer["session_bound"]:
        about.append("usable while the desktop session lasts")
    if answer["device_only"]:
        about.append("stays on this device")
    return fine("; ".join(about))


def check_runtime(situation: Situation) -> Finding:
    """Say which runtime is selected and which programs it finds on this machine."""
    answer = _answer(situation, "runtime")
    if answer["reason"] != Reason.OK.value:
        return _refused(answer)
    found = [
        f"{label} {version}".strip() + ("" if path == EMBEDDED else f" at {path}")
        for path, label, version in answer["binaries"]
    ]
    formats = ", ".join(answer["formats"])
    config = situation.config
    if not found and (config is None or config.runtime.binary is None):
        return broken(Reason.RUNTIME_NOT_FOUND, answer["plugin"])
    return fine(f"{answer['plugin']} for {formats}: {'; '.join(found) or 'finds no program'}")


def check_binary(situation: Situation) -> Finding:
    """Prove that nobody else can replace the program to start, and that it is unchanged (I-05)."""
    section = situation.config.runtime if situation.config is not None else None
    binary = section.binary if section is not None else None
    if section is None or binary is None or binary == EMBEDDED:
        runtime = situation.rows["runtime"]
        if runtime.status is not Status.OK:
            return skipped(runtime.reason, "needs runtime")
        offered = {path for path, _, _ in _answer(situation, "runtime")["binaries"]}
        if EMBEDDED not in offered:
            return broken(Reason.RUNTIME_NOT_FOUND, "set runtime.binary")
        interpreter = choose_interpreter(situation.config, situation.egress)
        prove_binary(EMBEDDED, interpreter=interpreter)
        plugin = _answer(situation, "runtime")["plugin"]
        for found in find_plugins():
            if found.name == plugin:
                require_reachable(situation.egress, found.distribution, found.site, interpreter)
        return fine("embedded: a module of the plugin, whose files are hashed")
    prove_binary(binary, section.binary_sha256)
    return fine(f"{binary}: nobody else can replace it, and it is the one recorded")


def _refused(answer: Mapping[str, Any]) -> Finding:
    detail = ": ".join(filter(None, [answer["plugin"], answer["detail"]]))
    return broken(Reason(answer["reason"]), detail)


def _survey(situation: Situation) -> PluginSurvey:
    assert situation.plugins is not None  # noqa: S101 - these checks need the row "plugins"
    return situation.plugins


def _answer(situation: Situation, side: str) -> Mapping[str, Any]:
    answers = _survey(situation).answers
    if answers is None:
        return {
            "plugin": "",
            "reason": Reason.PROVIDER_MISSING.value,
            "detail": f"{side}: no plugin could be asked",
            "binaries": [],
        }
    answer: Mapping[str, Any] = answers[side]
    return answer


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.PLUGINS, needs=("plugins",))
    return (
        Check(
            id="plugins", title="plugins", section=Section.PLUGINS, run=check_plugins, seconds=None
        ),
        check(id="sides", title="the two sides", run=check_sides),
        check(id="keychain", title="keychain", run=check_keychain),
        check(id="runtime", title="runtime", run=check_runtime),
        check(
            id="binary",
            title="runtime's program",
            run=check_binary,
            needs=(),
            seconds=BINARY_SECONDS,
        ),
    )
