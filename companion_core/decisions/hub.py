"""Rules: which files of a model hub's repository are one model.

The hub is huggingface.co, as its own client and its documentation describe its answers, or one that
answers alike. Every name and number is a stranger's. Imports no I/O; never raises on bad input.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from companion_core.decisions.integrity import MAX_SIZE

__all__ = [
    "HubChoice",
    "HubFile",
    "HubName",
    "HubRepository",
    "choose_files",
    "parse_hub_name",
    "parse_repository",
    "quantisation_of",
]

PREFERRED: Final = "Q4_K_M"
MAX_FILES: Final = 10_000
_MAX_PATH: Final = 512

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_NAME = re.compile(
    rf"hf:(?P<owner>{_PART})/(?P<name>{_PART})(?::(?P<tag>[A-Za-z0-9._-]{{1,128}}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._+@=,() -]*"
_PATH = re.compile(rf"(?!.*(?:^|/)\.\.?(?:/|$)){_SEGMENT}(?:/{_SEGMENT})*")
_PARTS = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
# Such as Q4_K_M, UD-Q2_K_XL, IQ4_XS, BF16, MXFP4_MOE; the last one in a name counts.
_QUANT = re.compile(
    r"(?:UD-)?(?:I?Q[0-9]+(?:_[A-Z0-9]+)*|TQ[0-9]+_[0-9]+|BF16|F16|F32|MXFP4(?:_[A-Z]+)?|NVFP4)"
)
_NO_MODELS: Final = ("imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A repository, and what of it: `hf:OWNER/NAME[:TAG]`.

    Attributes:
        repository: "OWNER/NAME".
        tag: a quantisation; None for the default.
    """

    repository: str
    tag: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: of segments that are neither empty nor dots.
        size: in bytes.
        sha256: as the hub states it.
    """

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The last segment of `path`."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepository:
    """What a hub says of a repository.

    Attributes:
        id: its name now; another one than was asked for after it was renamed.
        commit: that the answer is about.
        licence: as its publisher wrote it.
        files: GGUF files of a stated digest, in the hub's order.
    """

    id: str
    commit: str
    licence: str | None
    files: tuple[HubFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubChoice:
    """Which files are taken.

    Attributes:
        files: the model, its parts in order; empty when nothing was chosen.
        projector: what the model sees or hears through, if there is one.
        quantisation: of the chosen files, or None.
        offered: every quantisation of the repository, for the person to choose from.
    """

    files: tuple[HubFile, ...]
    projector: HubFile | None
    quantisation: str | None
    offered: tuple[str, ...]


def parse_hub_name(text: object) -> HubName | None:
    """Return what `hf:OWNER/NAME[:TAG]` names, or None if it is no such text."""
    if type(text) is not str or not text.startswith("hf:"):
        return None
    match = _NAME.fullmatch(text)
    if match is None or ".." in text or "--" in match["name"]:
        return None
    return HubName(repository=f"{match['owner']}/{match['name']}", tag=match["tag"])


def parse_repository(document: object) -> HubRepository | None:
    """Return what the hub's answer about a model says, with `blobs=true`; None if it is no such.

    A file is left out if its name is not plain, or if no SHA-256 is stated for it.
    """
    if not isinstance(document, dict):
        return None
    name, commit, siblings = (document.get(key) for key in ("id", "sha", "siblings"))
    if type(name) is not str or parse_hub_name(f"hf:{name}") is None or ":" in name:
        return None
    if type(commit) is not str or _COMMIT.fullmatch(commit) is None:
        return None
    if type(siblings) is not list or len(siblings) > MAX_FILES:
        return None
    files = tuple(file for entry in siblings if (file := _file(entry)) is not None)
    return HubRepository(id=name, commit=commit, licence=_licence(document), files=files)


def _file(entry: object) -> HubFile | None:
    if not isinstance(entry, dict):
        return None
    path, large = entry.get("rfilename"), entry.get("lfs")
    if type(path) is not str or len(path) > _MAX_PATH or _PATH.fullmatch(path) is None:
        return None
    if not path.lower().endswith(".gguf") or not isinstance(large, dict):
        return None
    size, sha256 = large.get("size"), large.get("sha256")
    if type(size) is not int or not 0 < size <= MAX_SIZE:
        return None
    if type(sha256) is not str or _SHA256.fullmatch(sha256) is None:
        return None
    return HubFile(path=path, size=size, sha256=sha256)


def _licence(document: dict[Any, Any]) -> str | None:
    card = document.get("cardData")
    found = card.get("license") if isinstance(card, dict) else None
    if type(found) is list and found:
        found = found[0]
    if type(found) is not str or re.fullmatch(r"[\x20-\x7e]{1,128}", found) is None:
        return None
    return found


def quantisation_of(path: object) -> str | None:
    """Return the quantisation that a file's path names, in capitals; None if it names none."""
    if type(path) is not str:
        return None
    found = _QUANT.findall(path.upper())
    return found[-1] if found else None


def choose_files(repository: object, *, tag: object = None, file: object = None) -> HubChoice:
    """Choose the files of one model; all parts of a split one, and its projector.

    Args:
        repository: a `HubRepository`.
        tag: a quantisation, whatever its letters' case; None for Q4_K_M, or for the only one.
        file: the path or name of one file, which is taken instead.
    """
    if type(repository) is not HubRepository:
        return HubChoice(files=(), projector=None, quantisation=None, offered=())
    models = [each for each in repository.files if _is_model(each)]
    groups: dict[str, list[HubFile]] = {}
    for each in models:
        groups.setdefault(quantisation_of(each.path) or "", []).append(each)
    offered = tuple(dict.fromkeys(name for name in groups if name))
    if type(file) is str:
        chosen = [each for each in repository.files if file in {each.path, each.name}][:1]
    elif type(tag) is str:
        chosen = groups.get(tag.upper(), [])
    else:
        chosen = groups.get(PREFERRED, []) or (models if len(groups) == 1 else [])
    files = _whole(chosen, repository.files)
    return HubChoice(
        files=files,
        projector=_projector(repository, files),
        quantisation=quantisation_of(files[0].path) if files else None,
        offered=offered,
    )


def _is_model(file: HubFile) -> bool:
    name = file.name.lower()
    return "mmproj" not in name and not any(each in name for each in _NO_MODELS)


def _whole(chosen: list[HubFile], files: tuple[HubFile, ...]) -> tuple[HubFile, ...]:
    """Return the first file with all its parts, or nothing if a part is missing."""
    if not chosen:
        return ()
    first = chosen[0]
    match = _PARTS.fullmatch(first.path)
    if match is None:
        return (first,)
    count = int(match["count"])
    by_path = {each.path: each for each in files}
    names = [
        f"{match['prefix']}-{number:05d}-of-{match['count']}{first.path[-5:]}"
        for number in range(1, count + 1)
    ]
    if not 0 < count <= len(files) or any(name not in by_path for name in names):
        return ()
    return tuple(by_path[name] for name in names)


def _projector(repository: HubRepository, files: tuple[HubFile, ...]) -> HubFile | None:
    """Return the projector that lies nearest; of several in one folder, one of 16 bits."""
    if not files or any("mmproj" in file.name.lower() for file in files):
        return None
    found = [each for each in repository.files if "mmproj" in each.name.lower()]
    folder = files[0].path.rpartition("/")[0]

    def distance(file: HubFile) -> tuple[bool, bool, int]:
        beside = file.path.rpartition("/")[0] == folder
        return not beside, quantisation_of(file.name) not in {"F16", "BF16"}, file.size

    return min(found, key=distance, default=None)
