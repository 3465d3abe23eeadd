"""What is proved of a start as late as can be, and what its child proves itself (I-01, I-05)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from companion_core.plugin_host import PINNED_IMPORTS, RuntimeCode
from companion_core.providers import SpawnPlan
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.runtime.start.plan import StartSpec

__all__ = ["prove_all", "prove_code", "with_pinned_imports"]


def prove_all(
    spec: StartSpec, binary: ProvedBinary, plan: SpawnPlan, cancelled: threading.Event
) -> None:
    """Prove the model, the plugin's code, the libraries and the program. Blocking.

    Args:
        spec: what is started.
        binary: as it was proved before the plan was asked for.
        plan: names what else the program loads.
        cancelled: ends the work at the next block of the model.

    Raises:
        CompanionError: as each proof says.
    """
    spec.model.prove_again(cancelled)
    prove_code(spec, cancelled)
    spec.libraries.prove(binary, plan.read_paths)
    binary.require_unchanged()


def prove_code(spec: StartSpec, _cancelled: threading.Event) -> None:
    """Prove the files of the plugin, and what an embedded runtime needs besides. Blocking.

    Raises:
        CompanionError: `plugin_changed`, `runtime_changed`.
    """
    if spec.code is not None:
        spec.code.prove()


def with_pinned_imports(
    argv: Sequence[str], code: RuntimeCode | None, folder: Path
) -> tuple[str, ...]:
    """Return an embedded plan's command that imports the plugin from its trusted bytes alone.

    Whatever lies in the plugin's folders by the time that the child imports it.

    Args:
        argv: the interpreter, `-I`, `-m`, the module and its arguments.
        code: of the plugin; None where that is not installed, and nobody trusted its files.
        folder: of this start; the list of the files is put there, and the child gets its digest.
    """
    if code is None:
        return tuple(argv)
    interpreter, isolated, _, module, *arguments = argv
    listing = folder / "code.list"
    listing.write_bytes(code.listing)
    pinned = (PINNED_IMPORTS, code.digest, str(listing), code.root)
    return (interpreter, isolated, *pinned, module, *arguments)
