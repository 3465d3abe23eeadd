"""Look at a model that lies elsewhere before it is fetched: an https address, or a hub's files."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final
from urllib.parse import unquote

from companion_core.authority.hub import Hub
from companion_core.config.sections import is_model_id
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.hub import HubChoice, HubFile, HubName, choose_files
from companion_core.decisions.hub_answers import HUB_ORIGINS, is_hop_admitted
from companion_core.decisions.manifest_kind import Role
from companion_core.decisions.redirect import name_address
from companion_core.decisions.source import HttpsUrl, SourceUrl, parse_https_url
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason, Refused, UsageError, error_for
from companion_core.models.intake import require_whole
from companion_core.models.peek import Peeked, admit_any, peek
from companion_core.models.transfer import Download
from companion_core.providers import DownloadRequest, Redirect
from companion_core.serving.own_files import NO_ID, PARTS, id_of_name

__all__ = ["FoundRemote", "HubDownload", "RemoteFile", "look_at_address", "look_in_hub"]

_LICENCE: Final = re.compile(r"[\x20-\x7e]{1,128}")
_SHOWN: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file that is to be fetched.

    Attributes:
        url: where it is; an address that may be fetched again later.
        name: as the runtime will see it.
        size: in bytes.
        sha256: as its host states it; None if it states none, and what comes is recorded.
    """

    url: str
    name: str
    size: int
    sha256: str | None
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRemote:
    """The files of one model, none of them fetched yet.

    Attributes:
        id: what requests will call it.
        head: of the model, or of the first part of it.
        licence: as its publisher states it.
        origin: where it comes from, in words for a person.
        also_allowed: where redirects may lead, besides the folders of its own addresses.
        told: what a person should read before they go on, one line each.
    """

    id: str
    files: tuple[RemoteFile, ...]
    head: GgufHead
    licence: str | None
    origin: str
    also_allowed: tuple[str, ...]
    told: tuple[str, ...]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


def look_at_address(
    text: str,
    *,
    model_id: str | None,
    download: Download,
    plugin: str,
    cancelled: threading.Event,
) -> FoundRemote:
    """Read the beginning of a file at an https address. Blocks.

    Raises:
        Refused: it is no address that may be used, or no GGUF file.
        EnvironmentUnavailable: `download_failed`.
        UsageError: the id cannot be one.
    """
    url = admit_any(text)
    if isinstance(url, Verdict):
        raise error_for(url.reason, name_address(text))
    name = _file_name(unquote(PurePosixPath(url.path).name))
    wanted = _id(model_id, name)
    if PARTS.fullmatch(name):
        raise UsageError(
            Reason.USAGE,
            "this is one part of a model; fetch all parts yourself, and name the first file",
        )
    seen = peek(url, admit=admit_any, download=download, plugin=plugin, cancelled=cancelled)
    head = _require_gguf(seen, name_address(url.text))
    if seen.size is None:
        raise Refused(Reason.SIZE_MISMATCH, f"{url.host} does not say how large the file is")
    hops = [hop for hop in seen.hops if hop.text != url.text]
    ways = tuple(f"{url.host} redirects to {name_address(hop.text)}" for hop in hops)
    licence = head.text("general.license")
    return FoundRemote(
        id=wanted,
        files=(RemoteFile(url=url.text, name=name, size=seen.size, sha256=None, role=Role.MODEL),),
        head=head,
        licence=licence if licence and _LICENCE.fullmatch(licence) else None,
        origin=" -> ".join(name_address(hop.text) for hop in (url, *hops)),
        also_allowed=tuple(dict.fromkeys(_folder(hop) for hop in hops)),
        told=(*ways, "its host states no digest: what comes is recorded as it is"),
    )


