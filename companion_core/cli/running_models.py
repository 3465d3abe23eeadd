"""Which models the running companions of a state folder have: all instances share its store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from companion_core.cli import Settings
from companion_core.config.paths import InstancePaths
from companion_core.control.client import ask_running
from companion_core.decisions.lifecycle import State
from companion_core.errors import CompanionError, Reason, UsageError

__all__ = ["RunningModel", "running_models"]


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A model that a companion has, or is about to have."""

    id: str
    state: Literal["ready", "loading"]
    instance: str


def running_models(settings: Settings) -> list[RunningModel]:
    """Ask each running companion.

    Raises:
        CompanionError: one runs and does not answer, so that its model is not known.
    """
    return [
        model
        for paths in _instances(settings.paths)
        if (status := _status(paths, settings)) is not None
        for model in _models_of(status, paths.instance)
    ]


def _instances(paths: InstancePaths) -> Iterator[InstancePaths]:
    for folder in sorted((paths.root / "instances").glob("*")):
        try:
            yield dataclasses.replace(paths, instance=folder.name)
        except UsageError:
            continue  # no companion has that name


def _status(paths: InstancePaths, settings: Settings) -> dict[str, Any] | None:
    try:
        return ask_running(paths, settings.egress, "status")
    except CompanionError as error:
        if error.reason is Reason.NOT_RUNNING:
            return None
        raise


def _models_of(status: dict[str, Any], instance: str) -> Iterator[RunningModel]:
    match status.get("model"):
        case {"id": str(model_id)}:
            ready = status.get("lifecycle") == State.READY.value
            yield RunningModel(model_id, "ready" if ready else "loading", instance)
    match status.get("swap"):
        case {"model": str(model_id)}:
            yield RunningModel(model_id, "loading", instance)
