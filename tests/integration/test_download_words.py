"""What a person reads when a model or a manifest does not come: each cause by its own name."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from download_parts import DATA, PATH, model_of

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.cli import main
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.tls_host import HostRequest, TlsHost

pytestmark = pytest.mark.integration


def of_model(url: str, context: ssl.SSLContext, folder: Path) -> CompanionError:
    pauses: list[float] = []
    store = ModelStore(folder / "models", sleep=pauses.append)
    model, allowed = model_of(url)
    download = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=5).open
    with pytest.raises(CompanionError) as caught:
        store.stage(model, allowed_sources=allowed, download=download)
    caught.value.pauses = pauses  # type: ignore[attr-defined] # for the test alone
    return caught.value


def of_manifest(url: str, context: ssl.SSLContext, folder: Path) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        fetch_manifest(
            url,
            egress=LiveEgress(),
            context=context,
            trusted_keys=["ed25519:" + "A" * 43 + "="],
            memory=ManifestMemory(folder / "state" / "memory.json"),
            wall_now=0.0,
        )
    return caught.value


BOTH = pytest.mark.parametrize("ask", [of_model, of_manifest])


@BOTH
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "answers 401: it asks for a sign-in"),
        (403, "answers 403: it denies access"),
        (404, "answers 404: it has no such file"),
        (407, "answers 407"),
        (410, "answers 410: it has no such file"),
        (418, "answers 418"),
        (429, "answers 429: too many requests"),
        (500, "answers 500: it has a fault"),
        (503, "answers 503: it has a fault"),
    ],
)
def test_a_status(  # noqa: PLR0917 - fixtures and a table's row
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, ask: Any, status: int, words: str
) -> None:
    host.misbehave = Misbehaviour(status=status)
    error = ask(host.url(PATH), context, tmp_path)
    assert words in error.detail
    assert PATH not in error.detail
    assert str(error) == error.reason.value


@BOTH
def test_a_certificate(host: ModelHost, tmp_path: Path, ask: Any) -> None:
    error = ask(host.url(PATH), build_tls_context(), tmp_path)
    assert "the certificate of 127.0.0.1 is not trusted" in error.detail
    assert "network.extra_ca_file" in error.detail


@BOTH
def test_an_old_tls(
    authority: CertificateAuthority, context: ssl.SSLContext, tmp_path: Path, ask: Any
) -> None:
    server = authority.server_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # they are old, which is the point
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
    with ModelHost(server, {PATH: DATA}) as old:
        assert "version 1.2 or newer" in ask(old.url(PATH), context, tmp_path).detail


@BOTH
def test_a_refused_connection(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, ask: Any
) -> None:
    host.stop()
    assert "refuses the connection" in ask(host.url(PATH), context, tmp_path).detail


@BOTH
def test_a_name_that_is_not_known(
    context: ssl.SSLContext, tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("NO_PROXY", "*")
    error = ask(f"https://models.example.org{PATH}", context, tmp_path)
    assert "the name models.example.org is not known" in error.detail


class Busy(TlsHost):
    """Answers 429 with a Retry-After, and then the file."""

    after = "7"
    date: str | None = None
    busy = 1

    def answer(self, request: HostRequest) -> None:
        if self.busy == 0:
            super().answer(request)
            return
        self.busy -= 1
        request.send_response_only(429)
        request.send_header("Retry-After", self.after)
        if self.date is not None:
            request.send_header("Date", self.date)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def busy(authority: CertificateAuthority) -> Iterator[Busy]:
    with Busy(authority.server_context(), {PATH: DATA}) as host:
        yield host


@pytest.mark.parametrize(
    ("after", "date", "pause"),
    [
        ("7", None, 7),
        ("Thu, 01 Jan 2026 00:00:09 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", 9),
        ("Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:09 GMT", 0.5),
        ("soon", None, 0.5),
        ("-5", None, 0.5),
    ],
)
def test_a_host_that_asks_to_wait_is_waited_for(  # noqa: PLR0917 - fixtures and a table's row
    busy: Busy, context: ssl.SSLContext, tmp_path: Path, after: str, date: str | None, pause: float
) -> None:
    busy.after, busy.date = after, date
    pauses: list[float] = []
    model, allowed = model_of(busy.url(PATH))
    download = HttpsDownloader(LiveEgress(), lambda: context).open
    store = ModelStore(tmp_path / "models", sleep=pauses.append)
    store.stage(model, allowed_sources=allowed, download=download).close()
    assert pauses == [pause]


def test_a_host_that_asks_for_an_hour_is_not_asked_again(
    busy: Busy, context: ssl.SSLContext, tmp_path: Path
) -> None:
    busy.after, busy.busy = "3600", 9
    error = of_model(busy.url(PATH), context, tmp_path)
    assert "try again in 3600 seconds" in error.detail
    assert error.pauses == []  # type: ignore[attr-defined] # see `of_model`
    assert busy.busy == 8


class Moves(TlsHost):
    """Redirects the first request to `location`, sent as these bytes."""

    location = b""

    def answer(self, request: HostRequest) -> None:
        if request.path != PATH:
            super().answer(request)
            return
        request.wfile.write(
            b"HTTP/1.1 302 Moved\r\nLocation: " + self.location + b"\r\nContent-Length: 0\r\n\r\n"
        )


@pytest.fixture
def moves(authority: CertificateAuthority) -> Iterator[Moves]:
    with Moves(authority.server_context(), {}) as host:
        yield host


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (b"/companion/a b.gguf", "/companion/a%20b.gguf"),
        (b"/companion/a|b.gguf", "/companion/a%7Cb.gguf"),
        ("/companion/für.gguf".encode(), "/companion/f%C3%BCr.gguf"),
        ("/companion/für.gguf".encode("latin-1"), "/companion/f%FCr.gguf"),
        (b"other.gguf#part", "/companion/other.gguf"),
        (b"../companion/x.gguf?a=b c", "/companion/x.gguf"),
        (b"//127.0.0.1:PORT/companion/y.gguf", "/companion/y.gguf"),
    ],
)
def test_a_redirect_is_followed_as_other_clients_follow_it(
    moves: Moves, context: ssl.SSLContext, tmp_path: Path, location: bytes, path: str
) -> None:
    moves.content = {path: DATA}
    moves.location = location.replace(b"PORT", str(moves.port).encode())
    model, allowed = model_of(moves.url(PATH))
    download = HttpsDownloader(LiveEgress(), lambda: context).open
    ModelStore(tmp_path / "models").stage(model, allowed_sources=allowed, download=download).close()


@pytest.mark.parametrize(
    ("location", "reason", "words"),
    [
        (
            b"https://cdn.example.net/x y?sig=hush",
            Reason.SOURCE_NOT_ALLOWED,
            "127.0.0.1 redirects to https://cdn.example.net/x%20y",
        ),
        (
            "https://bücher.example/x".encode(),
            Reason.SOURCE_NOT_ALLOWED,
            "redirects to https://xn--bcher-kva.example/x",
        ),
        (b"http://127.0.0.1/x", Reason.SCHEME_NOT_ALLOWED, "redirects to http://127.0.0.1/x"),
        (b"https://user:hush@127.0.0.1/x", Reason.SOURCE_NOT_ALLOWED, "https://127.0.0.1/x"),
        (b"https://[nothing/x", Reason.DOWNLOAD_FAILED, "redirects to what is no address"),
        (b"https://a b/", Reason.DOWNLOAD_FAILED, "redirects to what is no address"),
        (b"/companion/tiny.gguf", Reason.DOWNLOAD_FAILED, "redirects without an end"),
    ],
)
def test_a_hop_that_is_refused_is_named(  # noqa: PLR0917 - fixtures and a table's row
    moves: Moves,
    context: ssl.SSLContext,
    tmp_path: Path,
    location: bytes,
    reason: Reason,
    words: str,
) -> None:
    moves.location = location
    error = of_model(moves.url(PATH), context, tmp_path)
    assert error.reason is reason
    assert words in error.detail
    assert "hush" not in error.detail


def test_the_terminal_names_where_a_published_file_moved(
    moves: Moves,
    authority: CertificateAuthority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "init", "pub", "--key-out", "key.pem"], egress=LiveEgress()) == 0
    options = ["--id", "x", "--url", "https://models.example.org/x.gguf", "--format", "gguf"]
    extra = ["--extra-ca-file", str(authority.ca_file)]
    moves.location = b"https://cdn.example.net/a b?key=hush"
    add = ["manifest", "add", "pub", moves.url(PATH), *options, *extra]
    assert main(add, egress=LiveEgress()) == 2
    assert "https://cdn.example.net/a%20b" in (said := capsys.readouterr().err)
    assert "hush" not in said
    assert main([*add[:3], moves.url("/nothing"), *options, *extra], egress=LiveEgress()) == 4
    said = capsys.readouterr().err
    assert "companion: 127.0.0.1 answers 404: it has no such file" in said
    assert said.splitlines()[-1].startswith("companion: download_failed: ")
