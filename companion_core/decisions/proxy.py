"""Rules: which proxy a host is reached through, from the settings of the system.

The names and their meaning are curl's: HTTPS_PROXY, else ALL_PROXY, and NO_PROXY for what needs
none. A loopback host never has a proxy, whatever the settings say (I-17). What cannot be read is
refused, and never taken for "no proxy". Imports no I/O; never raises.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from companion_core.system.secret import Secret
from companion_core.transfer_fault import TransferFault

__all__ = ["Proxy", "choose_proxy", "is_loopback", "parse_proxy"]

# The schemes, and the port of an address that names none. A SOCKS proxy resolves the name.
PORTS: Final[Mapping[str, int]] = MappingProxyType(
    {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
)
MAX_PORT: Final = 65535
MAX_SOCKS_FIELD: Final = 255  # RFC 1929 section 2
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# An entry of NO_PROXY: a name or an address, in brackets where it has colons and a port.
_ENTRY = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where to connect instead, and how to speak there; its `repr` shows no credentials.

    Attributes:
        scheme: one of `PORTS`.
        credentials: user and password, None if its address has none.
    """

    scheme: str
    host: str
    port: int
    credentials: tuple[Secret, Secret] | None = field(default=None, repr=False)


def choose_proxy(host: str, port: int, settings: Mapping[str, str]) -> Proxy | TransferFault | None:
    """Return the proxy for a host of an `https` address, None for none, or what is wrong.

    Args:
        host: lower case; an IPv6 address without brackets.
        port: of the host.
        settings: as `urllib.request.getproxies` returns them: "https", "all" and "no".
    """
    if is_loopback(host):
        return None
    address = settings.get("https") or settings.get("all")
    if not address or _excepted(host, port, settings.get("no", "")):
        return None
    return parse_proxy(address)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine (RFC 1122, RFC 4291, RFC 6761 section 6.3)."""
    name = host.lower().rstrip(".")
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def parse_proxy(text: str) -> Proxy | TransferFault:
    """Return the proxy that an address names; without a scheme it is `http`."""
    text = text.strip()
    if _CONTROL.search(text):
        return TransferFault.PROXY_MALFORMED
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return TransferFault.PROXY_MALFORMED
    if parts.scheme not in PORTS:
        return TransferFault.PROXY_UNSUPPORTED
    # A "/", "?" or "#" of a password would make another host of what stands before it.
    if parts.path not in {"", "/"} or parts.query or parts.fragment or not _HOST.fullmatch(host):
        return TransferFault.PROXY_MALFORMED
    if port is None:
        port = PORTS[parts.scheme]
    credentials = _credentials(parts.netloc, parts.scheme)
    if isinstance(credentials, TransferFault) or not 1 <= port <= MAX_PORT:
        return TransferFault.PROXY_MALFORMED
    return Proxy(scheme=parts.scheme, host=host, port=port, credentials=credentials)


def _credentials(authority: str, scheme: str) -> tuple[Secret, Secret] | TransferFault | None:
    userinfo, at, _ = authority.rpartition("@")
    if not at:
        return None
    user, _, password = userinfo.partition(":")
    try:
        pair = [urllib.parse.unquote(each, errors="strict") for each in (user, password)]
        sizes = [len(each.encode("utf-8")) for each in pair]
    except ValueError:
        return TransferFault.PROXY_MALFORMED
    if any(map(_CONTROL.search, pair)):
        return TransferFault.PROXY_MALFORMED
    if scheme.startswith("socks5"):
        # RFC 1929 section 2: one byte holds the length of each, and neither is empty.
        if not all(1 <= size <= MAX_SOCKS_FIELD for size in sizes):
            return TransferFault.PROXY_MALFORMED
    elif ":" in pair[0]:  # RFC 7617 section 2: a server would take it for the password's start
        return TransferFault.PROXY_MALFORMED
    return Secret(pair[0]), Secret(pair[1])


def _excepted(host: str, port: int, exceptions: str) -> bool:
    return any(_covers(entry, host, port) for entry in re.split(r"[,\s]+", exceptions) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    """Tell whether an entry of NO_PROXY names the host; an unreadable one names nothing.

    "example.org", ".example.org" and "*.example.org" name the host and all below it; an address
    or a network (192.0.2.0/24) names addresses; a port narrows an entry.
    """
    if entry == "*":
        return True
    address, named = _address(host), _as_network(entry)
    if named is not None:
        return address is not None and address in named
    parts = _ENTRY.fullmatch(entry)
    if parts is None or (parts["port"] is not None and int(parts["port"]) != port):
        return False
    name = parts["v6"] or parts["name"]
    named = _as_network(name)
    if named is not None:
        return address is not None and address in named
    domain = name.lower().removeprefix("*").removeprefix(".").rstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _as_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