def look_in_hub(
    hub: Hub,
    name: HubName,
    *,
    model_id: str | None,
    file: str | None,
    revision: str | None,
    download: HubDownload,
    plugin: str,
    cancelled: threading.Event,
) -> FoundRemote:
    """Choose the files of a model in a hub's repository, and read the beginning of it. Blocks.

    Raises:
        UsageError: nothing or several could be meant; the message lists what there is.
        Refused: what is there is no GGUF file, or lies where the hub may not send anyone.
        EnvironmentUnavailable: `download_failed`, with what the hub said.
    """
    hub.cancelled = cancelled
    repository = hub.repository(name.repository, revision)
    choice = choose_files(repository, tag=name.tag, file=file)
    if not choice.files:
        raise UsageError(Reason.USAGE, _offered(name, file, choice, repository.files))
    wanted = [(each, Role.MODEL) for each in choice.files]
    if choice.projector is not None:
        wanted.append((choice.projector, Role.PROJECTOR))
    files = tuple(
        RemoteFile(
            url=hub.address_of(repository, each),
            name=_file_name(each.name),
            size=each.size,
            sha256=each.sha256,
            role=role,
        )
        for each, role in wanted
    )
    download.know({file.url: each for file, (each, _) in zip(files, wanted, strict=True)})
    renamed = repository.id != name.repository
    first = _admitted(files[0].url)
    seen = peek(
        first,
        admit=lambda address: _admit_hop(hub.endpoint, address),
        download=download,
        plugin=plugin,
        cancelled=cancelled,
    )
    label = f"{repository.id} ({choice.files[0].path})"
    head = _require_gguf(seen, label)
    hops = dict.fromkeys(_origin(hop) for hop in seen.hops if hop.text != first.text)
    known = HUB_ORIGINS if _is_public(hub.endpoint) else ()
    return FoundRemote(
        id=_id(model_id, choice.files[0].name),
        files=files,
        head=head,
        licence=repository.licence,
        origin=f"hf:{repository.id}@{repository.commit}/{choice.files[0].path}",
        also_allowed=tuple(dict.fromkeys((*known, *hops))),
        told=(f"{name.repository} is called {repository.id} now",) if renamed else (),
    )


class HubDownload:
    """A downloader's `open` that has the hub tell where its files are.

    So the token is sent to the hub alone, and each retry of a transfer gets a link anew.

    Args:
        hub: where files are asked for.
        download: a plugin's, which is given every other address.
    """

    def __init__(self, hub: Hub, download: Download) -> None:
        self._hub = hub
        self._download = download
        self._files: dict[str, HubFile] = {}

    def know(self, files: Mapping[str, HubFile]) -> None:
        """Take the addresses at which the hub is asked."""
        self._files.update(files)

    def __call__(self, request: DownloadRequest) -> BinaryIO:
        """See `Downloader.open`."""
        file = self._files.get(request.url)
        if file is not None and (link := self._hub.link(request.url, file)) is not None:
            raise Redirect(link)
        return self._download(request)


def _offered(name: HubName, file: str | None, choice: HubChoice, files: Sequence[HubFile]) -> str:
    """Say why nothing was chosen, and what there is."""
    if not files:
        return f"{name.repository} has no GGUF file of a stated digest"
    if file is not None:
        wanted = f"{name.repository} has no whole {file}"
    elif name.tag is not None:
        wanted = f"{name.repository} has no whole {name.tag}"
    else:
        wanted = f"{name.repository} has no Q4_K_M, and several others"
    sizes = {each.path: f"{each.path} ({each.size / 1e9:,.2f} GB)" for each in files}
    listed = "\n".join(f"    {text}" for text in list(sizes.values())[:_SHOWN])
    quants = ", ".join(choice.offered)
    way = f"choose one by hf:{name.repository}:QUANT ({quants})" if quants else "choose one"
    return f"{wanted}; {way} or by --file:\n{listed}"


def _require_gguf(seen: Peeked, what: str) -> GgufHead:
    if seen.head is None:
        raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, f"{what} is no GGUF file")
    if seen.size is not None:
        require_whole(seen.head, seen.size, what)
    return seen.head


def _id(model_id: str | None, name: str) -> str:
    wanted = model_id or id_of_name(name)
    if not is_model_id(wanted):
        raise UsageError(Reason.USAGE, f"{wanted!r} cannot be a model's id; name one with --id")
    return wanted


def _file_name(name: str) -> str:
    """Return a name of characters that a manifest may have."""
    return NO_ID.sub("-", name).lstrip(".-+") or "model.gguf"


def _admitted(url: str) -> SourceUrl:
    admitted = admit_any(url)
    if isinstance(admitted, Verdict):
        raise error_for(admitted.reason, name_address(url))
    return admitted


def _admit_hop(endpoint: HttpsUrl, address: str | None) -> SourceUrl | Verdict:
    parsed = None if address is None else parse_https_url(address)
    if isinstance(parsed, HttpsUrl) and not is_hop_admitted(endpoint, parsed):
        return refuse(Reason.SOURCE_NOT_ALLOWED)
    return admit_any(address)


def _is_public(endpoint: HttpsUrl) -> bool:
    return endpoint.host in {"huggingface.co", "hf.co"}


def _folder(hop: SourceUrl) -> str:
    return HttpsUrl(hop.host, hop.port, hop.path.rpartition("/")[0] + "/", "").text


def _origin(hop: SourceUrl) -> str:
    return HttpsUrl(hop.host, hop.port, "/", "").text
