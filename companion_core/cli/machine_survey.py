"""What `companion init` finds on this machine: the runtimes' programs, and the keychain.

Children import the plugins and look on PATH (`plugin_trial`); nothing else ever does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from companion_core.cli import Settings
from companion_core.cli.plugin_facts import PluginCatalog
from companion_core.config.proposal import EMBEDDED, Found, FoundKeychain, FoundProgram
from companion_core.config.sections import Config
from companion_core.errors import CompanionError, Reason
from companion_core.runtime import digest_binary
from companion_core.system.plain_paths import plain_file

__all__ = ["Survey", "survey_machine"]

_SPAWN: Final = "companion_spawn"
_RUNTIME: Final = "runtime"
_UNTRUSTED: Final = frozenset({Reason.PLUGIN_UNTRUSTED, Reason.PLUGIN_EDITABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found, and what could not be used of it.

    Attributes:
        notes: sentences for the person.
    """

    found: Found
    notes: tuple[str, ...]


def survey_machine(settings: Settings, config: Config) -> Survey:
    """Ask every trusted runtime and the keychain what they find here. Blocking.

    Raises:
        CompanionError: the trust store cannot be read, or others can replace the program that
            the configuration names.
    """
    catalog = PluginCatalog(settings)
    scope = settings.paths.keychain_scope
    documents = catalog.documents(ask=scope)
    notes = [*_untrusted(documents)]
    programs: list[FoundProgram] = []
    for document in documents:
        if _SPAWN not in document["hooks"] or document["reason"] != Reason.OK.value:
            continue
        name = document["name"]
        trial = dataclasses.replace(catalog.trial(), runtime=name)
        report = trial.run([name], ask=scope) or {}
        programs += _programs(name, (report.get("answers") or {}).get(_RUNTIME), notes)
    answer = (catalog.answers or {}).get("keychain") or {}
    keychain = FoundKeychain(
        plugin=answer.get("plugin", ""),
        reason=Reason(answer.get("reason", Reason.PROVIDER_MISSING.value)),
    )
    binary = config.runtime.binary
    stands_alone = binary is not None and binary != EMBEDDED
    found = Found(
        programs=programs,
        keychain=keychain,
        key_file=str(settings.paths.own_manifest.with_name("key.pem")),
        recorded=digest_binary(plain_file(str(binary))) if stands_alone else None,
    )
    return Survey(found=found, notes=tuple(notes))


def _programs(
    plugin: str, answer: Mapping[str, Any] | None, notes: list[str]
) -> Iterator[FoundProgram]:
    """Yield what a plugin found and nobody else can replace; note the others."""
    for path, label, version in (answer or {"binaries": []})["binaries"]:
        named = f"{label} {version}".strip()
        if path == EMBEDDED:
            yield FoundProgram(plugin=plugin, path=path, label=named)
        elif not os.path.isabs(path):  # noqa: PTH117 - a text of a plugin
            notes.append(f"{named} at {path} is left out: PATH has a relative folder")
        else:
            try:
                digest = digest_binary(plain_file(path))
            except CompanionError as error:
                notes.append(f"{named} is left out: {error.reason.value}: {error.detail}")
            else:
                yield FoundProgram(plugin=plugin, path=plain_file(path), label=named, sha256=digest)


def _untrusted(documents: list[dict[str, Any]]) -> Iterator[str]:
    for document in documents:
        if document["side"] == _RUNTIME and document["reason"] in _UNTRUSTED:
            yield f"{document['name']} is installed and not trusted: {document['fix']}"
