"""One memory for all instances: shared by key, taken over from earlier releases, written alone."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.manifest_memory import MAX_STORED, ManifestMemory
from companion_core.config.paths import InstancePaths
from companion_core.decisions.manifest import Manifest
from companion_core.errors import CompanionError, Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

ONE, TWO = FakePublisher(), FakePublisher(b"\7" * 32)
URL = "https://manifests.example.org/manifest.json"


def envelope(*signers: FakePublisher, **changes: Any) -> bytes:
    document = manifest_document("https://models.example.org/m/tiny.gguf", b"model", **changes)
    payload = json.dumps(document).encode()
    return ONE.envelope(payload, signatures=[each.signature(payload) for each in signers])


def judge(paths: InstancePaths, raw: bytes, *trusted: FakePublisher, url: str = URL) -> Manifest:
    return ManifestMemory.of(paths).judge(
        url, raw, trusted_keys=[each.public_key for each in trusted], wall_now=TEST_NOW
    )


def refusal(paths: InstancePaths, raw: bytes, *trusted: FakePublisher) -> Reason:
    with pytest.raises(CompanionError) as caught:
        judge(paths, raw, *trusted)
    return caught.value.reason


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    paths = InstancePaths(tmp_path / "state")
    paths.prepare()
    return paths


def test_a_second_instance_cannot_be_rolled_back(paths: InstancePaths) -> None:
    judge(paths, envelope(ONE, version=3), ONE)
    second = InstancePaths(paths.root, "second")
    second.prepare()
    assert refusal(second, envelope(ONE, version=2), ONE) is Reason.MANIFEST_ROLLED_BACK


def test_a_further_trusted_key_brings_no_old_version_back(paths: InstancePaths) -> None:
    judge(paths, envelope(ONE, version=3), ONE)
    assert refusal(paths, envelope(ONE, version=2), ONE, TWO) is Reason.MANIFEST_ROLLED_BACK
    assert refusal(paths, envelope(TWO, version=2), ONE, TWO) is Reason.MANIFEST_ROLLED_BACK


def test_a_key_that_follows_another_goes_on_counting(paths: InstancePaths) -> None:
    judge(paths, envelope(ONE, version=3), ONE, TWO)
    judge(paths, envelope(TWO, version=4), ONE, TWO)
    assert refusal(paths, envelope(ONE, version=3), ONE, TWO) is Reason.MANIFEST_ROLLED_BACK


def test_a_key_is_not_held_to_what_another_signed(paths: InstancePaths) -> None:
    judge(paths, envelope(ONE, version=9), ONE)
    assert judge(paths, envelope(TWO, version=1), TWO).version == 1


def earlier(root: Path, instance: str, version: int, latest: int = 1) -> Path:
    """What the release before kept: one entry for the whole set of keys."""
    folder = root / "instances" / instance
    folder.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(ONE.public_key.encode()).hexdigest()
    seen = {name: {"version": version, "payload_sha256": "0" * 64}}
    path = folder / "manifest-memory.json"
    path.write_text(json.dumps({"latest_time": latest, "seen": seen}))
    path.chmod(0o600)
    return path


def test_what_each_instance_remembered_is_taken_in_and_the_highest_counts(
    paths: InstancePaths,
) -> None:
    files = [earlier(paths.root, "default", 5), earlier(paths.root, "other", 7, int(TEST_NOW) + 9)]
    assert refusal(paths, envelope(ONE, version=6), ONE) is Reason.MANIFEST_ROLLED_BACK
    assert not any(file.exists() for file in files)
    assert ManifestMemory.of(paths).latest_time(0.0) == TEST_NOW + 9
    assert refusal(paths, envelope(ONE, version=6), ONE) is Reason.MANIFEST_ROLLED_BACK
    assert judge(paths, envelope(ONE, version=8), ONE).version == 8


def test_who_only_looks_takes_nothing_in_and_writes_nothing(paths: InstancePaths) -> None:
    file = earlier(paths.root, "default", 5)
    memory = ManifestMemory.of(paths, remember=False)
    raw = envelope(ONE, version=6)
    memory.judge(URL, raw, trusted_keys=[ONE.public_key], wall_now=TEST_NOW)
    assert file.exists()
    assert list(paths.manifests.iterdir()) == []


def test_many_that_judge_at_once_lose_nothing(paths: InstancePaths) -> None:
    publishers = [FakePublisher(bytes([number]) * 32) for number in range(12)]
    threads = [
        threading.Thread(target=judge, args=(paths, envelope(each, version=5), each))
        for each in publishers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in publishers:
        assert refusal(paths, envelope(each, version=4), each) is Reason.MANIFEST_ROLLED_BACK


def test_the_accepted_one_is_stored_for_its_address_and_no_more_than_a_few(
    paths: InstancePaths,
) -> None:
    raw = envelope(ONE)
    for number in range(MAX_STORED + 3):
        judge(paths, raw, ONE, url=f"{URL}?{number}")
        stored = paths.manifests / f"{hashlib.sha256(f'{URL}?{number}'.encode()).hexdigest()}.json"
        os.utime(stored, (number, number))
        assert stored.stat().st_mode & 0o777 == 0o600
    memory = ManifestMemory.of(paths)
    kept = [number for number in range(MAX_STORED + 3) if memory.stored(f"{URL}?{number}")]
    assert kept == list(range(3, MAX_STORED + 3))
    newest = memory.stored(f"{URL}?{MAX_STORED}")
    assert newest is not None
    assert (newest.raw, newest.fetched_at) == (raw, TEST_NOW)


def test_a_refusal_stores_nothing_over_what_was_accepted(paths: InstancePaths) -> None:
    good = envelope(ONE, version=3)
    judge(paths, good, ONE)
    refusal(paths, envelope(ONE, version=2), ONE)
    refusal(paths, envelope(TWO, version=4), ONE)
    stored = ManifestMemory.of(paths).stored(URL)
    assert stored is not None
    assert stored.raw == good
