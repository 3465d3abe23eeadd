"""Whom the downloader connects to: authorities, names, addresses and schemes."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from download_parts import DATA, PATH, model_of, refusal, stage

from companion_core.egress.interface import EgressRefused
from companion_core.egress.refusing import RefusingEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.models.https_downloader import HttpsDownloader, HttpsDownloadPlugin
from companion_core.models.store import ModelStore
from companion_core.providers import Downloader, DownloadFailed, DownloadRequest
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import ModelHost

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("fault", ["unknown-authority", "expired", "other-name"])
def test_a_host_that_is_not_vouched_for_gets_no_request(  # noqa: PLR0917 - fixtures and a table's row
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


def test_a_host_on_ipv6_serves_a_model(
    authority: CertificateAuthority,
    store: ModelStore,
    downloader: HttpsDownloader,
    require_real: Callable[[str, bool], None],
) -> None:
    require_real("an IPv6 loopback", _has_ipv6_loopback())
    context = authority.server_context()
    with ModelHost(context, {PATH: DATA}, name="[::1]", address="::1") as host:
        assert stage(store, downloader, host.url(PATH)) == DATA


def test_a_shut_doorway_is_told(store: ModelStore, context: ssl.SSLContext) -> None:
    shut = HttpsDownloader(RefusingEgress(), lambda: context)
    model, allowed = model_of("https://127.0.0.1:9/companion/tiny.gguf")
    with pytest.raises(EgressRefused):
        store.stage(model, allowed_sources=allowed, download=shut.open)


def test_only_https_is_opened(downloader: HttpsDownloader) -> None:
    for url in ("http://127.0.0.1/x", "file:///etc/passwd", "", "https://u@127.0.0.1/"):
        with pytest.raises(DownloadFailed) as caught:
            downloader.open(DownloadRequest(url=url))
        assert not caught.value.retryable


def test_the_downloader_is_a_plugin_like_any_other(downloader: HttpsDownloader) -> None:
    plugin = HttpsDownloadPlugin(downloader)
    assert isinstance(plugin.companion_download(), Downloader)
