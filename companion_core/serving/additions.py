"""What adds to the models of a person's own: their files, and what they have fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from companion_core.authority.manifest_fetch import ManifestUnreachable
from companion_core.authority.own_model import OwnFile, OwnModel
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.config.paths import InstancePaths
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, error_for
from companion_core.models.address_intake import take_address
from companion_core.models.byte_pump import Pace
from companion_core.models.intake import hash_file, read_head, take_file
from companion_core.models.peek import admit_any
from companion_core.models.store import ModelStore
from companion_core.models.stored import delete_files, room_for_files, stored_files
from companion_core.models.transfer import Download
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_files import FoundModelFiles, file_name, licence_of
from companion_core.serving.remote_files import FoundRemote, RemoteFile
from companion_core.system.lacks import lacks_told

__all__ = ["AddedModel", "Fetching", "ModelAdditions"]

Progress: TypeAlias = Callable[[int, int], None]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetching:
    """How files are fetched.

    Attributes:
        download: a downloader's `open`.
        plugin: who is named when `download` misbehaves.
        progress: called with bytes done and bytes in all.
        cancelled: ends the work; nothing is recorded then.
        pace: how long the downloader may take; `HUB_PACE` for a hub's.
    """

    download: Download
    plugin: str
    progress: Progress
    cancelled: threading.Event
    pace: Pace | None = None


class ModelAdditions:
    """Adds to the person's own list, and to the store. Blocking.

    Args:
        paths: of the store.
        lists: that vouch for models.
        own: the person's own of them.
    """

    def __init__(self, paths: InstancePaths, lists: ModelLists, own: PersonalManifest) -> None:
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
        known = self._known_before(found.id, cancelled)
        there = stored_files(self._paths.models)
        files: list[OwnFile] = []
        model = OwnModel(
            id=found.id, format="gguf", files=files, origin=found.origin, licence=found.licence
        )
        try:
            self._take(found, files, progress, cancelled)
            self._own.add(model)
        except BaseException:
            # Another program may be adding the same bytes now; it would find them gone, and say so.
            delete_files(
                self._paths.models, {file.sha256 for file in files} - there, threading.Event()
            )
            raise
        return self._added(model, found.head, found.size, was_known=found.id in known)

    def require_room(self, found: FoundRemote) -> None:
        """Require room on the disk for all files, before the first byte of them is fetched.

        Raises:
            EnvironmentUnavailable: `disk_unavailable`.
        """
        with lacks_told():
            there = stored_files(self._paths.models)
            missing = sum(file.size for file in found.files if file.sha256 not in there)
            room = room_for_files(self._paths.models)
        if room < missing:
            raise EnvironmentUnavailable(
                Reason.DISK_UNAVAILABLE,
                f"{found.id} takes {missing / 1e9:,.1f} GB, and {self._paths.models} has room for "
                f"{room / 1e9:,.1f} GB",
            )

    def add_remote(self, found: FoundRemote, how: Fetching) -> AddedModel:
        """Fetch a model's files into the store, and record it in the person's name.

        What came before it was stopped stays; the next call goes on there.

        Args:
            found: what `look_at_address` or `look_in_hub` found.
            how: it is fetched.

        Raises:
            Refused: other bytes came than the host states; or as `add_files`.
            CompanionError: it cannot be fetched, or the person's key cannot be had.
        """
        known = self._known_before(found.id, how.cancelled)
        model = OwnModel(
            id=found.id,
            format="gguf",
            files=[],
            origin=found.origin,
            licence=found.licence,
            also_allowed=found.also_allowed,
            asked=found.asked,
        )
        there = stored_files(self._paths.models)
        if all(file.sha256 is not None for file in found.files):
            files = self._fetch_stated(model, found, how)
        else:
            files = [self._fetch_unstated(file, found, how) for file in found.files]
        try:
            # What came says what it is; at the first look nothing was proved.
            head = read_head(self._paths.models / files[0].sha256)[0]
            licence = found.licence or licence_of(head)
            model = dataclasses.replace(model, files=files, licence=licence)
            self._own.add(model)
        except BaseException:
            pairs = zip(found.files, files, strict=True)
            unstated = {came.sha256 for asked, came in pairs if asked.sha256 is None}
            delete_files(self._paths.models, unstated - there, threading.Event())
            raise
        return self._added(model, head, found.size, was_known=found.id in known)

    def _fetch_stated(self, model: OwnModel, found: FoundRemote, how: Fetching) -> list[OwnFile]:
        """Fetch files whose digests their host states, as those of any manifest are fetched."""
        stated = [
            OwnFile(
                name=file.name,
                size=file.size,
                sha256=file.sha256 or "",
                urls=[file.url],
                role=file.role,
            )
            for file in found.files
        ]
        preview = self._own.preview(dataclasses.replace(model, files=stated))
        [entry] = [each for each in preview.models if each.id == model.id]
        proved = ModelStore(self._paths.models, pace=how.pace).stage(
            entry,
            allowed_sources=preview.allowed_sources,
            download=how.download,
            plugin=how.plugin,
            progress=how.progress,
            cancelled=how.cancelled,
        )
        with contextlib.closing(proved):
            pieces = {
                each.sha256: hash_file(each.descriptor, cancelled=how.cancelled).pieces
                for each in proved.files
            }
        return [
            dataclasses.replace(file, piece_size=PIECE_BYTES, pieces=pieces[file.sha256])
            for file in stated
        ]

    def _fetch_unstated(self, file: RemoteFile, found: FoundRemote, how: Fetching) -> OwnFile:
        """Fetch a file of which only the size is known; what came is what is recorded."""
        url = admit_any(file.url)
        if isinstance(url, Verdict):
            raise error_for(url.reason)
        taken = take_address(
            url,
            file.size,
            self._paths.models,
            allowed=found.also_allowed,
            download=how.download,
            plugin=how.plugin,
            progress=how.progress,
            cancelled=how.cancelled,
            pace=how.pace,
        )
        return OwnFile(
            name=file.name,
            size=taken.size,
            sha256=taken.sha256,
            urls=[file.url],
            role=file.role,
            piece_size=PIECE_BYTES,
            pieces=taken.pieces,
        )

    def _known_before(self, model_id: str, cancelled: threading.Event) -> set[str]:
        """Return the ids of the person's own list, before a byte is copied or fetched.

        Raises:
            Refused: `model_id_taken`: the publisher has a model of that id.
            CompanionError: the person's key cannot be had.
        """
        with contextlib.suppress(ManifestUnreachable):
            current = self._lists.publisher(cancelled)
            if current is not None and any(m.id == model_id for m in current.manifest.models):
                raise Refused(
                    Reason.MODEL_ID_TAKEN,
                    f"the publisher has a model {model_id}; name another --id",
                )
        manifest = self._own.read().manifest
        return set() if manifest is None else {each.id for each in manifest.models}

    def _added(self, model: OwnModel, head: GgufHead, size: int, *, was_known: bool) -> AddedModel:
        return AddedModel(
            id=model.id,
            size=size,
            licence=model.licence,
            context_length=head.number("context_length"),
            head=head,
            added=self._own.read().added[model.id],
            was_known=was_known,
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
