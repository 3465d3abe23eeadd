"""What changes the models that a person has: added, fetched, proved again and removed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from companion_core.authority.current_manifest import CurrentManifest
from companion_core.authority.personal_manifest import PersonalManifest, claimed_ids
from companion_core.config.paths import InstancePaths
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.models.byte_pump import Pace
from companion_core.models.kept_parts import split_kept
from companion_core.models.proof import BrokenPieces, Prover
from companion_core.models.store import ModelStore
from companion_core.models.stored import delete_files, stored_files
from companion_core.models.transfer import Download
from companion_core.serving.additions import ModelAdditions
from companion_core.serving.default_model import default_model, set_default_model
from companion_core.serving.known_models import KnownModel, KnownModels
from companion_core.serving.model_lists import ModelLists
from companion_core.system.folder_lock import lock_folder

__all__ = ["ModelLibrary"]

Progress = Callable[[int, int], None]


class ModelLibrary:
    """The lists that vouch for models, and the store. Blocking.

    Args:
        paths: of the store.
        lists: that vouch for models.
        own: the person's own of them.

    Attributes:
        known: what the lists name.
        additions: what adds to the person's own.
    """

    def __init__(self, paths: InstancePaths, lists: ModelLists, own: PersonalManifest) -> None:
        self.known = KnownModels(paths, lists, own)
        self.additions = ModelAdditions(paths, lists, own)
        self._paths = paths
        self._lists = lists
        self._own = own

    def pull(
        self,
        model_id: str,
        download: Download,
        plugin: str,
        *,
        progress: Progress,
        cancelled: threading.Event,
        pace: Pace | None = None,
    ) -> None:
        """Fetch what is not stored of a model, and prove all of it.

        Args:
            model_id: of any list.
            download: a downloader's `open`.
            plugin: who is named when `download` misbehaves.
            progress: called with bytes done and bytes in all.
            cancelled: ends the work; what came stays.
            pace: how long the downloader may take.

        Raises:
            CompanionError: as `model`, and as `ModelStore.stage`.
        """
        found = self._lists.find(model_id, cancelled)
        ModelStore(self._paths.models, pace=pace).stage(
            found.model,
            allowed_sources=found.manifest.allowed_sources,
            download=download,
            plugin=plugin,
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
        return delete_files(self._paths.models, digests - needed, cancelled)

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
        stored = stored_files(self._paths.models)
        given_back = delete_files(self._paths.models, stored - needed, cancelled)
        with lock_folder(self._paths.models, cancelled):
            for kept in split_kept(self._paths.models, now=None)[0]:
                given_back += kept.stat().st_size
                kept.unlink(missing_ok=True)
        return given_back

    def verify(
        self, model: KnownModel, cancelled: threading.Event, *, progress: Progress
    ) -> CompanionError | None:
        """Hash every file of a model again; return what is wrong with it, None if nothing is.

        Where the list has the digests of a file's pieces, the detail names those that are broken.

        Raises:
            CompanionError: `interrupted`.
        """
        done = 0
        for file in model.files:
            prover = Prover(file.spec, cancelled, lambda _descriptor, _pause: False, file.pieces)
            path = self._paths.models / file.sha256
            try:
                prover.prove(path).discard()
            except CompanionError as error:
                if error.reason is Reason.INTERRUPTED:
                    raise
                what = _broken_pieces(prover, path) or error.detail
                return error_for(error.reason, ": ".join(filter(None, (file.name, what))))
            done += file.size
            progress(done, model.size)
        return None

    def publisher(self, cancelled: threading.Event) -> CurrentManifest | None:
        """Return the publisher's manifest, as it is now or was accepted last; None without one.

        Raises:
            CompanionError: as `ModelLists.find`.
        """
        return self._lists.publisher(cancelled)

    def own_issued(self) -> float | None:
        """Return when the person's own list was signed last, in seconds since the epoch.

        None if nothing is recorded.

        Raises:
            CompanionError: the list or its key cannot be had.
        """
        manifest = self._own.read(expired=True).manifest
        return None if manifest is None else manifest.issued

    def renew(self) -> None:
        """Sign the person's own list for another year.

        To be called after every model of it was proved to be what was recorded.
        """
        if not self._own.is_empty:
            self._own.renew()


def _broken_pieces(prover: Prover, path: Path) -> str:
    """Name the broken pieces of a file, and where the first begins; "" where that is not known."""
    try:
        broken = prover.find_broken(path)
    except OSError:
        return ""
    if not broken or prover.pieces is None:
        return ""
    start, _ = prover.pieces.extent(broken[0])
    return f"{BrokenPieces(broken, prover.pieces).detail}, from byte {start:,} on"
