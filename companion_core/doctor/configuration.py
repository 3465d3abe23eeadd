"""The effective configuration: each value, and where it came from."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from companion_core.config.reader import parse_config, read_document
from companion_core.config.sections import SECTIONS, Config
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.findings import Finding, Row, Section, Status, broken, fine, skipped
from companion_core.doctor.redaction import shown_url
from companion_core.errors import Reason, UsageError
from companion_core.serving.default_model import with_default_model

__all__ = ["OPEN_BACKEND", "checks", "require_config"]

OPEN_BACKEND: Final = "config.runtime.unsafe_open_backend"
_MAX_NARROW: Final = 200


def check_file(situation: Situation) -> Finding:
    """Read the configuration file; the rows after this one show its values."""
    path = situation.config_file()
    named = situation.origins.get("config_file", "default") != "default"
    if not (named or os.path.lexists(path)):
        situation.config = with_default_model(Config(), situation.paths)
        return fine("there is none, so every default holds")
    document, text = read_document(path)
    config = parse_config(document, source=str(path), text=text)
    situation.config = with_default_model(config, situation.paths)
    situation.written = frozenset(
        f"{section}.{key}" for section, table in document.items() for key in table
    )
    return fine(str(path))


def check_options(situation: Situation) -> list[Row]:
    """Return the settings outside the file: command-line options and the environment."""
    values: dict[str, Callable[[], str]] = {
        "config_file": lambda: str(situation.config_file()),
        "state_dir": lambda: str(situation.paths.root),
        "instance": lambda: situation.paths.instance,
    }
    rows = []
    for name, value in values.items():
        source = situation.origins.get(name, "default")
        rows.append(_row(name.replace("_", "-"), _contained(value, source)))
    narrow = situation.environ.get("COMPANION_PLUGINS")
    found = Finding(
        status=Status.OK,
        value="all" if narrow is None else json.dumps(narrow[:_MAX_NARROW]),
        source="default" if narrow is None else "environment",
    )
    rows.append(_row("plugins-allowed", found))
    return rows


def _contained(value: Callable[[], str], source: str) -> Finding:
    try:
        return Finding(status=Status.OK, value=value(), source=source)
    except UsageError as error:
        return skipped(error.reason, error.detail)


def _row(name: str, finding: Finding) -> Row:
    return Row(id=f"option.{name}", title=name, section=Section.CONFIGURATION, finding=finding)


def check_values(situation: Situation) -> list[Row]:
    """Return a row for each key of every section."""
    return [
        Row(
            id=f"config.{section}.{key.name}",
            title=f"{section}.{key.name}",
            section=Section.CONFIGURATION,
            finding=_value(situation, section, key),
        )
        for section, table in SECTIONS.items()
        for key in dataclasses.fields(table)
    ]


def _value(situation: Situation, section: str, key: dataclasses.Field[Any]) -> Finding:
    config, name = situation.config, f"{section}.{key.name}"
    if config is None:
        return skipped(situation.rows["configuration"].reason, "needs configuration")
    value = getattr(getattr(config, section), key.name, None)  # a section may be left out
    finding = fine()
    if f"config.{name}" == OPEN_BACKEND and value:
        detail = "every local program can reach the runtime past the gateway"
        finding = broken(Reason.BACKEND_OPEN, detail, fix=f"set {name} = false in the file")
    if value is None:
        shown = _UNSET.get(name) or key.metadata["varies"] or "none"
    else:
        shown = _SHOWN.get(name, _plain)(value)
    source = "file" if name in situation.written else "default"
    return dataclasses.replace(finding, value=shown, source=source)


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _shown_options(options: Mapping[str, Any]) -> str:
    """Return the options; texts are hidden, because an option may be a secret."""
    shown = {name: "…" if isinstance(value, str) else value for name, value in options.items()}
    return json.dumps(shown, ensure_ascii=False)


# Values that are not shown in full: keys, a digest, an address with credentials or a query.
_SHOWN: Final[Mapping[str, Callable[[Any], str]]] = {
    "manifest.url": lambda url: json.dumps(shown_url(url)),
    "manifest.trusted_keys": lambda keys: f"{len(keys)} of Ed25519",
    "runtime.binary_sha256": lambda _digest: "recorded",
    "runtime.options": _shown_options,
    "keychain.options": _shown_options,
}


_UNSET: Final[Mapping[str, str]] = {"runtime.binary_sha256": "none recorded"}


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    where = Section.CONFIGURATION
    return (
        Check(id="configuration", title="configuration file", section=where, run=check_file),
        Check(id="options", title="options", section=where, run=check_options),
        Check(id="values", title="values", section=where, run=check_values),
    )


def require_config(situation: Situation) -> Config:
    """Return the configuration of a check that needs its row."""
    assert situation.config is not None  # noqa: S101 - the check needs the row "configuration"
    return situation.config
