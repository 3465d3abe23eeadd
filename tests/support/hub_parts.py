"""A person who adds models of a hub's double in this process, with a list and a store."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from companion_core.authority.hub import Hub
from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.decisions.hub import HubName, parse_hub_name
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.egress.live import LiveEgress
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.serving.additions import AddedModel, Fetching
from companion_core.serving.library import ModelLibrary
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.own_list import open_own_list
from companion_core.serving.remote_files import HUB_PACE, FoundRemote, HubDownload, look_in_hub
from companion_core.system.clock import wall_now
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain
from companion_core.testing.model_hub import ModelHub


class NamedEgress(LiveEgress):
    """The real doorway, where some names of the network are ports of this machine."""

    def __init__(self, ports: dict[str, int]) -> None:
        super().__init__()
        self.ports = ports

    def connect_tcp(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> socket.socket:
        if host in self.ports and port == 443:
            return socket.create_connection(("127.0.0.1", self.ports[host]), timeout)
        return super().connect_tcp(host, port, context=context, timeout=timeout)


class HubPerson:
    """Adds what the double has, by the same calls as the command."""

    def __init__(
        self,
        folder: Path,
        hub: ModelHub,
        context: ssl.SSLContext,
        *,
        keychain: FakeKeychain | None = None,
        **sections: Any,
    ) -> None:
        self.paths = InstancePaths(folder / "state")
        self.paths.prepare()
        self.double = hub
        self.egress = NamedEgress(hub.ports)
        self.context = context
        self.waits: list[int] = []
        self.download = HttpsDownloader(self.egress, lambda: context).open
        config = parse_config(sections)
        self.keychain = keychain or FakeKeychain()
        chosen: Any = SimpleNamespace(provider=self.keychain, plugin="fake")
        self.own = open_own_list(config, self.paths, chosen)
        lists = ModelLists(config, self.paths, self.egress, context, self.own, clock=wall_now)
        self.lists = lists
        self.library = ModelLibrary(self.paths, lists, self.own)

    def hub(self, token: str | None = None) -> Hub:
        endpoint = parse_https_url(self.double.endpoint)
        assert isinstance(endpoint, HttpsUrl)
        return Hub(
            endpoint,
            egress=self.egress,
            context=self.context,
            token=None if token is None else Secret(token),
            waits=lambda _host, seconds: self.waits.append(seconds),
        )

    def look(
        self, source: str, token: str | None = None, **options: Any
    ) -> tuple[Any, FoundRemote]:
        hub, name = self.hub(token), parse_hub_name(source)
        assert isinstance(name, HubName)
        download = HubDownload(hub, self.download)
        wanted = {"model_id": None, "file": None, "revision": None, **options}
        found = look_in_hub(
            hub, name, download=download, plugin="https", cancelled=threading.Event(), **wanted
        )
        return download, found

    def add(self, source: str, token: str | None = None, **options: Any) -> AddedModel:
        download, found = self.look(source, token, **options)
        self.library.additions.require_room(found)
        return self.library.additions.add_remote(found, self.fetching(download))

    def fetching(self, download: Any) -> Fetching:
        return Fetching(
            download=download,
            plugin="https",
            progress=lambda _done, _total: None,
            cancelled=threading.Event(),
            pace=HUB_PACE,
        )

    @property
    def recorded(self) -> list[str]:
        manifest = self.own.read().manifest
        return [] if manifest is None else [model.id for model in manifest.models]

    @property
    def stored(self) -> list[str]:
        return sorted(path.name for path in self.paths.models.glob("*"))


def gguf(architecture: str = "llama", size: int = 300_000, licence: str = "") -> bytes:
    """Return a file with a head of its own and nothing else of use."""
    entries = {
        "general.architecture": architecture,
        **({"general.license": licence} if licence else {}),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    for key, value in entries.items():
        head += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
        head += struct.pack("<Q", len(value)) + value.encode()
    return head + bytes(number % 251 for number in range(size - len(head)))
