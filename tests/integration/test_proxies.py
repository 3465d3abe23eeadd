"""The manifest and a model's bytes through each kind of proxy, over real sockets and TLS."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from download_parts import DATA, PATH, model_of
from loopback_proxies import PASSWORD, USER, LoopbackProxy

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.decisions.manifest import Manifest
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore
from companion_core.providers import DownloadRequest
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import ModelHost
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = [pytest.mark.integration, pytest.mark.security]

HOST = "models.example.org"
MODEL = f"https://{HOST}{PATH}"
MANIFEST_PATH = "/companion/manifest.json"
PUBLISHER = FakePublisher()
LOGIN = f"{quote(USER.replace(':', ''), safe='')}:{quote(PASSWORD, safe='')}@"
PAIR = (USER.replace(":", ""), PASSWORD)
SCHEMES = ["http", "https", "socks5"]

MakeProxy = Callable[..., LoopbackProxy]


@pytest.fixture
def host(authority: CertificateAuthority) -> Iterator[ModelHost]:
    document = manifest_document("https://elsewhere.example.net/companion/tiny.gguf", b"model")
    content = {PATH: DATA, MANIFEST_PATH: PUBLISHER.envelope(document)}
    with ModelHost(authority.server_context(HOST), content) as host:
        yield host


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def make(
    host: ModelHost, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeProxy]:
    running: list[LoopbackProxy] = []

    def make_proxy(
        scheme: str, userinfo: str = "", *, names: str = "HTTPS_PROXY", **options: Any
    ) -> LoopbackProxy:
        context = authority.server_context() if scheme == "https" else None
        proxy = LoopbackProxy(host.port, scheme=scheme, context=context, **options)
        running.append(proxy.__enter__())
        monkeypatch.setenv(names, proxy.url(userinfo))
        return proxy

    yield make_proxy
    for proxy in running:
        proxy.__exit__()


def stage(context: ssl.SSLContext, folder: Path) -> None:
    model, allowed = model_of(MODEL)
    store = ModelStore(folder / "models", sleep=lambda _seconds: None)
    download = HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=10).open
    store.stage(model, allowed_sources=allowed, download=download).close()


def fetch(context: ssl.SSLContext, folder: Path) -> Manifest:
    return fetch_manifest(
        f"https://{HOST}{MANIFEST_PATH}",
        egress=LiveEgress(),
        context=context,
        trusted_keys=[PUBLISHER.public_key],
        memory=ManifestMemory(folder / "state" / "memory.json"),
        wall_now=TEST_NOW,
    )


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("login", [None, PAIR], ids=["open", "login"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_manifest_and_a_model_come_through_each_kind_of_proxy(  # noqa: PLR0917 - fixtures and a table's row
    make: MakeProxy, context: ssl.SSLContext, tmp_path: Path, scheme: str, login: Any, name: str
) -> None:
    proxy = make(scheme, LOGIN if login else "", login=login, names=name, piecewise=True)
    assert fetch(context, tmp_path).models[0].id == "tiny"
    stage(context, tmp_path)
    assert proxy.asked == [f"{HOST}:443"] * 2


@pytest.mark.parametrize("userinfo", ["", "other:wrong@"], ids=["none", "wrong"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_login_that_is_missing_or_wrong_has_its_own_words(
    make: MakeProxy, context: ssl.SSLContext, tmp_path: Path, scheme: str, userinfo: str
) -> None:
    make(scheme, userinfo, login=PAIR)
    for work, reason in ((fetch, Reason.MANIFEST_UNAVAILABLE), (stage, Reason.DOWNLOAD_FAILED)):
        with pytest.raises(CompanionError) as caught:
            work(context, tmp_path)
        assert caught.value.reason is reason
        assert "407" in caught.value.detail
        assert "USER:PASSWORD" in caught.value.detail
        assert "wrong" not in caught.value.detail


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("http", {"answer": b"HTTP/1.1 403 No\r\n\r\n"}, "does not connect to models.example.org"),
        ("http", {"answer": b"SSH-2.0-x\r\n\r\n"}, "does not answer as a proxy"),
        ("http", {"answer": b"x" * 70_000}, "does not answer as a proxy"),
        ("http", {"answer": b""}, "does not answer as a proxy"),
        ("socks5", {"reply": 2}, "does not connect to models.example.org"),
    ],
)
def test_a_proxy_that_does_not_connect_is_named(  # noqa: PLR0917 - fixtures and a table's row
    make: MakeProxy,
    context: ssl.SSLContext,
    tmp_path: Path,
    scheme: str,
    options: dict[str, Any],
    words: str,
) -> None:
    make(scheme, **options)
    for work in (fetch, stage):
        with pytest.raises(CompanionError) as caught:
            work(context, tmp_path)
        assert words in caught.value.detail


@pytest.mark.parametrize("address", ["ftp://u:sesame@p.example", "http://u:se/same@p.example"])
def test_what_is_no_proxy_is_refused_and_not_shown(
    host: ModelHost,
    context: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    for work in (fetch, stage):
        with pytest.raises(CompanionError) as caught:
            work(context, tmp_path)
        assert "the proxy" in caught.value.detail
        assert "same" not in caught.value.detail
    assert host.requests == []


def test_a_proxys_certificate_is_checked(
    host: ModelHost, context: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = CertificateAuthority(tmp_path).server_context()
    with LoopbackProxy(host.port, scheme="https", context=stranger, login=PAIR) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url(LOGIN))
        for work in (fetch, stage):
            with pytest.raises(CompanionError) as caught:
                work(context, tmp_path)
            assert "certificate of the proxy" in caught.value.detail
        assert proxy.heads == []


def test_an_exception_goes_straight_and_loopback_always_does(
    make: MakeProxy,
    authority: CertificateAuthority,
    context: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = make("http")
    monkeypatch.setenv("NO_PROXY", "*.example.org,127.0.0.0/8")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up here")
    )
    with pytest.raises(pytest.fail.Exception):
        LiveEgress().connect_tcp(HOST, 443, context=context, timeout=1)
    monkeypatch.undo()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url())
    with ModelHost(authority.server_context(), {PATH: DATA}) as near:
        LiveEgress().connect_tcp("127.0.0.1", near.port, context=context, timeout=5).close()
    assert proxy.asked == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_credentials_reach_the_proxy_alone_and_no_log(  # noqa: PLR0917 - fixtures and a table's row
    make: MakeProxy,
    host: ModelHost,
    context: ssl.SSLContext,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
) -> None:
    make(scheme, LOGIN, login=PAIR)
    with caplog.at_level(logging.DEBUG):
        fetch(context, tmp_path)
        stage(context, tmp_path)
    assert "p/w" not in caplog.text
    assert PAIR[0] not in caplog.text
    assert MANIFEST_PATH not in caplog.text
    for _, headers in host.requests:
        assert not [name for name in headers if name.startswith("proxy-")]


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_drips_is_given_up(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            client, _ = listener.accept()
            with client:
                while not stop.wait(0.05):
                    try:
                        client.sendall(b"\x05" if scheme == "socks5" else b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(OSError, match="the proxy does not connect"):
            LiveEgress().connect_tcp(HOST, 443, context=context, timeout=0.5)
        stop.set()
        thread.join(5)


def test_a_large_model_comes_whole_through_tls_in_tls(
    authority: CertificateAuthority, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(256)) * 40_000
    server = authority.server_context(HOST)
    with (
        ModelHost(server, {PATH: body}) as host,
        LoopbackProxy(host.port, scheme="https", context=authority.server_context()) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        opened = HttpsDownloader(LiveEgress(), lambda: context).open(DownloadRequest(url=MODEL))
        with opened as stream:
            assert stream.read() == body
    for thread in threading.enumerate():
        if thread.name == "companion-proxy":
            thread.join(5)
            assert not thread.is_alive()
