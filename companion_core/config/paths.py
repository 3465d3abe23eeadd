"""Where an instance keeps its state; every folder is 0700 and belongs to the person (I-18)."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.errors import Reason, Refused, UsageError
from companion_core.system.os_compat import user_id
from companion_core.system.state_files import open_to_others, private_folder, refuse_link

__all__ = [
    "ANY_INSTANCE",
    "DEFAULT_INSTANCE",
    "InstancePaths",
    "default_config_file",
    "default_state_dir",
    "refuse_shared",
]

DEFAULT_INSTANCE: Final = "default"
# Stands for the first replica that is free, whose name is this with a number.
ANY_INSTANCE: Final = "auto"
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")

# The shortest sun_path of the supported systems is macOS's 104 bytes, with its NUL.
MAX_SOCKET_PATH: Final = 103
# Where Linux keeps a folder of each user who is logged in.
LOGIN_FOLDERS: Final = Path("/run/user")
# The longest path inside the run folder: a start's folder and the backend's socket.
_LONGEST_RUN_NAME: Final = len("/01234567/backend.sock")


def default_config_file() -> Path:
    """Return the platform's place for `config.toml`.

    Raises:
        UsageError: `usage` if the person has no home folder.
    """
    return _platform_folder("user_config_path", "--config") / "config.toml"


def default_state_dir() -> Path:
    """Return the platform's place for the state folder.

    Raises:
        UsageError: `usage` if the person has no home folder.
    """
    return _platform_folder("user_state_path", "--state-dir")


def _platform_folder(function: str, option: str) -> Path:
    import platformdirs  # noqa: PLC0415 - not needed if the person names the folder

    with contextlib.suppress(RuntimeError):  # newer versions raise it for a missing home folder
        folder: Path = getattr(platformdirs, function)("companion", appauthor=False)
        if folder.is_absolute():
            return folder
    raise UsageError(Reason.USAGE, f"there is no home folder; use {option}")


def refuse_shared(root: Path) -> None:
    """Refuse a folder that is open to others and holds other files than a companion's state.

    Raises:
        Refused: `state_path_unsafe`.
    """
    try:
        shared = os.name == "posix" and stat.S_IMODE(root.stat().st_mode) & 0o077
        foreign = shared and any(root.iterdir()) and not (root / "instances").is_dir()
    except OSError:
        return  # it is not there, or `private_folder` refuses it
    if foreign:
        raise Refused(
            Reason.STATE_PATH_UNSAFE, f"{root} is open to others and holds something else"
        )


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The folders and files of one companion.

    Attributes:
        root: the state folder; all instances in it share models and manifests.
        instance: the name of this companion.
    """

    root: Path
    instance: str = DEFAULT_INSTANCE

    def __post_init__(self) -> None:
        try:
            str(self.root).encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                Reason.USAGE, "the state folder's path is no text; choose another with --state-dir"
            ) from error
        if not _INSTANCE.match(self.instance):
            raise UsageError(
                Reason.USAGE, "an instance name is a-z, 0-9, - and _, up to 32 characters"
            )

    @property
    def folder(self) -> Path:
        """The folder of this instance alone."""
        return self.root / "instances" / self.instance

    @property
    def keychain_scope(self) -> str:
        """The prefix of the keychain accounts, which no other state folder shares.

        The core keeps only the token of one start there, so nothing is lost when the folder moves.
        """
        return f"{self.instance}/{self._mark()}"

    def _mark(self) -> str:
        """Return a short digest that tells this folder from others of the same name."""
        return _digest(self._real_folder())

    @property
    def account_mark(self) -> str:
        """Tells this state folder's sign-in from another's; all instances in it share one."""
        return _digest(Path(os.path.realpath(self.root)))

    @property
    def account(self) -> Path:
        """Locked while the sign-in session is read or changed; it holds nothing."""
        return self.root / "account"

    def _real_folder(self) -> Path:
        """Return this folder's canonical path, however the state folder is spelled."""
        return Path(os.path.realpath(self.folder))

    @property
    def models(self) -> Path:
        """The store of verified models."""
        return self.root / "models"

    @property
    def plugin_store(self) -> Path:
        """Which plugins the person trusts; shared by all instances."""
        return self.root / "plugins.json"

    @property
    def logs(self) -> Path:
        """The logs of the companion and of its runtime."""
        return self.folder / "logs"

    @property
    def log(self) -> Path:
        """What happened to this companion, and what a detached one writes to stderr."""
        return self.logs / "companion.log"

    @property
    def runtime_log(self) -> Path:
        """What the runtime writes to stdout and stderr."""
        return self.logs / "runtime.log"

    @property
    def lock_file(self) -> Path:
        """The file that a running companion has locked."""
        return self.folder / "lock"

    @property
    def state_file(self) -> Path:
        """Pid, start time and control socket of the running companion; never a secret."""
        return self.folder / "state.json"

    @property
    def port_file(self) -> Path:
        """The gateway's port, so that the next start takes it again."""
        return self.folder / "port"

    @property
    def last_end(self) -> Path:
        """Why the last companion ended by itself, if it did."""
        return self.folder / "ended"

    @property
    def client_keys(self) -> Path:
        """The folder of the keys of programs that keep one; digests alone."""
        return self.folder / "clients"

    @property
    def connections(self) -> Path:
        """The folder of what `companion connect` wrote, and of what was there before."""
        return self.folder / "connect"

    @property
    def runtime_record(self) -> Path:
        """The processes of the running runtime; never a secret."""
        return self.folder / "runtime.json"

    @property
    def manifests(self) -> Path:
        """What was seen of manifests, and the accepted ones; shared by all instances."""
        return self.root / "manifests"

    @property
    def manifest_memory(self) -> Path:
        """The newest manifest seen of each key, and the latest wall time."""
        return self.manifests / "memory.json"

    @property
    def own_manifest(self) -> Path:
        """The list of the person's own models; shared by all instances."""
        return self.root / "own" / "manifest.json"

    @property
    def default_model(self) -> Path:
        """The id of the model that is served where none is named."""
        return self.root / "own" / "default"

    def earlier_manifest_memories(self) -> list[Path]:
        """Return the files that an earlier release kept in each instance's folder."""
        return sorted((self.root / "instances").glob("*/manifest-memory.json"))

    def runtime_data(self, runtime: str) -> Path:
        """The folder that a runtime keeps between starts."""
        return self.folder / "data" / runtime

    def prepare(self) -> None:
        """Make the instance's folders.

        A state folder that exists is closed to others if it is empty or a companion's; any other
        is left unchanged.

        Raises:
            Refused: `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`.
        """
        refuse_shared(self.root)
        self.refuse_links()
        private_folder(self.root, may_be_link=True)
        instances = self.root / "instances"
        for folder in (instances, self.folder, self.models, self.manifests, self.logs):
            private_folder(folder)

    def refuse_links(self) -> None:
        """Refuse a link in place of a folder below the state folder.

        The state folder itself is the person's choice and may be reached through links.

        Raises:
            Refused: `state_path_unsafe`.
        """
        own = self.own_manifest.parent
        shared = (self.root / "instances", self.models, self.manifests, own)
        mine = (self.logs, self.client_keys, self.connections, self.folder / "data")
        for folder in (*shared, self.folder, *mine):
            refuse_link(folder)

    def run_folder(self) -> Path:
        """Make the folder of Unix sockets private, and return it.

        Raises:
            Refused: `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`.
        """
        return private_folder(self.run_folder_path())

    def gateway_socket(self) -> Path:
        """Make the folder of the gateway's Unix socket private, and return the socket's path.

        Nothing else is in the folder, so it can be handed to a container as a whole; and it stays,
        so that a container which has it finds the socket of the next start there.

        Raises:
            Refused: `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`.
        """
        return private_folder(self.run_folder() / "gateway") / "http.sock"

    def run_folder_path(self) -> Path:
        """Return the folder of Unix sockets: the first candidate with a path short enough for them.

        None of them lies where another user could make it first, such as in /tmp.

        Raises:
            UsageError: `configuration_invalid` if there is no such folder.
        """
        for candidate in self._run_folders():
            if len(os.fsencode(candidate)) + _LONGEST_RUN_NAME <= MAX_SOCKET_PATH:
                return candidate
        raise UsageError(
            Reason.CONFIGURATION_INVALID,
            f"{self.root} is too long a path for sockets, and neither XDG_RUNTIME_DIR nor the "
            "cache in your home is a folder of yours that is shorter; choose another --state-dir",
        )

    def _run_folders(self) -> Iterator[Path]:
        yield (self._real_folder() / "run").absolute()
        import tempfile  # noqa: PLC0415 - only a deep state folder needs another place

        name = f"companion-{self._mark()}"
        for folder in (
            os.environ.get("XDG_RUNTIME_DIR", ""),
            str(LOGIN_FOLDERS / str(user_id())),
            tempfile.gettempdir(),  # a folder of one's own on macOS and Windows
        ):
            if os.path.isabs(folder) and os.path.isdir(folder) and _only_ours(Path(folder)):  # noqa: PTH112, PTH117 - `Path("")` would be the working folder
                yield Path(folder) / name
        with contextlib.suppress(UsageError):
            cache = _platform_folder("user_cache_path", "--state-dir")
            if _only_ours(cache):
                yield cache / self._mark()


def _digest(folder: Path) -> str:
    import hashlib  # noqa: PLC0415 - a companion needs it, most commands do not

    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


def _only_ours(folder: Path) -> bool:
    """Tell whether nobody else can make a file in the folder, or the folder itself."""
    if os.name != "posix":
        return True
    try:
        while not os.path.lexists(folder):
            folder = folder.parent
        status = folder.stat()
        return status.st_uid == user_id() and not open_to_others(status, folder)
    except OSError:
        return False
