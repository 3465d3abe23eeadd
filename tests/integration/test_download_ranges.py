"""Parts of a file from a real TLS host: by their length, and refused when they are others."""

from __future__ import annotations

import pytest
from download_parts import DATA, PATH

from companion_core.models.https_downloader import HttpsDownloader
from companion_core.providers import DownloadFailed, DownloadRequest, ResumeRefused
from companion_core.testing.model_host import Misbehaviour, ModelHost

pytestmark = pytest.mark.integration


def fetch(downloader: HttpsDownloader, url: str, offset: int, length: int | None) -> bytes:
    with downloader.open(DownloadRequest(url=url, offset=offset, length=length)) as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, 1000), (700, 1000), (len(DATA) - 5, 5), (0, len(DATA))]
)
def test_bytes_of_a_known_length_need_no_validator(
    host: ModelHost, downloader: HttpsDownloader, offset: int, length: int
) -> None:
    assert fetch(downloader, host.url(PATH), offset, length) == DATA[offset : offset + length]
    [(_, headers)] = host.requests
    assert headers["range"] == f"bytes={offset}-{offset + length - 1}"
    assert "if-range" not in headers


def test_with_a_validator_they_are_of_that_file(
    host: ModelHost, downloader: HttpsDownloader
) -> None:
    url = host.url(PATH)
    with downloader.open(DownloadRequest(url=url)) as stream:
        validator = stream.validator  # type: ignore[attr-defined] # of this downloader's streams
    with downloader.open(
        DownloadRequest(url=url, offset=5, validator=validator, length=9)
    ) as stream:
        assert stream.read() == DATA[5:14]
    with pytest.raises(ResumeRefused):
        downloader.open(DownloadRequest(url=url, offset=5, validator='"other"', length=9))


@pytest.mark.parametrize("offset", [0, 700])
@pytest.mark.parametrize(
    "knobs", [Misbehaviour(ranges="ignore"), Misbehaviour(ranges="shift"), Misbehaviour(status=416)]
)
def test_other_bytes_than_these_are_refused(
    host: ModelHost, downloader: HttpsDownloader, knobs: Misbehaviour, offset: int
) -> None:
    host.misbehave = knobs
    with pytest.raises(ResumeRefused):
        fetch(downloader, host.url(PATH), offset, 1000)


def test_more_than_these_are_not_read(host: ModelHost, downloader: HttpsDownloader) -> None:
    host.misbehave = Misbehaviour(extra=10)
    with pytest.raises((ResumeRefused, DownloadFailed)):
        fetch(downloader, host.url(PATH), 700, 1000)
