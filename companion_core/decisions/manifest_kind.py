"""Rules: a manifest is of one of two kinds, and a file of a model has one of three roles."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["MAX_MANIFEST_BYTES", "PAYLOAD_TYPE", "ManifestKind", "Role"]

PAYLOAD_TYPE: Final = "application/vnd.companion.manifest.v1+json"
MAX_MANIFEST_BYTES: Final = 256 * 1024
_PERSONAL_PAYLOAD_TYPE: Final = "application/vnd.companion.personal-manifest.v1+json"
# Never fetched: it lists the pieces of every model of a person, 32 bytes for each 16 MiB.
_MAX_PERSONAL_BYTES: Final = 16 * 1024 * 1024


class ManifestKind(enum.Enum):
    """Who vouches for the models of a manifest, and so what it may leave out."""

    PUBLISHER = "publisher"
    PERSONAL = "you"  # a file may have no source: only the stored bytes can prove it (I-03)

    @property
    def payload_type(self) -> str:
        """What the signature covers, beside the payload."""
        return PAYLOAD_TYPE if self is ManifestKind.PUBLISHER else _PERSONAL_PAYLOAD_TYPE

    @property
    def max_bytes(self) -> int:
        """The longest envelope that is read."""
        personal = self is ManifestKind.PERSONAL
        return _MAX_PERSONAL_BYTES if personal else MAX_MANIFEST_BYTES

    @property
    def least_sources(self) -> int:
        """How many addresses a file has at least."""
        return 0 if self is ManifestKind.PERSONAL else 1


class Role(enum.StrEnum):
    """What a runtime does with a file of a model."""

    MODEL = "model"  # the weights, or a part of them, or what belongs beside them
    PROJECTOR = "projector"  # turns images or sound into what the model reads
    ADAPTER = "adapter"  # changes the weights, such as a LoRA
