"""Rules for this file: what a configuration should say of what was found on this machine.

Pure: it takes what was found and what the person wrote, and returns keys to add. It imports the
tables of the configuration and the errors alone. A key that the person wrote is never proposed
again; what is odd about one is told in a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from companion_core.config.edit import NewKey
from companion_core.config.sections import Config
from companion_core.errors import REASONS, Reason

__all__ = ["EMBEDDED", "Found", "FoundKeychain", "FoundProgram", "new_file", "propose"]

EMBEDDED: Final = "embedded"
MEMORY: Final = "memory"
# Nothing here keeps secrets; any other reason is one that the person can put right.
_NO_KEYCHAIN: Final = frozenset({Reason.KEYCHAIN_ABSENT, Reason.PROVIDER_MISSING})

_HEAD: Final = """\
# What the companion serves, and with what. `companion init` wrote this; it is yours to change.
# Every key may be left out. `companion doctor` shows the value of each and where it came from,
# and docs/configuration.md lists them all.

[runtime]
"""
_TAIL: Final = """
[keychain]

[model]
# What is served where nothing else is named; left out: your default model, or your only one.
# id = "..."
"""
_PUBLISHER: Final = """
# The models of a publisher: where the signed manifest is, and which keys may sign it.
# [manifest]
# url = "https://models.example.org/companion/manifest.json"
# trusted_keys = ["ed25519:..."]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundProgram:
    """A program that a runtime's plugin found.

    Attributes:
        plugin: which would start it.
        path: absolute, or "embedded".
        label: the plugin's name for it, with its version.
        sha256: of its bytes; None for the embedded one.
    """

    plugin: str
    path: str
    label: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKeychain:
    """The keychain that would be chosen, and whether it can be used now."""

    plugin: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is on this machine.

    Attributes:
        programs: of every trusted runtime, none of which others can replace.
        keychain: of this system.
        key_file: where the key of a person's own models lies if there is no keychain.
        recorded: the SHA-256 of the program that the configuration names; None if it names none.
    """

    programs: Sequence[FoundProgram]
    keychain: FoundKeychain
    key_file: str
    recorded: str | None = None

    def fitting(self, config: Config) -> list[FoundProgram]:
        """Return the programs that agree with the configuration, the best one first."""
        section = config.runtime
        fitting = [
            program
            for program in self.programs
            if section.name in {None, program.plugin} and section.binary in {None, program.path}
        ]
        return sorted(fitting, key=lambda program: (program.path != EMBEDDED, program.plugin))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What to add to a configuration, and what to tell the person."""

    keys: tuple[NewKey, ...]
    notes: tuple[str, ...]


def propose(config: Config, found: Found) -> Proposal:
    """Return what the configuration lacks of what was found."""
    notes = [*_runtime_notes(config, found), *_keychain_notes(config, found)]
    return Proposal(keys=(*_runtime(config, found), *_keychain(config, found)), notes=tuple(notes))


def new_file(config: Config, found: Found, *, publisher: bool) -> str:
    """Return the text of a new file, to which the proposed keys are still to be added.

    Args:
        config: what holds without a file.
        found: what is on this machine.
        publisher: a manifest is among the keys, so that no example of one is needed.
    """
    others = [
        line
        for program in found.fitting(config)[1:]
        for line in (
            f"# Found too: {program.label}",
            *(f"# {line}" for key in _program(program) for line in key.lines()),
        )
    ]
    return "\n".join([_HEAD.rstrip(), *others, _TAIL]) + ("" if publisher else _PUBLISHER)


def _program(program: FoundProgram) -> Iterator[NewKey]:
    yield NewKey(section="runtime", name="name", value=program.plugin)
    yield NewKey(section="runtime", name="binary", value=program.path)
    if program.sha256 is not None:
        yield NewKey(section="runtime", name="binary_sha256", value=program.sha256)


def _runtime(config: Config, found: Found) -> Iterator[NewKey]:
    section, fitting = config.runtime, found.fitting(config)
    if fitting and section.name is None:
        yield NewKey(
            section="runtime",
            name="name",
            value=fitting[0].plugin,
            comment="The plugin that plans how the runtime is started.",
        )
    if fitting and section.binary is None:
        program = fitting[0]
        yield NewKey(
            section="runtime",
            name="binary",
            value=program.path,
            comment=f"The program that it starts: {program.label}.",
        )
    digest = found.recorded if section.binary is not None else None
    if section.binary is None and fitting:
        digest = fitting[0].sha256
    if section.binary_sha256 is None and digest is not None:
        yield NewKey(
            section="runtime",
            name="binary_sha256",
            value=digest,
            comment="Of that program; after an upgrade, `companion init --accept-runtime` "
            "records the new one.",
        )


def _runtime_notes(config: Config, found: Found) -> Iterator[str]:
    section = config.runtime
    if found.recorded is not None and section.binary_sha256 not in {None, found.recorded}:
        yield (
            f"{section.binary} is not the program that was recorded; if you upgraded it, "
            "companion init --accept-runtime records the new one"
        )


def _keychain(config: Config, found: Found) -> Iterator[NewKey]:
    name, reason = config.keychain.name, found.keychain.reason
    absent = name is None and reason in _NO_KEYCHAIN
    if absent:
        yield NewKey(
            section="keychain",
            name="name",
            value=MEMORY,
            comment="No keychain answered here: secrets live as long as the companion's process.",
        )
    elif name is None and found.keychain.plugin:
        yield NewKey(
            section="keychain",
            name="name",
            value=found.keychain.plugin,
            comment="Where secrets are kept.",
        )
    if (absent or name == MEMORY) and config.models.key_file is None:
        yield NewKey(
            section="models",
            name="key_file",
            value=found.key_file,
            comment="The key that signs for models of your own; COMPANION_KEY_PASSPHRASE "
            "encrypts it.",
        )


def _keychain_notes(config: Config, found: Found) -> Iterator[str]:
    reason = found.keychain.reason
    if reason is Reason.OK or config.keychain.name == MEMORY:
        return
    if reason in _NO_KEYCHAIN and config.keychain.name is None:
        yield (
            'no keychain answers here: keychain.name = "memory" keeps secrets as long as the '
            "companion runs, and models.key_file keeps the key that signs for your own models"
        )
    else:
        yield f"keychain: {reason.value}: {REASONS[reason].advice}"
