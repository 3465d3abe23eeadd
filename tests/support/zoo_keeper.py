"""Writes the animals' wheels as a build tool does, and is the child that loads them.

python zoo_keeper.py < REQUEST > REPORT     (the child; REQUEST as in `testing.trial`)
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo_animals import RUNTIME, Animal

from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError
from companion_core.plugin_host import LoadedPlugins, Role, call_provider_sync, load_plugins
from companion_core.plugin_trial import child as trial
from companion_core.providers import CannotPlan, HealthResponse
from companion_core.serving import assembly
from companion_core.testing import TCP, UNIX, accepted_plan, spawn_request

HURRY_SECONDS = (
    3.0  # three animals sleep that long; the others need a moment, on a busy machine too
)


def write_wheel(folder: Path, animal: Animal) -> Path:
    """Write the wheel of one animal (binary distribution format, PEP 427)."""
    distribution = animal.distribution or f"zoo-{animal.name}"
    stem = f"{distribution.replace('-', '_')}-{animal.version}"
    info = f"{stem}.dist-info"
    points = {animal.group: f"{animal.name} = {animal.module or animal.package}", **animal.more}
    files = {
        f"{animal.package}/__init__.py": animal.text,
        **animal.files,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {animal.version}\n"
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "".join(f"[{k}]\n{v}\n" for k, v in points.items()),
    }
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", _record(files, info))
    return wheel


def _record(files: Mapping[str, str], info: str) -> str:
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        rows.append(f"{path},sha256={digest.rstrip(b'=').decode()},{len(text.encode())}\n")
    return "".join([*rows, f"{info}/RECORD,,\n"])


def twins(animals: Iterable[Animal]) -> list[Animal]:
    """Return the animals and, for the one that needs it, a rival of the same name."""
    rival = Animal(name="twin", distribution="zoo-twin-b", files={"zoo_twin_b.py": ""})
    return [*animals, rival, Animal(name="neighbour", group=RUNTIME)]


def plan_of(loaded: LoadedPlugins, name: str) -> str:
    """Ask for a plan as the core does, on both channels; return why it is refused."""
    spawner = loaded.providers(Role.SPAWN)[name]
    for channel in (UNIX, TCP):
        request = spawn_request(channel=channel)
        try:
            plan = call_provider_sync(name, spawner.plan, request, seconds=HURRY_SECONDS)
        except (CompanionError, CannotPlan) as error:
            return error.reason.value
        accepted = accepted_plan(spawner, plan, request, embedded_modules=frozenset())
        if isinstance(accepted, Verdict):
            return accepted.reason.value
    return "ok"


def health_of(loaded: LoadedPlugins, name: str) -> bool:
    """Judge a good answer as the gateway does: only exactly True is healthy."""
    response = HealthResponse(status=200, body=b"", served_model="zoo")
    judge = loaded.providers(Role.HEALTH)[name].judge
    try:
        return call_provider_sync(name, judge, response, seconds=HURRY_SECONDS) is True
    except CompanionError:
        return False


def main() -> None:
    """Load the animals, and report what became of each."""
    request = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # The child takes no deadline for an import: animals that sleep would cost ten seconds each.
    assembly.load_plugins = functools.partial(load_plugins, load_seconds=HURRY_SECONDS)
    meetings = {}
    real = trial.load_every_plugin

    def load(*args: Any, **options: Any) -> LoadedPlugins:
        meetings["loaded"] = real(*args, **options)
        return meetings["loaded"]

    trial.load_every_plugin = load
    answer = trial.report_on(request)
    loaded = meetings["loaded"]
    answer["plans"] = {name: plan_of(loaded, name) for name in loaded.providers(Role.SPAWN)}
    answer["healthy"] = {name: health_of(loaded, name) for name in loaded.providers(Role.HEALTH)}
    os.write(report, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
