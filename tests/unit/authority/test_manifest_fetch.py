"""Memory and files; the same over real TLS is in tests/integration/test_download_manifest.py."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.manifest_fetch import ManifestMemory, fetch_manifest
from companion_core.decisions.manifest import Manifest
from companion_core.egress.interface import EgressRefused
from companion_core.egress.live import LiveEgress
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

URL = "https://models.example.org/companion/tiny.gguf"
PUBLISHER = FakePublisher()
STRANGER = FakePublisher(b"\7" * 32)


@pytest.fixture
def memory(tmp_path: Path) -> ManifestMemory:
    return ManifestMemory(tmp_path / "state" / "manifest-memory.json")


def publish(tmp_path: Path, publisher: FakePublisher = PUBLISHER, **changes: Any) -> str:
    path = tmp_path / "manifest.json"
    path.write_bytes(publisher.envelope(manifest_document(URL, b"model", **changes)))
    return path.as_uri()


def fetch(
    url: str,
    memory: ManifestMemory,
    *,
    keys: tuple[str, ...] = (PUBLISHER.public_key,),
    now: float = TEST_NOW,
) -> Manifest:
    return fetch_manifest(
        url,
        egress=RefusingEgress(),
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        trusted_keys=keys,
        memory=memory,
        wall_now=now,
    )


def refusal(url: str, memory: ManifestMemory, **options: Any) -> Reason:
    with pytest.raises(CompanionError) as caught:
        fetch(url, memory, **options)
    return caught.value.reason


def test_a_manifest_in_a_file_needs_no_host(tmp_path: Path, memory: ManifestMemory) -> None:
    manifest = fetch(publish(tmp_path, version=3), memory)
    assert manifest.version == 3
    last_seen = memory.last_seen([PUBLISHER.public_key])
    assert last_seen is not None
    assert (last_seen.version, last_seen.payload_sha256) == (3, manifest.payload_sha256)


def test_never_older_also_after_a_restart(tmp_path: Path, memory: ManifestMemory) -> None:
    fetch(publish(tmp_path, version=3), memory)
    again = ManifestMemory(tmp_path / "state" / "manifest-memory.json")
    assert refusal(publish(tmp_path, version=2), again) is Reason.MANIFEST_ROLLED_BACK
    assert (
        refusal(publish(tmp_path, version=3, expires="2026-01-30T00:00:00Z"), again)
        is Reason.MANIFEST_ROLLED_BACK
    )
    assert fetch(publish(tmp_path, version=3), again).version == 3


def test_other_keys_have_their_own_memory(tmp_path: Path, memory: ManifestMemory) -> None:
    fetch(publish(tmp_path, version=3), memory)
    url = publish(tmp_path, STRANGER, version=1)
    assert fetch(url, memory, keys=(STRANGER.public_key,)).version == 1
    assert memory.last_seen([PUBLISHER.public_key]) is not None
    both = (STRANGER.public_key, PUBLISHER.public_key)
    assert memory.last_seen(both) == memory.last_seen(both[::-1])


def test_a_clock_set_back_brings_nothing_back(tmp_path: Path, memory: ManifestMemory) -> None:
    long_lived = publish(tmp_path, version=1, expires="2026-12-01T00:00:00Z")
    later = TEST_NOW + 60 * 86_400
    fetch(long_lived, memory, now=later)
    expired_by_then = publish(tmp_path, version=2)
    assert refusal(expired_by_then, memory, now=TEST_NOW) is Reason.MANIFEST_EXPIRED
    assert memory.latest_time(TEST_NOW) >= later
    assert memory.latest_time(later + 1e6) == later + 1e6


def test_of_what_is_refused_the_time_alone_is_remembered(
    tmp_path: Path, memory: ManifestMemory
) -> None:
    assert refusal(publish(tmp_path, STRANGER), memory) is Reason.MANIFEST_SIGNATURE_INVALID
    assert refusal(publish(tmp_path), memory, now=TEST_NOW + 1e8) is Reason.MANIFEST_EXPIRED
    assert memory.last_seen([PUBLISHER.public_key]) is None
    assert memory.latest_time(0.0) == TEST_NOW + 1e8
    assert memory.stored(publish(tmp_path)) is None


def test_what_has_expired_once_stays_expired(tmp_path: Path, memory: ManifestMemory) -> None:
    url = publish(tmp_path)
    after_its_end = TEST_NOW + 17 * 86_400
    assert refusal(url, memory, now=after_its_end) is Reason.MANIFEST_EXPIRED
    again = ManifestMemory(tmp_path / "state" / "manifest-memory.json")
    with pytest.raises(Refused) as caught:
        fetch(url, again)
    assert caught.value.reason is Reason.MANIFEST_EXPIRED
    assert "2026-02-01 00:00 UTC" in caught.value.detail
    assert "companion doctor --repair" in caught.value.advice


def test_looking_at_the_same_moment_does_not_move_the_time(
    tmp_path: Path, memory: ManifestMemory
) -> None:
    for _ in range(5):
        fetch(publish(tmp_path), memory, now=TEST_NOW + 0.5)
    assert memory.latest_time(0.0) == TEST_NOW + 1


@pytest.mark.parametrize("clock", [float("nan"), float("inf"), 1e17, -1e17])
def test_a_clock_gone_wild_does_not_damage_the_memory(
    tmp_path: Path, memory: ManifestMemory, clock: float
) -> None:
    with contextlib.suppress(CompanionError):
        fetch(publish(tmp_path), memory, now=clock)
    memory.confirm_clock(TEST_NOW)
    fetch(publish(tmp_path), memory)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"latest_time": 1.5, "seen": {}}',
        b'{"latest_time": 1}',
        b'{"latest_time": 1, "seen": {"a": 5}}',
        b"x" * 70_000,
    ],
)
def test_a_damaged_memory_is_refused_and_not_forgotten(
    tmp_path: Path, memory: ManifestMemory, content: bytes
) -> None:
    fetch(publish(tmp_path), memory)
    path = tmp_path / "state" / "manifest-memory.json"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        fetch(publish(tmp_path), memory)
    assert caught.value.reason is Reason.MANIFEST_MEMORY_DAMAGED
    assert str(path) in caught.value.detail
    assert path.read_bytes() == content


def test_the_memory_is_the_persons_alone(tmp_path: Path, memory: ManifestMemory) -> None:
    fetch(publish(tmp_path), memory)
    path = tmp_path / "state" / "manifest-memory.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert set(json.loads(path.read_bytes())) == {"latest_time", "signed_time", "seen"}
    path.chmod(0o666)
    assert refusal(publish(tmp_path), memory) is Reason.STATE_PATH_UNSAFE


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///nowhere/manifest.json", Reason.MANIFEST_UNAVAILABLE),
        ("file:///", Reason.MANIFEST_UNAVAILABLE),
        ("file:///a%00b", Reason.MANIFEST_UNAVAILABLE),
        ("http://manifests.example.org/m.json", Reason.SCHEME_NOT_ALLOWED),
        ("file://host/m.json", Reason.SCHEME_NOT_ALLOWED),
        ("https://u@manifests.example.org/m.json", Reason.SOURCE_NOT_ALLOWED),
        ("", Reason.MALFORMED_SPEC),
    ],
)
def test_addresses(url: str, reason: Reason, memory: ManifestMemory) -> None:
    assert refusal(url, memory) is reason


@pytest.mark.skipif(os.name != "posix", reason="has no pipes and devices among its files")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_ordinary_file_is_not_waited_for(
    tmp_path: Path, memory: ManifestMemory, kind: str
) -> None:
    path = tmp_path / "manifest.json"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case _:
            path.mkdir()
    with pytest.raises(EnvironmentUnavailable) as caught:
        fetch(path.as_uri(), memory)
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
    # The deadline's end would say the same, a minute later.
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value.__cause__, TimeoutError)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, memory: ManifestMemory) -> None:
    missing = tmp_path / "nowhere" / "manifest.json"
    with pytest.raises(EnvironmentUnavailable) as caught:
        fetch(missing.as_uri(), memory)
    assert str(missing) in caught.value.detail


def test_a_link_to_an_ordinary_file_is_followed(tmp_path: Path, memory: ManifestMemory) -> None:
    publish(tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "manifest.json")
    fetch((tmp_path / "link.json").as_uri(), memory)


def test_a_name_with_escapes_is_found(tmp_path: Path, memory: ManifestMemory) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    url = publish(folder)
    assert "%20" in url
    fetch(url, memory)


def test_a_file_that_is_too_long(tmp_path: Path, memory: ManifestMemory) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(PUBLISHER.envelope(manifest_document(URL, b"model")) + b" " * 300_000)
    assert refusal(path.as_uri(), memory) is Reason.MANIFEST_MALFORMED


def test_a_shut_doorway_says_so(memory: ManifestMemory) -> None:
    with pytest.raises(EgressRefused):
        fetch("https://manifests.example.org/m.json", memory)


def test_a_proxys_address_that_is_none_is_the_environments_fault(
    memory: ManifestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:not-a-port")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentUnavailable) as caught:
        fetch_manifest(
            "https://manifests.example.org/manifest.json",
            egress=LiveEgress(),
            context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trusted_keys=(PUBLISHER.public_key,),
            memory=memory,
            wall_now=TEST_NOW,
        )
    assert caught.value.reason is Reason.MANIFEST_UNAVAILABLE
