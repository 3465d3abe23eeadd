"""The models that a person has: listed, added, proved again and removed (`companion models`)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.authority.manifest_fetch import ManifestUnreachable
from companion_core.authority.own_model import OwnFile, OwnModel
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import is_model_id
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.manifest import Manifest, ManifestFile, ManifestModel
from companion_core.decisions.manifest_kind import ManifestKind, Role
from companion_core.decisions.pieces import PIECE_BYTES
from companion_core.errors import CompanionError, Reason, Refused, UsageError
from companion_core.models.intake import read_head, take_file
from companion_core.models.partial import split_kept
from companion_core.models.proof import Prover
from companion_core.serving.default_model import default_model, set_default_model
from companion_core.serving.model_lists import ModelLists
from companion_core.system.folder_lock import lock_folder

__all__ = ["AddedModel", "KnownModel", "ModelLibrary"]

Progress = Callable[[int, int], object]

_STORED: Final = re.compile(r"[0-9a-f]{64}")
_PARTS: Final = re.compile(
    r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE
)
_NO_ID: Final = re.compile(r"[^A-Za-z0-9._+-]+")
_PROJECTOR: Final = "clip"  # the architecture that a projector names


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that a list names.

    Attributes:
        vouched_by: whose list that is.
        files: as signed.
        stored: all of them are in the store.
        context_length: that it was made for, in tokens; None if that is not known here.
        is_default: it is served where none is named.
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
    origin: str
    added: str

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedModel:
    """A model that was recorded now.

    Attributes:
        size: of all files, in bytes.
        context_length: that it was made for, in tokens; None if it does not say so.
        was_known: the same bytes were recorded under this id before.
    """

    id: str
    size: int
    licence: str | None
    context_length: int | None
    was_known: bool


class ModelLibrary:
    """The lists that vouch for models, and the store. Blocking.

    Args:
        paths: of the store.
        lists: that vouch for models.
        own: the person's own of them.
    """

    def __init__(self, paths: InstancePaths, lists: ModelLists, own: PersonalManifest) -> None:
        self._paths = paths
        self._lists = lists
        self._own = own

    # --- looking --------------------------------------------------------------------------

    def models(self, cancelled: threading.Event) -> list[KnownModel]:
        """Return every model of every list; a publisher that is silent is left out.

        Raises:
            CompanionError: a list is refused, or the person's key cannot be had.
        """
        return [self._known(*each) for each in self._listed(cancelled)]

    def model(self, model_id: str, cancelled: threading.Event) -> KnownModel:
        """Return the model of that id.

        Raises:
            CompanionError: as `models`; `model_not_in_manifest`, `model_id_taken`.
        """
        found = self._lists.find(model_id, cancelled)
        return self._known(found.model, found.manifest)

    def _listed(self, cancelled: threading.Event) -> Iterator[tuple[ManifestModel, Manifest]]:
        own = self._own.read().manifest
        try:
            current = self._lists.publisher(cancelled)
        except ManifestUnreachable:
            current = None
        for manifest in (own, None if current is None else current.manifest):
            if manifest is not None:
                yield from ((model, manifest) for model in manifest.models)

    def _known(self, model: ManifestModel, manifest: Manifest) -> KnownModel:
        mine = manifest.kind is ManifestKind.PERSONAL
        recorded = self._own.read() if mine else None
        stored = all((self._paths.models / file.sha256).exists() for file in model.files)
        return KnownModel(
            id=model.id,
            vouched_by=manifest.kind,
            format=model.format,
            licence=model.licence,
            files=model.files,
            stored=stored,
            context_length=self._context_length(model) if stored else None,
            is_default=model.id == default_model(self._paths),
            origin="" if recorded is None else recorded.origins.get(model.id, ""),
            added="" if recorded is None else recorded.added.get(model.id, ""),
        )

    def _context_length(self, model: ManifestModel) -> int | None:
        if model.format != "gguf":
            return None
        try:
            head, _ = read_head(self._paths.models / model.files[0].sha256)
        except CompanionError:
            return None
        return head.number("context_length")

    # --- changing -------------------------------------------------------------------------

    def add_file(
        self,
        source: Path,
        *,
        model_id: str | None = None,
        projector: Path | None = None,
        progress: Progress = lambda _done, _total: None,
        cancelled: threading.Event,
    ) -> AddedModel:
        """Take a GGUF file of the person's into the store, and record it in their name.

        Args:
            source: the file; of a split model its first part, and all parts are taken.
            model_id: what requests call it; by default the file's name.
            projector: the file through which the model sees or hears.
            progress: called with bytes done and bytes in all.
            cancelled: ends the work; nothing is recorded then.

        Raises:
            Refused: `model_format_unsupported`: it is no GGUF file, or a part is missing;
                `digest_mismatch`: the id is recorded with other bytes.
            CompanionError: the file cannot be read, or the person's key cannot be had.
        """
        paths = _parts(source)
        heads = [read_head(path) for path in paths]
        head = heads[0][0]
        if head.architecture == _PROJECTOR:
            raise Refused(
                Reason.MODEL_FORMAT_UNSUPPORTED,
                f"{source} is a projector; name the model, and this with --projector",
            )
        roles = [Role.MODEL] * len(paths)
        if projector is not None:
            paths, roles = [*paths, projector], [*roles, Role.PROJECTOR]
            heads.append(read_head(projector))
        wanted = model_id or _id_of(source)
        if not is_model_id(wanted):
            raise UsageError(Reason.USAGE, f"--id: {wanted!r} cannot be a model's id")
        files = self._take(paths, roles, [size for _, size in heads], progress, cancelled)
        model = OwnModel(
            id=wanted,
            format="gguf",
            files=files,
            origin=str(source.absolute()),
            licence=_licence(head),
        )
        known = not self._own.is_empty and any(each.id == wanted for each in self._recorded())
        self._own.add(model)
        return AddedModel(
            id=wanted,
            size=sum(file.size for file in files),
            licence=model.licence,
            context_length=head.number("context_length"),
            was_known=known,
        )

    def _take(
        self,
        paths: Sequence[Path],
        roles: Sequence[Role],
        sizes: Sequence[int],
        progress: Progress,
        cancelled: threading.Event,
    ) -> list[OwnFile]:
        files, total = [], sum(sizes)
        for number, (path, role) in enumerate(zip(paths, roles, strict=True)):
            before = sum(sizes[:number])

            def tell(done: int, _size: int, before: int = before) -> None:
                progress(before + done, total)

            taken = take_file(path, self._paths.models, progress=tell, cancelled=cancelled)
            files.append(
                OwnFile(
                    name=_NO_ID.sub("-", path.name).lstrip(".-+"),
                    size=taken.size,
                    sha256=taken.sha256,
                    role=role,
                    piece_size=PIECE_BYTES,
                    pieces=taken.pieces,
                )
            )
        return files

    def _recorded(self) -> tuple[ManifestModel, ...]:
        manifest = self._own.read().manifest
        return () if manifest is None else manifest.models

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
        if any(model.id == model_id for model in self._recorded()):
            digests = {
                file.sha256
                for model in self._recorded()
                if model.id == model_id
                for file in model.files
            }
            self._own.remove(model_id)
        else:
            digests = {file.sha256 for file in self._lists.find(model_id, cancelled).model.files}
        if default_model(self._paths) == model_id:
            set_default_model(self._paths, None)
        needed = {
            file.sha256
            for model, _ in self._listed(cancelled)
            if model.id != model_id
            for file in model.files
        }
        return self._delete(digests - needed, cancelled)

    def prune(self, cancelled: threading.Event) -> int:
        """Delete what no list names any more, and downloads that nobody goes on with.

        Returns:
            How many bytes were given back.

        Raises:
            CompanionError: a list cannot be read, so that what it needs is not known.
        """
        current = self._lists.publisher(cancelled)
        manifests = [self._own.read().manifest, None if current is None else current.manifest]
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


def _parts(source: Path) -> list[Path]:
    """Return every part of a split model, in order; of any other the file itself."""
    match = _PARTS.fullmatch(source.name)
    if match is None:
        return [source]
    count = int(match["count"])
    names = [
        f"{match['prefix']}-{number:05d}-of-{match['count']}{source.name[-5:]}"
        for number in range(1, min(count, 1000) + 1)
    ]
    paths = [source.with_name(name) for name in names]
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        raise Refused(
            Reason.MODEL_FORMAT_UNSUPPORTED, f"{source} is a part; missing: {', '.join(missing)}"
        )
    return paths


def _id_of(source: Path) -> str:
    """Return what a model is called by default: its file's name, of characters an id may have."""
    name = source.name
    match = _PARTS.fullmatch(name)
    stem = match["prefix"] if match else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    return _NO_ID.sub("-", stem).strip("-._+")[:128]


def _licence(head: GgufHead) -> str | None:
    found = head.text("general.license")
    return found if found and re.fullmatch(r"[\x20-\x7e]{1,128}", found) else None
