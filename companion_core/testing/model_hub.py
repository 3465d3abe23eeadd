"""A model hub on loopback that answers as the public one does, with a switch for what can go wrong.

It has two hosts: the hub, which knows repositories and redirects those who ask for a large file,
and the byte host, which gives them for a signed link. docs/hub.md has the facts and their sources.

with ModelHub(authority.server_context(), {"acme/tiny-GGUF": {"tiny-Q4_K_M.gguf": data}}) as hub:
    hub.misbehave = HubMisbehaviour(gated=True)
    run(HF_ENDPOINT=hub.endpoint)
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from companion_core.testing.hub_documents import describe_repository, list_tree
from companion_core.testing.tls_host import HostRequest, TlsHost

__all__ = ["HUB_TOKEN", "HubMisbehaviour", "ModelHub"]

# The one token that it knows; of the form of the public hub's.
HUB_TOKEN: Final = "hf_" + "x" * 34
# Of this repository the bytes are for those who have been granted access, whatever the knobs say.
ALWAYS_GATED: Final = "acme/gated"
_COMMIT_BYTES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HubMisbehaviour:
    """How its answers differ from those to a person who may have the file; by default not at all.

    Attributes:
        gated: who has not been granted access is refused the bytes; of `acme/gated` always.
        granted: the token's owner has access.
        private: without the token nobody sees the repository.
        disabled: the hub gives nothing of it to anybody.
        renamed_to: the repository's name now; the old one redirects there.
        limited: so many requests are refused with 429, which asks to wait `limit_seconds`.
        limit_seconds: see `limited`.
        wrong_byte: one byte that comes is another.
        short: so many bytes lack at the end, and the length says so.
        cut_after: the byte host hangs up after so many bytes, `cut_times` times.
        cut_times: see `cut_after`.
        announce: the SHA-256 where it redirects is this one.
        elsewhere: where it redirects to, in place of its byte host.
        loop: it redirects to itself.
        link_seconds: how long a signed link is good.
        ended_links: so many links, the first ones, have ended when they are given.
        ranges: "honour", "ignore" (200 and everything), or "lie" (206, from the first byte on).
        nonsense: the answer about a repository is this.
    """

    gated: bool = False
    granted: bool = False
    private: bool = False
    disabled: bool = False
    renamed_to: str = ""
    limited: int = 0
    limit_seconds: int = 1
    wrong_byte: bool = False
    short: int = 0
    cut_after: int = 0
    cut_times: int = 1
    announce: str = ""
    elsewhere: str = ""
    loop: bool = False
    link_seconds: float = 3600.0
    ended_links: int = 0
    ranges: str = "honour"
    nonsense: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repository:
    files: Mapping[str, bytes]
    commit: str


class ModelHub:
    """The two hosts of a hub, as a context.

    Args:
        context: of a server, for `127.0.0.1`.
        repositories: the files of each, by "OWNER/NAME".
        names: of the hub and of the byte host, as a doorway that leads them to `ports` has them;
            without them both are addresses of this machine.

    Attributes:
        ports: where each name is to be reached.
        misbehave: read again for each request.
        requests: host ("hub" or "bytes"), path and headers (names in lower case) of each so far.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        repositories: Mapping[str, Mapping[str, bytes]],
        *,
        names: tuple[str, str] | None = None,
    ) -> None:
        self.misbehave = HubMisbehaviour()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._repositories = {
            name: _Repository(files=files, commit=secrets.token_hex(_COMMIT_BYTES))
            for name, files in repositories.items()
        }
        self._secret = secrets.token_bytes(16)
        self._cut = 0
        self._limited = 0
        self._links = 0
        self._names = names
        self._hub = _HubHost(context, self)
        self._bytes = _ByteHost(context, self)
        self.ports = dict(zip(names or (), (self._hub.port, self._bytes.port), strict=False))

    @property
    def endpoint(self) -> str:
        """For `HF_ENDPOINT`."""
        return self._hub.url("") if self._names is None else f"https://{self._names[0]}"

    def commit_of(self, name: str) -> str:
        """Return the commit of a repository's main branch."""
        return self._repositories[name].commit

    def __enter__(self) -> Self:
        """Start both hosts."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._hub)
            stack.enter_context(self._bytes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both hosts."""
        self._stack.close()

    # --- the hub --------------------------------------------------------------------------

    def answer_hub(self, request: HostRequest) -> None:
        """Answer a request for the API or for a file."""
        headers = self._remember("hub", request)
        path, _, query = request.path.partition("?")
        path = urllib.parse.unquote(path)
        if self._limited < self.misbehave.limited:
            self._limited += 1
            _too_many(request, self.misbehave.limit_seconds)
        elif path.startswith("/api/models/"):
            self._answer_api(request, path.removeprefix("/api/models/"), query, headers)
        elif "/resolve/" in path:
            self._answer_resolve(request, path, headers)
        else:
            _refuse(request, HTTPStatus.NOT_FOUND, "NotFound", "Not found")

    def _answer_api(
        self, request: HostRequest, rest: str, query: str, headers: Mapping[str, str]
    ) -> None:
        owner, name, *tail = rest.split("/", 3)
        name = f"{owner}/{name}"
        if self._moved(request, name) or self._refused(request, name, headers, wants_bytes=False):
            return
        repository = self._repositories[name]
        if tail and tail[0] == "tree":
            _send(
                request, HTTPStatus.OK, json.dumps(list_tree(repository.files)).encode(), repository
            )
            return
        if len(tail) > 1 and tail[1] not in {"main", repository.commit}:
            _refuse(request, HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {tail[1]}")
            return
        if self.misbehave.nonsense:
            _send(request, HTTPStatus.OK, self.misbehave.nonsense)
            return
        blobs = "blobs=true" in query.lower()
        body = json.dumps(
            describe_repository(name, repository.commit, repository.files, blobs=blobs)
        ).encode()
        _send(request, HTTPStatus.OK, body, repository)

    def _answer_resolve(self, request: HostRequest, path: str, headers: Mapping[str, str]) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        if self._moved(request, name) or self._refused(request, name, headers, wants_bytes=True):
            return
        revision, _, file = rest.partition("/")
        repository = self._repositories[name]
        if revision not in {"main", repository.commit}:
            _refuse(request, HTTPStatus.NOT_FOUND, "RevisionNotFound", "Invalid rev id")
        elif file not in repository.files:
            _refuse(request, HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        else:
            data = repository.files[file]
            digest = self.misbehave.announce or hashlib.sha256(data).hexdigest()
            request.send_response(HTTPStatus.FOUND)
            request.send_header("X-Repo-Commit", repository.commit)
            request.send_header("X-Linked-Etag", f'"{digest}"')
            request.send_header("X-Linked-Size", str(len(data)))
            request.send_header("Accept-Ranges", "bytes")
            request.send_header("Location", self._location(request, name, file))
            request.send_header("Content-Length", "0")
            request.send_header("Connection", "close")
            request.end_headers()

    def _moved(self, request: HostRequest, name: str) -> bool:
        new = self.misbehave.renamed_to
        if not new or name == new:
            return False
        request.send_response(HTTPStatus.TEMPORARY_REDIRECT)
        request.send_header("Location", request.path.replace(name, new, 1))
        request.send_header("Content-Length", "0")
        request.send_header("Connection", "close")
        request.end_headers()
        return True

    def _refused(
        self, request: HostRequest, name: str, headers: Mapping[str, str], *, wants_bytes: bool
    ) -> bool:
        """Refuse as the public hub does; False if the caller may have what they ask for."""
        knobs, sent = self.misbehave, headers.get("authorization", "")
        known = hmac.compare_digest(sent.encode(), f"Bearer {HUB_TOKEN}".encode())
        anonymous = (HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        if sent and not known:
            said = (HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        elif name not in self._repositories or (knobs.private and not known):
            missing = (HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
            said = missing if sent else anonymous
        elif knobs.disabled:
            ended = (HTTPStatus.FORBIDDEN, "", "Access to this resource is disabled.")
            said = ended if sent else anonymous
        elif (
            wants_bytes and (knobs.gated or name == ALWAYS_GATED) and not (known and knobs.granted)
        ):
            status = HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED
            said = (status, "GatedRepo", f"Access to model {name} is restricted.")
        else:
            return False
        _refuse(request, *said)
        return True

    # --- the byte host --------------------------------------------------------------------

    def answer_bytes(self, request: HostRequest) -> None:
        """Answer a request for a signed link."""
        headers = self._remember("bytes", request)
        path, _, query = request.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        name, _, file = urllib.parse.unquote(path).removeprefix("/bridge/").partition("//")
        until = asked.get("Expires", "0")
        right = hmac.compare_digest(self._sign(name, file, until), asked.get("Signature", ""))
        if not right or float(until) < time.time():
            _refuse(request, HTTPStatus.FORBIDDEN, "", "AccessDenied")
            return
        data = self._repositories[name].files[file]
        etag = hashlib.sha256(b"of the byte host" + data).hexdigest()  # and no digest of the file
        if self.misbehave.wrong_byte:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send_bytes(request, data[: len(data) - self.misbehave.short], etag, headers)

    def _send_bytes(
        self, request: HostRequest, data: bytes, etag: str, headers: Mapping[str, str]
    ) -> None:
        wanted, first, last = headers.get("range", ""), 0, len(data) - 1
        status = HTTPStatus.OK
        if wanted.startswith("bytes=") and self.misbehave.ranges != "ignore":
            status = HTTPStatus.PARTIAL_CONTENT
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            if self.misbehave.ranges != "lie":
                first, last = int(begin), min(last, int(end or last))
        request.send_response(status)
        request.send_header("ETag", f'"{etag}"')
        request.send_header("Accept-Ranges", "bytes")
        if status is HTTPStatus.PARTIAL_CONTENT:
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        body = data[first : last + 1]
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Connection", "close")
        request.end_headers()
        if 0 < self.misbehave.cut_after < len(body) and self._cut < self.misbehave.cut_times:
            self._cut += 1
            body = body[: self.misbehave.cut_after]
        with contextlib.suppress(OSError):  # whoever has seen enough hangs up
            request.wfile.write(body)

    def _location(self, request: HostRequest, name: str, file: str) -> str:
        if self.misbehave.loop:
            return request.path
        return self.misbehave.elsewhere or self._link(name, file)

    def _link(self, name: str, file: str) -> str:
        self._links += 1
        ended = self._links <= self.misbehave.ended_links
        until = repr(time.time() + (-1.0 if ended else self.misbehave.link_seconds))
        signed = {"Expires": until, "Signature": self._sign(name, file, until), "Key-Pair-Id": "K"}
        path = urllib.parse.quote(f"/bridge/{name}//{file}")
        url = self._bytes.url(path) if self._names is None else f"https://{self._names[1]}{path}"
        return f"{url}?{urllib.parse.urlencode(signed)}"

    def _sign(self, name: str, file: str, until: str) -> str:
        return hmac.new(self._secret, f"{name} {file} {until}".encode(), hashlib.sha256).hexdigest()

    def _remember(self, host: str, request: HostRequest) -> dict[str, str]:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((host, request.path, headers))
        return headers


class _HubHost(TlsHost):
    def __init__(self, context: ssl.SSLContext, hub: ModelHub) -> None:
        super().__init__(context, {}, name="127.0.0.1")
        self._of = hub

    def answer(self, request: HostRequest) -> None:
        self._of.answer_hub(request)


class _ByteHost(TlsHost):
    def __init__(self, context: ssl.SSLContext, hub: ModelHub) -> None:
        super().__init__(context, {}, name="127.0.0.1")
        self._of = hub

    def answer(self, request: HostRequest) -> None:
        self._of.answer_bytes(request)


def _send(
    request: HostRequest, status: HTTPStatus, body: bytes, repository: _Repository | None = None
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    if repository is not None:
        request.send_header("X-Repo-Commit", repository.commit)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(body)


def _refuse(request: HostRequest, status: HTTPStatus, code: str, message: str) -> None:
    request.send_response(status)
    if code:
        request.send_header("X-Error-Code", code)
    request.send_header("X-Error-Message", message)
    request.send_header("Content-Length", "0")
    request.send_header("Connection", "close")
    request.end_headers()


def _too_many(request: HostRequest, seconds: int) -> None:
    request.send_response(HTTPStatus.TOO_MANY_REQUESTS)
    request.send_header("RateLimit", f'"api";r=0;t={seconds}')
    request.send_header("RateLimit-Policy", '"fixed window";"api";q=500;w=300')
    request.send_header("Content-Length", "0")
    request.send_header("Connection", "close")
    request.end_headers()
