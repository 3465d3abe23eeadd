"""The real downloader and store against TLS hosts whose answers are wrong in every way."""

from __future__ import annotations

import pytest
from download_parts import DATA, PATH, refusal, stage

from companion_core.errors import Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost

pytestmark = pytest.mark.integration


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


def test_a_premature_close_is_a_failed_transfer(
    host: ModelHost, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/premature-close"""
    host.misbehave = Misbehaviour(close_after=1000)
    body = downloader.open(DownloadRequest(url=host.url(PATH)))
    with body, pytest.raises(DownloadFailed) as caught:
        body.read()
    assert caught.value.retryable


def test_an_encoded_body_is_refused(host: ModelHost, downloader: HttpsDownloader) -> None:
    """covers: download_stage/content-encoding"""
    host.misbehave = Misbehaviour(content_encoding="GZIP")
    with pytest.raises(DownloadFailed) as caught:
        downloader.open(DownloadRequest(url=host.url(PATH)))
    assert not caught.value.retryable
    host.misbehave = Misbehaviour(content_encoding="identity")
    downloader.open(DownloadRequest(url=host.url(PATH))).close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(
    host: ModelHost, downloader: HttpsDownloader, status: int
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=status, location="../elsewhere?x=1")
    with pytest.raises(Redirect) as caught:
        downloader.open(DownloadRequest(url=host.url(PATH)))
    assert caught.value.url == host.url("/elsewhere?x=1")
    assert len(host.requests) == 1


def test_a_redirect_within_the_allowed_folder_is_followed(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=302, location="tiny.gguf?again", times=1)
    assert stage(store, downloader, host.url(PATH)) == DATA
    assert [path for path, _ in host.requests] == [PATH, PATH + "?again"]


def test_a_redirect_out_is_refused_before_a_byte_is_asked_for(
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


def test_a_loop_of_redirects_ends(
    host: ModelHost, store: ModelStore, downloader: HttpsDownloader
) -> None:
    """covers: download_stage/redirect"""
    host.misbehave = Misbehaviour(status=302, location=PATH)
    assert refusal(store, downloader, host.url(PATH)) is Reason.DOWNLOAD_FAILED
    assert len(host.requests) == 6
