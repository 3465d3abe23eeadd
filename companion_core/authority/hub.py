"""Ask a model hub: which files a repository has, and where the bytes of one are.

Facts about its answers, with their sources: docs/hub.md. A token goes to the hub's own origin and
to nobody else; the hosts that it redirects to never see it.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from companion_core.decisions.hub import HubFile, HubRepository, parse_repository
from companion_core.decisions.hub_answers import (
    HubProblem,
    explain_answer,
    stated_digest,
    wait_seconds,
)
from companion_core.decisions.redirect import resolve_redirect
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import TransportFailed
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.system.deadline import call_with_deadline
from companion_core.system.secret import Secret
from companion_core.transfer_fault import TransferFault, TransferProblem, explain_problem

__all__ = ["Hub"]

IDLE_SECONDS: Final = 20.0
TOTAL_SECONDS: Final = 60.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
# A repository that was renamed once more, and a small detour.
MAX_REDIRECTS: Final = 3
# How often a hub that asks to wait is waited for, for one request.
MAX_WAITS: Final = 2
_OK: Final = 200
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A whole answer, or the head of one whose body is not of interest."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: HttpsUrl


class Hub:
    """A model hub. Blocking.

    Args:
        endpoint: its address; a mirror may have a path.
        egress: the doorway.
        context: from `build_tls_context`.
        token: sent with each request to this endpoint; None for none.
        waits: told which host asks to wait, and how many seconds.

    Attributes:
        endpoint: see above.
        cancelled: ends every wait; whoever runs the work sets it.

    Raises:
        EnvironmentUnavailable: from the methods: `download_failed`, with what the hub said.
        CompanionError: from the methods: `interrupted`.
    """

    def __init__(
        self,
        endpoint: HttpsUrl,
        *,
        egress: Egress,
        context: ssl.SSLContext,
        token: Secret | None = None,
        waits: Callable[[str, int], object] = lambda _host, _seconds: None,
    ) -> None:
        self.endpoint = endpoint
        self._egress = egress
        self._context = context
        self.cancelled = threading.Event()
        self._token = token
        self._waits = waits

    def repository(self, name: str, revision: str | None = None) -> HubRepository:
        """Return what the hub says of a repository at a branch, tag or commit.

        Args:
            name: "OWNER/NAME".
            revision: None for the main branch.
        """
        asked = quote("main" if revision is None else revision, safe="")
        url = self._address(f"/api/models/{name}/revision/{asked}", "?blobs=true")
        answer = self._ask(url, name)
        if answer.status != _OK:
            raise self._failed(TransferProblem(TransferFault.REDIRECTED, answer.status))
        try:
            found = parse_repository(json.loads(answer.body))
        except (ValueError, RecursionError):  # a thousand brackets are an answer too
            found = None
        # Whoever names a commit wants that one.
        other = found is not None and _COMMIT.fullmatch(asked) and found.commit != asked
        if found is None or other:
            raise self._failed(TransferProblem(TransferFault.BROKEN_ANSWER, answer.status))
        return found

    def address_of(self, repository: HubRepository, file: HubFile) -> str:
        """Return the address at which the hub tells where a file's bytes are."""
        path = f"/{repository.id}/resolve/{repository.commit}/{quote(file.path)}"
        return self._address(path).text

    def is_mine(self, url: str) -> bool:
        """Tell whether an address is this hub's own."""
        parsed = parse_https_url(url)
        mine = (self.endpoint.host, self.endpoint.port)
        return isinstance(parsed, HttpsUrl) and (parsed.host, parsed.port) == mine

    def link(self, url: str, file: HubFile) -> str | None:
        """Return where the bytes of a file are now; None where the hub gives them itself.

        Args:
            url: from `address_of`.
            file: what the hub listed.

        Raises:
            Refused: `digest_mismatch`: it announces other bytes than it listed.
        """
        parsed = parse_https_url(url)
        if not isinstance(parsed, HttpsUrl):
            raise self._failed(TransferProblem(TransferFault.BROKEN_ANSWER))
        name = parsed.path.removeprefix(self.endpoint.path.rstrip("/")).partition("/resolve/")[0]
        answer = self._ask(parsed, name.strip("/"), body=False)
        digest, size = stated_digest(answer.headers)
        if digest not in {None, file.sha256} or size not in {None, file.size}:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"{self.endpoint.host} announces other bytes of {file.name} than it lists",
            )
        if answer.status == _OK:
            return None
        return resolve_redirect(answer.url.text, answer.headers.get("location", ""))

    # --- one request ----------------------------------------------------------------------

    def _address(self, path: str, query: str = "") -> HttpsUrl:
        prefix = self.endpoint.path.rstrip("/")
        return HttpsUrl(self.endpoint.host, self.endpoint.port, f"{prefix}{path}", query)

    def _ask(self, url: HttpsUrl, name: str, *, body: bool = True) -> _Answer:
        """Ask until there is an answer that is neither a detour of the hub's own nor a wait.

        Args:
            url: what to ask for.
            name: the repository that it is about.
            body: read it too.
        """
        waits, hops = 0, 0
        while True:
            answer = self._get(url, body=body)
            problem = explain_answer(
                answer.status, answer.headers, with_token=self._token is not None
            )
            if problem is HubProblem.LIMITED and waits < MAX_WAITS:
                waits += 1
                self._wait(wait_seconds(answer.headers) or 1)
            elif problem is not None:
                words = problem.words(self._address(f"/{name}").text)
                detail = f"{name} on {self.endpoint.host}: {words}"
                raise EnvironmentUnavailable(Reason.DOWNLOAD_FAILED, detail)
            elif answer.status in _REDIRECTS and (next_url := self._own_redirect(answer)):
                hops += 1
                if hops > MAX_REDIRECTS:
                    raise self._failed(TransferProblem(TransferFault.TOO_MANY_REDIRECTS))
                url = next_url
            else:
                return answer

    def _own_redirect(self, answer: _Answer) -> HttpsUrl | None:
        """Return where the hub leads within itself: the new name of a repository."""
        location = answer.headers.get("location", "")
        target = resolve_redirect(answer.url.text, location)
        parsed = None if target is None else parse_https_url(target)
        if not isinstance(parsed, HttpsUrl):
            # Its path may have what `parse_https_url` refuses, such as a branch with a slash.
            return None
        own = (parsed.host, parsed.port) == (self.endpoint.host, self.endpoint.port)
        return parsed if own and not location.startswith("https:") else None

    def _wait(self, seconds: int) -> None:
        self._waits(self.endpoint.host, seconds)
        if self.cancelled.wait(seconds):
            raise CompanionError(Reason.INTERRUPTED)

    def _get(self, url: HttpsUrl, *, body: bool) -> _Answer:
        try:
            return call_with_deadline(
                lambda: self._exchange(url, body=body),
                seconds=TOTAL_SECONDS,
                cancelled=self.cancelled,
            )
        except TransportFailed as error:
            raise self._failed(error.problem) from error
        except TimeoutError as error:
            raise self._failed(TransferProblem(TransferFault.TIMED_OUT)) from error

    def _exchange(self, url: HttpsUrl, *, body: bool) -> _Answer:
        from companion_core.egress.http_transport import DoorwayTransport  # noqa: PLC0415 - httpx2 takes a while to load

        with (
            DoorwayTransport(
                self._egress, self._context, seconds=IDLE_SECONDS, total_seconds=TOTAL_SECONDS
            ) as transport,
            closing(transport.get(url, bearer=self._token)) as answer,
        ):
            received = bytearray()
            if body:
                for piece in answer.iter_raw():
                    received += piece
                    if len(received) > MAX_ANSWER_BYTES:
                        raise self._failed(TransferProblem(TransferFault.BROKEN_ANSWER))
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return _Answer(
                status=answer.status_code, headers=headers, body=bytes(received), url=url
            )

    def _failed(self, problem: TransferProblem) -> EnvironmentUnavailable:
        words = explain_problem(problem, self.endpoint.host)
        return EnvironmentUnavailable(Reason.DOWNLOAD_FAILED, words)
