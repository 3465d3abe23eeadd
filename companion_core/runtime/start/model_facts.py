"""What a model's own file says of it, and the context with which it fits into this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from companion_core.decisions.fit import Fit, footprint_of, judge_fit, usable_memory
from companion_core.decisions.gguf import HEAD_BYTES, GgufHead, parse_gguf
from companion_core.decisions.manifest_kind import Role
from companion_core.models.store import ProvedFile, VerifiedModel
from companion_core.providers import ProbeFailed, ResourceLimits
from companion_core.runtime.resources.free_memory import available_memory
from companion_core.runtime.resources.probe import free_vram
from companion_core.system.os_compat import read_at

__all__ = ["ModelFacts", "look_at_model"]

_PROJECTED: Final = (("clip.has_vision_encoder", "image"), ("clip.has_audio_encoder", "audio"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model before it is started.

    Attributes:
        head: of its first file; None where that is no GGUF file.
        fit: the context that it gets, and how much memory it takes with that.
        longest: the context that it was made for, in tokens; None where it does not say.
        modalities: of what a request may hold: "text", and what its projector reads.
    """

    head: GgufHead | None
    fit: Fit
    longest: int | None
    modalities: tuple[str, ...] = ("text",)


def look_at_model(
    model: VerifiedModel, limits: ResourceLimits, *, places: int, configured: int | None
) -> ModelFacts:
    """Return what the model's first file says, and what fits now. Blocking.

    Args:
        model: the proved files, which weigh what they are long: projector and adapters too.
        limits: the ceilings.
        places: requests that are worked on at once.
        configured: tokens of context that the person configured.
    """
    head = _head_of(model)
    footprint = footprint_of(head, weights=sum(file.size for file in model.files))
    try:
        video = free_vram()
    except ProbeFailed:
        video = 0
    available = usable_memory(
        footprint,
        max_ram=limits.max_ram_bytes,
        max_vram=limits.max_vram_bytes,
        free_ram=available_memory(),
        free_vram=video,
    )
    fit = judge_fit(footprint, available=available, places=places, configured=configured)
    return ModelFacts(
        head=head, fit=fit, longest=footprint.longest, modalities=_modalities_of(model)
    )


def _head_of(model: VerifiedModel) -> GgufHead | None:
    if model.format != "gguf":
        return None
    return _read(model.files[0])


def _modalities_of(model: VerifiedModel) -> tuple[str, ...]:
    """Return what a request may hold, as the projector says (llama.cpp's tools/mtmd, `clip.*`)."""
    found = ["text"]
    for file in model.files if model.format == "gguf" else ():
        head = _read(file) if file.role is Role.PROJECTOR else None
        if head is not None:
            found += [name for key, name in _PROJECTED if head.fields.get(key) is True]
    return tuple(dict.fromkeys(found))


def _read(file: ProvedFile) -> GgufHead | None:
    return parse_gguf(read_at(file.descriptor, min(file.size, HEAD_BYTES), 0))
