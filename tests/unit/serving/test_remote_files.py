"""What the environment forbids is not asked for."""

from __future__ import annotations

import io
from typing import BinaryIO

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.providers import DownloadRequest
from companion_core.serving.remote_files import not_offline

pytestmark = pytest.mark.unit

HUB = "https://huggingface.co/a/b/resolve/c/m.gguf"


def give(_request: DownloadRequest) -> BinaryIO:
    return io.BytesIO(b"bytes")


@pytest.mark.parametrize(
    ("environment", "url", "asked"),
    [
        ({}, HUB, True),
        ({"HF_HUB_OFFLINE": "0"}, HUB, True),
        ({"HF_HUB_OFFLINE": "1"}, HUB, False),
        ({"TRANSFORMERS_OFFLINE": "yes"}, "https://us.aws.cdn.hf.co/x", False),
        ({"HF_HUB_OFFLINE": "1"}, "https://models.example.org/m.gguf", True),
        ({"HF_HUB_OFFLINE": "1"}, "https://hub.example:8443/m.gguf", True),
        (
            {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "https://hub.example:8443"},
            "https://hub.example:8443/m.gguf",
            False,
        ),
        ({"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "nonsense"}, HUB, False),
        ({"HF_HUB_OFFLINE": "1"}, "no address", True),  # the downloader says what it thinks of it
    ],
)
def test_an_offline_hub_is_not_asked_and_anyone_else_is(
    environment: dict[str, str], url: str, *, asked: bool
) -> None:
    download = not_offline(give, environment)
    if asked:
        assert download(DownloadRequest(url=url)).read() == b"bytes"
        return
    with pytest.raises(CompanionError) as caught:
        download(DownloadRequest(url=url))
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert "HF_HUB_OFFLINE is set, so " in caught.value.detail
