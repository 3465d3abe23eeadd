"""Rules for this file: what a person may set in [runtime.options], checked value by value. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from companion_core.errors import Reason
from companion_core.providers import CannotPlan

__all__ = ["OPTION_NAMES", "Options", "read_options"]

_MOST_LAYERS: Final = 9999
_MOST_THREADS: Final = 1024
_MOST_BATCH: Final = 65536
OPTION_NAMES: Final = frozenset(
    {
        "batch_size",
        "embeddings",
        "flash_attention",
        "gpu_layers",
        "prompt_threads",
        "ubatch_size",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The person's settings; None leaves one to llama.cpp.

    Attributes:
        batch_size: tokens of prompts that are taken up at once.
        ubatch_size: tokens that are computed at once.
        prompt_threads: that read prompts; `runtime.threads` generate.
    """

    batch_size: int | None
    embeddings: bool
    flash_attention: bool | None
    gpu_layers: int | None
    prompt_threads: int | None
    ubatch_size: int | None


def read_options(values: Mapping[str, str | int | float | bool]) -> Options:
    """Return the settings.

    Raises:
        CannotPlan: `unknown_option` for a value that an option does not take.
    """
    return Options(
        batch_size=_number(values, "batch_size", 1, _MOST_BATCH),
        embeddings=bool(_flag(values, "embeddings")),
        flash_attention=_flag(values, "flash_attention"),
        gpu_layers=_number(values, "gpu_layers", 0, _MOST_LAYERS),
        prompt_threads=_number(values, "prompt_threads", 1, _MOST_THREADS),
        ubatch_size=_number(values, "ubatch_size", 1, _MOST_BATCH),
    )


def _flag(values: Mapping[str, str | int | float | bool], name: str) -> bool | None:
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CannotPlan(Reason.UNKNOWN_OPTION)


def _number(
    values: Mapping[str, str | int | float | bool], name: str, least: int, most: int
) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CannotPlan(Reason.UNKNOWN_OPTION)
    return value
