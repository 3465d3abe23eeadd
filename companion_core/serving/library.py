"""What changes the models that a person has: added, fetched, proved again and removed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.authority.own_model import OwnFile, OwnModel
from companion_core.authority.personal_manifest import PersonalManifest, claimed_ids
from companion_core.config.paths import InstancePaths
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.errors import CompanionError, Reason
from companion_core.models.intake import take_file
from companion_core.models.kept_parts import split_kept
from companion_core.models.proof import Prover
from companion_core.models.store import ModelStore
from companion_core.plugin_host import Chosen
from companion_core.providers import Downloader
from companion_core.serving.default_model import default_model, set_default_model
from companion_core.serving.known_models import KnownModel, KnownModels
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_files import FoundModelFiles, file_name
from companion_core.system.folder_lock import lock_folder

__all__ = ["AddedModel", "ModelLibrary"]

Progress = Callable[[int, int], None]

_STORED: Final = re.compile(r"[0-9a-f]{64}")


def _nothing(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedModel:
    """A model that was recorded.

    Attributes:
        size: of all files, in bytes.
        context_length: that it was made for, in tokens; None if it does not say so.
        head: of the model, or of its first part.
        added: when its bytes were recorded, as RFC 3339 writes it.
        was_known: that was before, with the same bytes under this id.
    """

    id: str
    size: int
    licence: str | None
    context_length: int | None
    head: GgufHead
    added: str
    was_known: bool


class ModelLibrary:
    """The lists that vouch for models, and the store. Blocking.

    Args:
        paths: of the store.
        lists: that vouch for models.
        own: the person's own of them.

    Attributes:
        known: what the lists name.
    """

    def __init__(self, paths: InstancePaths, lists: ModelLists, own: PersonalManifest) -> None:
        self.known = KnownModels(paths, lists, own)
        self._paths = paths
        self._lists = lists
        self._own = own

    def add_files(
        self,
        found: FoundModelFiles,
        *,
        progress: Progress = _nothing,
        cancelled: threading.Event,
    ) -> AddedModel:
        """Take a model's files into the store, and record it in the person's name.

        Args:
            found: what `look_at` found.
            progress: called with bytes done and bytes in all.
            cancelled: ends the work; nothing is recorded then, and nothing is left.

        Raises:
            Refused: `digest_mismatch`: the id is recorded with other bytes.
            CompanionError: a file cannot be read, or the person's key cannot be had.
        """
        before = self._own.read()  # a key that cannot be had is told before a byte is copied
        known = () if before.manifest is None else before.manifest.models
        there = {path.name for path in self._stored()}
        files: list[OwnFile] = []
        model = OwnModel(
            id=found.id, format="gguf", files=files, origin=found.origin, licence=found.licence
        )
        try:
            self._take(found, files, progress, cancelled)
            self._own.add(model)
        except BaseException:
            # Another program may be adding the same bytes now; it would find them gone, and say so.
            self._delete({file.sha256 for file in files} - there, threading.Event())
            raise
        return AddedModel(
            id=found.id,
            size=found.size,
            licence=found.licence,
            context_length=found.context_length,
            head=found.head,
            added=self._own.read().added[found.id],
            was_known=any(each.id == found.id for each in known),
        )

    def _take(
        self,
        found: FoundModelFiles,
        files: list[OwnFile],
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        done = 0
        for file in found.files:

            def tell(received: int, _size: int, before: int = done) -> None:
                progress(before + received, found.size)

            taken = take_file(file.path, self._paths.models, progress=tell, cancelled=cancelled)
            files.append(
                OwnFile(
                    name=file_name(file.path),
                    size=taken.size,
                    sha256=taken.sha256,
                    role=file.role,
                    piece_size=PIECE_BYTES,
                    pieces=taken.pieces,
                )
            )
            done += file.size

    def pull(
        self,
        model_id: str,
        download: Chosen[Downloader],
        *,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        """Fetch what is not stored of a model, and prove all of it.

        Raises:
            CompanionError: as `model`, and as `ModelStore.stage`.
        """
        found = self._lists.find(model_id, cancelled)
        ModelStore(self._paths.models).stage(
            found.model,
            allowed_sources=found.manifest.allowed_sources,
            download=download.provider.open,
            plugin=download.plugin,
            progress=progress,
            cancelled=cancelled,
        ).close()

    def set_default(self, model_id: str, cancelled: threading.Event) -> None:
        """Serve this model where none is named.

        Raises:
            CompanionError: as `model`.
        """
        self._lists.find(model_id, cancelled)
        set_default_model(self._paths, model_id)

    def remove(self, model_id: str, cancelled: threading.Event) -> int:
        """Take a model of the person's own off their list, and its bytes out of the store.

        Of a publisher's model only the bytes go; they can be fetched again.

        Returns:
            How many bytes were given back.

        Raises:
            CompanionError: as `model`.
        """
        manifest = self._own.read(expired=True).manifest
        mine = [
            file.sha256
            for model in (() if manifest is None else manifest.models)
            if model.id == model_id
            for file in model.files
        ]
        if mine:
            digests = set(mine)
            self._own.remove(model_id)
        else:
            digests = {file.sha256 for file in self._lists.find(model_id, cancelled).model.files}
        if default_model(self._paths) == model_id:
            set_default_model(self._paths, None)
        needed = {
            file.sha256
            for model, _ in self.known.listed(cancelled)
            if model.id != model_id
            for file in model.files
        }
        return self._delete(digests - needed, cancelled)

    def claimed(self) -> list[str]:
        """Return the ids that the person's own list names, without any proof of it."""
        return claimed_ids(self._paths.own_manifest)

    def forget(self) -> None:
        """Drop the person's own list, whose key is lost; `prune` then deletes what it named.

        Raises:
            EnvironmentUnavailable: `disk_unavailable`.
        """
        self._own.forget()
        set_default_model(self._paths, None)

    def prune(self, cancelled: threading.Event) -> int:
        """Delete what no list names any more, and downloads that nobody goes on with.

        Returns:
            How many bytes were given back.

        Raises:
            CompanionError: a list cannot be read, so that what it needs is not known.
        """
        current = self._lists.publisher(cancelled)
        own = self._own.read(expired=True).manifest
        manifests = [own, None if current is None else current.manifest]
        needed = {
            file.sha256
            for manifest in manifests
            if manifest is not None
            for model in manifest.models
            for file in model.files
        }
        stored = {path.name for path in self._stored()}
        given_back = self._delete(stored - needed, cancelled)
        with lock_folder(self._paths.models, cancelled):
            for kept in split_kept(self._paths.models, now=None)[0]:
                given_back += kept.stat().st_size
                kept.unlink(missing_ok=True)
        return given_back

    def _stored(self) -> list[Path]:
        folder = self._paths.models
        if not folder.is_dir():
            return []
        return [path for path in folder.iterdir() if _STORED.fullmatch(path.name)]

    def _delete(self, digests: set[str], cancelled: threading.Event) -> int:
        given_back = 0
        if not self._paths.models.is_dir():
            return 0
        with lock_folder(self._paths.models, cancelled):
            for digest in digests:
                path = self._paths.models / digest
                if path.exists():
                    given_back += path.stat().st_size
                    path.unlink()
        return given_back

    def verify(
        self, model: KnownModel, cancelled: threading.Event, *, progress: Progress
    ) -> Reason:
        """Hash every file of a model again, and say what is wrong with it; `ok` if nothing is.

        Raises:
            CompanionError: `interrupted`.
        """
        done = 0
        for file in model.files:
            prover = Prover(file.spec, cancelled, lambda _descriptor, _pause: False)
            try:
                prover.prove(self._paths.models / file.sha256).discard()
            except CompanionError as error:
                if error.reason is Reason.INTERRUPTED:
                    raise
                return error.reason
            done += file.size
            progress(done, model.size)
        return Reason.OK

    def renew(self) -> None:
        """Sign the person's own list for another year.

        To be called after every model of it was proved to be what was recorded.
        """
        if not self._own.is_empty:
            self._own.renew()
