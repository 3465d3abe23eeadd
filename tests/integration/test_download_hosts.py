"""The real downloader and store against real TLS hosts that misbehave in every way."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from companion_core.decisions.manifest import Manifest, ManifestModel, verify_manifest
from companion_core.egress.interface import EgressRefused
from companion_core.egress.live import LiveEgress
from companion_core.egress.refusing import RefusingEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.models.byte_pump import Pace
from companion_core.models.https_downloader import (
    HttpsDownloader,
    HttpsDownloadPlugin,
)
from companion_core.models.store import ModelStore
from companion_core.providers import (
    Downloader,
    DownloadFailed,
    DownloadRequest,
    Redirect,
    ResumeRefused,
)
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.integration

PATH = "/companion/tiny.gguf"
DATA = os.urandom(1_500_000)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def context(authority: CertificateAuthority) -> ssl.SSLContext:
    return build_tls_context(authority.ca_file)


@pytest.fixture
def host(authority: CertificateAuthority) -> Iterator[ModelHost]:
    with ModelHost(authority.server_context(), {PATH: DATA}) as host:
        yield host


@pytest.fixture
def downloader(context: ssl.SSLContext) -> HttpsDownloader:
    return HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=30)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", sleep=lambda _seconds: None)


def model_of(url: str) -> tuple[ManifestModel, tuple[str, ...]]:
    publisher = FakePublisher()
    manifest = verify_manifest(
        publisher.envelope(manifest_document(url, DATA)),
        trusted_keys=[publisher.public_key],
        now=TEST_NOW,
        last_seen=None,
    )
    assert isinstance(manifest, Manifest)
    return manifest.models[0], manifest.allowed_sources


def stage(store: ModelStore, downloader: HttpsDownloader | Counted, url: str) -> bytes:
    model, allowed = model_of(url)
    verified = store.stage(model, allowed_sources=allowed, download=downloader.open)
    try:
        return os.pread(verified.files[0].descriptor, len(DATA) + 1, 0)
    finally:
        verified.close()


def refusal(store: ModelStore, downloader: HttpsDownloader | Counted, url: str) -> Reason:
    with pytest.raises(CompanionError) as caught:
        stage(store, downloader, url)
    assert list(store._folder.iterdir()) == []
    return caught.value.reason


def test_a_model_is_fetched_with_nothing_but_a_plain_get(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    assert stage(store, downloader, host.url(PATH)) == DATA
    [(path, headers)] = host.requests
    assert path == PATH
    assert headers["accept-encoding"] == "identity"
    assert {"authorization", "cookie", "proxy-authorization"}.isdisjoint(headers)


@pytest.mark.parametrize(
    ("knobs", "reason", "requests"),
    [
        pytest.param(Misbehaviour(flip_bit=777), Reason.DIGEST_MISMATCH, 1, id="bit-flip"),
        pytest.param(Misbehaviour(extra=1), Reason.SIZE_MISMATCH, 1, id="longer"),
        pytest.param(Misbehaviour(extra=1, chunked=True), Reason.SIZE_MISMATCH, 1, id="chunked"),
        pytest.param(
            Misbehaviour(endless=True, unannounced=True), Reason.SIZE_MISMATCH, 1, id="endless"
        ),
        pytest.param(
            Misbehaviour(unannounced=True, close_after=9, weak_etag=True),
            Reason.DOWNLOAD_FAILED,
            3,
            id="shorter",
        ),
        pytest.param(Misbehaviour(announce=5), Reason.SIZE_MISMATCH, 1, id="announces-less"),
        pytest.param(Misbehaviour(announce=2**40), Reason.SIZE_MISMATCH, 1, id="announces-more"),
        pytest.param(
            Misbehaviour(close_after=9, weak_etag=True), Reason.DOWNLOAD_FAILED, 3, id="closes"
        ),
        pytest.param(
            Misbehaviour(close_after=0, chunked=True, weak_etag=True),
            Reason.DOWNLOAD_FAILED,
            3,
            id="closes-chunked",
        ),
        pytest.param(Misbehaviour(status=204), Reason.DOWNLOAD_FAILED, 1, id="204"),
        pytest.param(Misbehaviour(status=206), Reason.DOWNLOAD_FAILED, 1, id="206"),
        pytest.param(Misbehaviour(status=404), Reason.DOWNLOAD_FAILED, 1, id="404"),
        pytest.param(Misbehaviour(status=429), Reason.DOWNLOAD_FAILED, 3, id="429"),
        pytest.param(Misbehaviour(status=500), Reason.DOWNLOAD_FAILED, 3, id="500"),
        pytest.param(Misbehaviour(status=302), Reason.DOWNLOAD_FAILED, 1, id="no-location"),
        pytest.param(
            Misbehaviour(content_encoding="gzip"), Reason.DOWNLOAD_FAILED, 1, id="encoded"
        ),
    ],
)
def test_a_wrong_answer_leaves_nothing(  # noqa: PLR0917 - fixtures and a table's row
    host: ModelHost,
    store: ModelStore,
    downloader: HttpsDownloader,
    knobs: Misbehaviour,
    reason: Reason,
    requests: int,
) -> None:
    """covers: download_stage/status-206-204, content-encoding, premature-close, endless-stream"""
    host.misbehave = knobs
    assert refusal(store, downloader, host.url(PATH)) is reason
    assert len(host.requests) == requests


def test_premature_close_is_a_failed_transfer(host: ModelHost, downloader: HttpsDownloader) -> None:
    """covers: download_stage/premature-close"""
    host.misbehave = Misbehaviour(close_after=1000)
    body = downloader.open(DownloadRequest(url=host.url(PATH)))
    with body, pytest.raises(DownloadFailed) as caught:
        body.read()
    assert caught.value.retryable


def test_content_encoding(host: ModelHost, downloader: HttpsDownloader) -> None:
    """covers: download_stage/content-encoding"""
    host.misbehave = Misbehaviour(content_encoding="GZIP")
    with pytest.raises(DownloadFailed) as caught:
        downloader.open(DownloadRequest(url=host.url(PATH)))
    assert not caught.value.retryable
    host.misbehave = Misbehaviour(content_encoding="identity")
    downloader.open(DownloadRequest(url=host.url(PATH))).close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_told_and_not_followed(
    host: ModelHost, downloader: HttpsDownloader, status: int
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=status, location="../elsewhere?x=1")
    with pytest.raises(Redirect) as caught:
        downloader.open(DownloadRequest(url=host.url(PATH)))
    assert caught.value.url == host.url("/elsewhere?x=1")
    assert len(host.requests) == 1


def test_redirect_within_the_allowed_folder_is_followed(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=302, location="tiny.gguf?again", times=1)
    assert stage(store, downloader, host.url(PATH)) == DATA
    assert [path for path, _ in host.requests] == [PATH, PATH + "?again"]


def test_redirect_out_is_refused_before_a_byte_is_asked_for(
    authority: CertificateAuthority,
    host: ModelHost,
    store: ModelStore,
    downloader: HttpsDownloader,
) -> None:
    """covers: download_stage/redirect"""
    with ModelHost(authority.server_context(), {PATH: DATA}) as other:
        for location, reason in [
            (other.url(PATH), Reason.SOURCE_NOT_ALLOWED),
            (host.url(PATH).replace("https:", "http:"), Reason.SCHEME_NOT_ALLOWED),
            (f"https://localhost:{host.port}{PATH}", Reason.SOURCE_NOT_ALLOWED),
            ("/outside", Reason.SOURCE_NOT_ALLOWED),
            ("/companion/%2e%2e/outside", Reason.SOURCE_NOT_ALLOWED),
        ]:
            host.misbehave = Misbehaviour(status=302, location=location)
            assert refusal(store, downloader, host.url(PATH)) is reason
        assert other.requests == []


def test_redirect_loop_ends(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=302, location=PATH)
    assert refusal(store, downloader, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert len(host.requests) == 6


class Counted:
    """Knows how often it was asked: on a busy machine not each request reaches the host in time."""

    def __init__(self, downloader: HttpsDownloader) -> None:
        self.opened = 0
        self._downloader = downloader

    def open(self, request: DownloadRequest) -> BinaryIO:
        self.opened += 1
        return self._downloader.open(request)


@pytest.mark.parametrize("after", [0, 1000])
def test_stall(host: ModelHost, store: ModelStore, context: ssl.SSLContext, after: int) -> None:
    """covers: download_stage/stall"""
    impatient = Counted(HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=0.2))
    host.misbehave = Misbehaviour(stall_after=after, weak_etag=True)
    assert refusal(store, impatient, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert impatient.opened == 3


def test_stall_by_dripping(host: ModelHost, tmp_path: Path, downloader: HttpsDownloader) -> None:
    """covers: download_stage/stall - a byte now and then is never idle, and still too slow."""
    store = ModelStore(
        tmp_path / "models", pace=Pace(block_seconds=0.3), sleep=lambda _seconds: None
    )
    host.misbehave = Misbehaviour(drip_seconds=0.05, weak_etag=True)
    assert refusal(store, downloader, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert len(host.requests) == 3


def test_a_server_that_accepts_and_says_nothing(store: ModelStore, context: ssl.SSLContext) -> None:
    """covers: download_stage/stall"""
    import socket  # noqa: PLC0415

    impatient = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}{PATH}"
        assert refusal(store, impatient, url) is Reason.DOWNLOAD_FAILED


def test_a_transfer_that_breaks_is_resumed(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/resume"""
    host.misbehave = Misbehaviour(close_after=1_200_000, times=1)
    assert stage(store, downloader, host.url(PATH)) == DATA
    first, second = (headers for _, headers in host.requests)
    assert "range" not in first
    offset = int(second["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < offset <= 1_200_000
    assert second["if-range"].startswith('"')


@pytest.mark.parametrize("ranges", ["ignore", "shift"])
def test_a_range_that_is_not_honoured_starts_again(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader, ranges: str
) -> None:
    """covers: download_stage/resume"""
    host.misbehave = Misbehaviour(close_after=1_200_000, times=1, ranges=ranges)
    assert stage(store, downloader, host.url(PATH)) == DATA
    assert ["range" in headers for _, headers in host.requests] == [False, True, False]


def test_resuming_without_a_validator_is_refused(
    host: ModelHost, downloader: HttpsDownloader
) -> None:
    with pytest.raises(ResumeRefused):
        downloader.open(DownloadRequest(url=host.url(PATH), offset=5))
    assert host.requests == []


def test_cancelling_hangs_up_and_leaves_no_model(
    host: ModelHost, tmp_path: Path, context: ssl.SSLContext
) -> None:
    patient = HttpsDownloader(LiveEgress(), lambda: context)
    store = ModelStore(tmp_path / "models")
    host.misbehave = Misbehaviour(stall_after=1_200_000)
    cancelled = threading.Event()

    def cancel_once_under_way() -> None:
        while not host.requests:
            time.sleep(0.01)
        cancelled.set()

    thread = threading.Thread(target=cancel_once_under_way)
    thread.start()
    model, allowed = model_of(host.url(PATH))
    with pytest.raises(CompanionError) as caught:
        store.stage(model, allowed_sources=allowed, download=patient.open, cancelled=cancelled)
    thread.join()
    assert caught.value.reason is Reason.INTERRUPTED
    # Perhaps what a later run goes on with, under a name that nothing runs.
    assert {path.suffix for path in (tmp_path / "models").iterdir()} <= {".part", ".resume"}


@pytest.mark.parametrize("fault", ["unknown-authority", "expired", "other-name"])
def test_tls(  # noqa: PLR0917 - fixtures and a table's row
    authority: CertificateAuthority,
    store: ModelStore,
    downloader: HttpsDownloader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """covers: download_stage/tls"""
    for name in ("PYTHONHTTPSVERIFY", "NODE_TLS_REJECT_UNAUTHORIZED"):
        monkeypatch.setenv(name, "0")
    match fault:
        case "unknown-authority":
            server = CertificateAuthority(tmp_path).server_context()
        case "expired":
            yesterday = dt.datetime.now(tz=dt.UTC) - dt.timedelta(days=1)
            server = authority.server_context(expires=yesterday)
        case _:
            server = authority.server_context("models.example.org")
    with ModelHost(server, {PATH: DATA}) as host:
        assert refusal(store, downloader, host.url(PATH)) is Reason.DOWNLOAD_FAILED
        assert host.requests == []


def test_tls_secrets_are_never_written(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """covers: download_stage/tls"""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "secrets"))
    context = build_tls_context(authority.ca_file)
    assert context.keylog_filename is None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_an_unreadable_authority_is_a_configuration_error(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CompanionError) as caught:
        build_tls_context(file)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.CONFIGURATION_INVALID, 2)


def _has_ipv6_loopback() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_a_host_on_ipv6(
    authority: CertificateAuthority,
    store: ModelStore,
    downloader: HttpsDownloader,
    require_real: Callable[[str, bool], None],
) -> None:
    require_real("an IPv6 loopback", _has_ipv6_loopback())
    context = authority.server_context()
    with ModelHost(context, {PATH: DATA}, name="[::1]", address="::1") as host:
        assert stage(store, downloader, host.url(PATH)) == DATA


def test_a_shut_doorway_says_so(store: ModelStore, context: ssl.SSLContext) -> None:
    shut = HttpsDownloader(RefusingEgress(), lambda: context)
    model, allowed = model_of("https://127.0.0.1:9/companion/tiny.gguf")
    with pytest.raises(EgressRefused):
        store.stage(model, allowed_sources=allowed, download=shut.open)


def test_only_https_is_opened(downloader: HttpsDownloader) -> None:
    for url in ("http://127.0.0.1/x", "file:///etc/passwd", "", "https://u@127.0.0.1/"):
        with pytest.raises(DownloadFailed) as caught:
            downloader.open(DownloadRequest(url=url))
        assert not caught.value.retryable


def test_it_is_a_plugin_like_any_other(downloader: HttpsDownloader) -> None:
    plugin = HttpsDownloadPlugin(downloader)
    assert isinstance(plugin.companion_download(), Downloader)
