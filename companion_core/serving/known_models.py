"""The models that a person knows: a publisher's and their own, and which of them are stored."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from companion_core.authority.manifest_fetch import ManifestUnreachable
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.config.paths import InstancePaths
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.manifest import Manifest, ManifestFile, ManifestModel
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import CompanionError
from companion_core.models.intake import read_head
from companion_core.serving.default_model import default_model
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_files import FoundModelFiles

__all__ = ["KnownModel", "KnownModels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that a list names.

    Attributes:
        vouched_by: whose list that is.
        files: as signed.
        stored: all of them are in the store.
        context_length: that it was made for, in tokens; None if that is not known here.
        is_default: it is served where none is named.
        head: what its first stored file says of it; None if it is not stored, or no GGUF.
        origin: where it came from; "" for a publisher's.
        added: when it was recorded, as RFC 3339 writes it; "" for a publisher's.
    """

    id: str
    vouched_by: ManifestKind
    format: str
    licence: str | None
    files: tuple[ManifestFile, ...]
    stored: bool
    context_length: int | None
    is_default: bool
    head: GgufHead | None
    origin: str
    added: str

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


class KnownModels:
    """What the lists name. Blocking.

    Args:
        paths: of the store.
        lists: that vouch for models.
        own: the person's own of them.
    """

    def __init__(self, paths: InstancePaths, lists: ModelLists, own: PersonalManifest) -> None:
        self._paths = paths
        self._lists = lists
        self._own = own

    def models(self, cancelled: threading.Event) -> list[KnownModel]:
        """Return every model of every list; a publisher that is silent is left out.

        The person's own are listed also once their list has expired: a proof of them renews it.

        Raises:
            CompanionError: a list is refused, or the person's key cannot be had.
        """
        return [self._known(*each) for each in self.listed(cancelled)]

    def model(self, model_id: str, cancelled: threading.Event) -> KnownModel:
        """Return the model of that id.

        Raises:
            CompanionError: as `models`; `model_not_in_manifest`, `model_id_taken`.
        """
        named = [each for each in self.listed(cancelled) if each[0].id == model_id]
        if len(named) != 1:
            self._lists.find(model_id, cancelled)  # says why not
        return self._known(*named[0])

    def recorded_as(self, found: FoundModelFiles) -> str | None:
        """Return the id under which these very files are recorded and stored; None if none is.

        Told without reading them: the store has a second name of each file.
        """
        recorded = self._own.read(expired=True)
        paths = [str(file.path) for file in found.files]
        for model in () if recorded.manifest is None else recorded.manifest.models:
            stored = [str(self._paths.models / file.sha256) for file in model.files]
            if recorded.origins.get(model.id) == found.origin and _same_files(paths, stored):
                return model.id
        return None

    def asked_for(self, asked: str, *, stored: bool) -> str | None:
        """Return the id under which a source is recorded; None if it is not. Asks no network.

        Args:
            asked: the source, as `OwnModel.asked` has it.
            stored: only if all of its bytes are here.
        """
        recorded = self._own.read(expired=True)
        for model in () if recorded.manifest is None else recorded.manifest.models:
            here = all((self._paths.models / file.sha256).exists() for file in model.files)
            if recorded.asked[model.id] == asked and (here or not stored):
                return model.id
        return None

    def listed(self, cancelled: threading.Event) -> Iterator[tuple[ManifestModel, Manifest]]:
        """Yield each model and the list that names it; a publisher that is silent is left out."""
        own = self._own.read(expired=True).manifest
        try:
            current = self._lists.publisher(cancelled)
        except ManifestUnreachable:
            current = None
        for manifest in (own, None if current is None else current.manifest):
            if manifest is not None:
                yield from ((model, manifest) for model in manifest.models)

    def _known(self, model: ManifestModel, manifest: Manifest) -> KnownModel:
        mine = manifest.kind is ManifestKind.PERSONAL
        recorded = self._own.read(expired=True) if mine else None
        stored = all((self._paths.models / file.sha256).exists() for file in model.files)
        head = self._head(model) if stored else None
        return KnownModel(
            id=model.id,
            vouched_by=manifest.kind,
            format=model.format,
            licence=model.licence,
            files=model.files,
            stored=stored,
            context_length=None if head is None else head.number("context_length"),
            is_default=model.id == default_model(self._paths),
            head=head,
            origin="" if recorded is None else recorded.origins.get(model.id, ""),
            added="" if recorded is None else recorded.added.get(model.id, ""),
        )

    def _head(self, model: ManifestModel) -> GgufHead | None:
        if model.format != "gguf":
            return None
        try:
            return read_head(self._paths.models / model.files[0].sha256)[0]
        except CompanionError:
            return None


def _same_files(paths: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether each path leads to the very file of its counterpart."""
    try:
        return len(paths) == len(others) and all(map(os.path.samefile, paths, others))
    except OSError:
        return False
