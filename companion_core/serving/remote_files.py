"""Look at a model that lies elsewhere before it is fetched: an https address, or a hub's files."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final
from urllib.parse import unquote

from companion_core.authority.hub import MAX_WAITS, TOTAL_SECONDS, Hub
from companion_core.config.sections import is_model_id
from companion_core.decisions.gguf import GgufHead
from companion_core.decisions.hub import HubChoice, HubFile, HubName, choose_files
from companion_core.decisions.hub_answers import (
    MAX_WAIT_SECONDS,
    hub_settings,
    is_hop_admitted,
    is_hub_host,
)
from companion_core.decisions.manifest_kind import Role
from companion_core.decisions.redirect import name_address
from companion_core.decisions.source import HttpsUrl, SourceUrl, parse_https_url
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, UsageError, error_for
from companion_core.models.byte_pump import Pace
from companion_core.models.intake import require_whole
from companion_core.models.peek import Peeked, admit_any, peek
from companion_core.models.transfer import Download
from companion_core.providers import DownloadRequest, Redirect
from companion_core.serving.own_files import NO_ID, PARTS, PROJECTOR, id_of_name

__all__ = [
    "HUB_PACE",
    "FoundRemote",
    "HubDownload",
    "RemoteFile",
    "look_at_address",
    "look_in_hub",
    "not_offline",
]

_SHOWN: Final = 30
# To open a hub's file means to ask the hub for a link, which may have one wait.
HUB_PACE: Final = Pace(open_seconds=(MAX_WAITS + 1) * (TOTAL_SECONDS + MAX_WAIT_SECONDS))


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
        licence: as its publisher states it; None to take what the file states once it is here.
        origin: where it comes from, in words for a person.
        also_allowed: where redirects may lead, besides the folders of its own addresses.
        told: what a person should read before they go on, one line each.
        asked: what the person named, to know it again.
    """

    id: str
    files: tuple[RemoteFile, ...]
    head: GgufHead
    licence: str | None
    origin: str
    also_allowed: tuple[str, ...]
    told: tuple[str, ...]
    asked: str = ""

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
    return FoundRemote(
        id=wanted,
        files=(RemoteFile(url=url.text, name=name, size=seen.size, sha256=None, role=Role.MODEL),),
        head=head,
        licence=None,
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
    public = is_hub_host(hub.endpoint.host, hub.endpoint.port)
    hops: dict[str, None] = {}
    heads: list[GgufHead] = []
    # The byte hosts of the public hub are a rule; those of a mirror are recorded, of each file.
    for file_, (each, role) in zip(files, wanted, strict=True):
        if public and heads and role is Role.MODEL:
            continue
        seen = peek(
            _admitted(file_.url),
            admit=lambda address: _admit_hop(hub.endpoint, address),
            download=download,
            plugin=plugin,
            cancelled=cancelled,
            pace=HUB_PACE,
        )
        heads.append(_require_gguf(seen, f"{repository.id} ({each.path})", role))
        if not public:
            hops |= dict.fromkeys(_origin(hop) for hop in seen.hops if hop.text != file_.url)
    return FoundRemote(
        id=_id(model_id, choice.files[0].name),
        files=files,
        head=heads[0],
        licence=repository.licence,
        origin=f"hf:{repository.id}@{repository.commit}/{choice.files[0].path}",
        also_allowed=tuple(hops),
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


def not_offline(download: Download, environment: Mapping[str, str]) -> Download:
    """Return a downloader's `open` that asks no hub where the environment says so.

    Args:
        download: a plugin's.
        environment: `HF_HUB_OFFLINE` and what else the hub's own client reads.
    """
    told = hub_settings(environment)
    if not told.offline:
        return download
    named = told.endpoint if isinstance(told.endpoint, HttpsUrl) else None

    def open_other(request: DownloadRequest) -> BinaryIO:
        url = parse_https_url(request.url)
        if isinstance(url, HttpsUrl) and (
            is_hub_host(url.host, url.port)
            or (named is not None and (url.host, url.port) == (named.host, named.port))
        ):
            raise EnvironmentUnavailable(
                Reason.DOWNLOAD_FAILED, f"HF_HUB_OFFLINE is set, so {url.host} is not asked"
            )
        return download(request)

    return open_other


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


def _require_gguf(seen: Peeked, what: str, role: Role = Role.MODEL) -> GgufHead:
    if seen.head is None:
        raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, f"{what} is no GGUF file")
    if (seen.head.architecture == PROJECTOR) is not (role is Role.PROJECTOR):
        kinds = ("a model, and no projector", "a projector, and no model")
        kind = kinds[role is Role.MODEL]
        raise Refused(Reason.MODEL_FORMAT_UNSUPPORTED, f"{what} is {kind}")
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


def _folder(hop: SourceUrl) -> str:
    return HttpsUrl(hop.host, hop.port, hop.path.rpartition("/")[0] + "/", "").text


def _origin(hop: SourceUrl) -> str:
    return HttpsUrl(hop.host, hop.port, "/", "").text
