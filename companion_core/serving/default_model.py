"""Which model is served where none is named: the person's default, or their only one.

The choice needs no proof. What is chosen is proved before it is served, like any other.
"""

from __future__ import annotations

from typing import Final

from companion_core.authority.personal_manifest import claimed_ids
from companion_core.config.paths import InstancePaths
from companion_core.config.reader import with_model
from companion_core.config.sections import Config, is_model_id
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["default_model", "set_default_model", "with_default_model"]

_MAX_BYTES: Final = 256


def with_default_model(config: Config, paths: InstancePaths) -> Config:
    """Return the configuration with a model in it, if there is one to choose."""
    if config.model.id is not None:
        return config
    chosen = default_model(paths)
    return config if chosen is None else with_model(config, chosen)


def default_model(paths: InstancePaths) -> str | None:
    """Return the id of the default model, or of the only one; None if there is neither.

    Raises:
        Refused: `state_path_unsafe`: others can change what the person chose.
    """
    raw = read_private(paths.default_model, _MAX_BYTES)
    if raw is not None:
        text = raw.decode(errors="replace").strip()
        return text if is_model_id(text) else None
    ids = claimed_ids(paths.own_manifest)
    return ids[0] if len(ids) == 1 and is_model_id(ids[0]) else None


def set_default_model(paths: InstancePaths, model_id: str | None) -> None:
    """Remember which model is the default one; None forgets it.

    Raises:
        Refused: `state_path_unsafe`.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    private_folder(paths.default_model.parent)
    if model_id is None:
        paths.default_model.unlink(missing_ok=True)
    else:
        write_private(paths.default_model, f"{model_id}\n".encode("ascii"))
