"""What was seen only grows, and only the clock's own claim is taken back."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.manifest import LastSeen, Manifest, verify_manifest
from companion_core.decisions.manifest_history import (
    MAX_HISTORY_BYTES,
    ManifestHistory,
    key_names,
    parse_history,
)
from companion_core.decisions.signatures import key_id, parse_public_key
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

PUBLISHER = FakePublisher()
ISSUED = 1_767_225_600  # 2026-01-01

TIMES = st.integers(0, 2**33)
ENTRIES = st.builds(LastSeen, st.integers(1, 9), st.sampled_from(["a", "b"]))
HISTORIES = st.builds(
    ManifestHistory,
    latest_time=TIMES,
    signed_time=TIMES,
    seen=st.dictionaries(st.sampled_from("xyz"), ENTRIES),
)


@given(HISTORIES)
def test_what_is_written_is_read_again(history: ManifestHistory) -> None:
    assert parse_history(json.dumps(history.to_json()).encode()) == history


@given(HISTORIES, HISTORIES)
def test_of_two_histories_the_latest_of_each_counts(
    one: ManifestHistory, two: ManifestHistory
) -> None:
    both = one.merged(two)
    assert both == two.merged(one)
    for each in (one, two):
        assert both.time(0) >= each.time(0)
        for name, entry in each.seen.items():
            newest = both.newest([name])
            assert newest is not None
            assert newest.version >= entry.version
    assert both.seen.keys() == one.seen.keys() | two.seen.keys()


@given(HISTORIES, st.floats())
def test_time_only_advances(history: ManifestHistory, now: float) -> None:
    after = history.with_time(now)
    assert after.time(0) >= history.time(0)
    if math.isfinite(now) and 0 <= now < 2**33:
        assert after.latest_time >= now
    assert parse_history(json.dumps(after.to_json()).encode()) == after


def test_a_confirmed_clock_counts_and_what_was_signed_stays() -> None:
    history = ManifestHistory(latest_time=900, signed_time=500, seen={"x": LastSeen(1, "a")})
    after = history.with_clock_confirmed(600.5)
    assert (after.latest_time, after.signed_time, after.seen) == (601, 500, history.seen)
    assert after.time(0) == 601
    assert history.with_clock_confirmed(300).time(300) == 500


def test_a_manifest_is_remembered_for_each_key_that_signed_it() -> None:
    raw = PUBLISHER.envelope(manifest_document("https://a.example/m/t.gguf", b"m", version=7))
    keys = [PUBLISHER.public_key]
    manifest = verify_manifest(raw, trusted_keys=keys, now=TEST_NOW, last_seen=None)
    assert isinstance(manifest, Manifest)
    history = ManifestHistory(latest_time=5).with_manifest(manifest)
    [name] = manifest.signers
    assert history.seen == {name: LastSeen(7, manifest.payload_sha256)}
    assert (history.latest_time, history.signed_time) == (5, ISSUED)
    assert history.newest(key_names(keys)) == history.seen[name]
    assert history.newest(["another"]) is None


def test_the_newest_of_several_keys_counts() -> None:
    history = ManifestHistory(seen={"x": LastSeen(2, "a"), "y": LastSeen(3, "b")})
    assert history.newest(["x", "y", "z"]) == LastSeen(3, "b")
    assert history.newest(["x"]) == LastSeen(2, "a")
    assert history.newest([]) is None


def test_a_key_has_its_id_as_name_and_the_set_the_name_of_before() -> None:
    key = parse_public_key(PUBLISHER.public_key)
    assert key is not None
    names = key_names([PUBLISHER.public_key])
    before = hashlib.sha256(PUBLISHER.public_key.encode()).hexdigest()
    assert names == (key_id(key), before)
    two = key_names(["no key", PUBLISHER.public_key])
    lines = "\n".join(sorted(["no key", PUBLISHER.public_key]))
    assert two == (key_id(key), hashlib.sha256(lines.encode()).hexdigest())


@pytest.mark.parametrize(
    "document",
    [
        {"latest_time": 1},
        {"seen": {}},
        {"latest_time": "1", "seen": {}},
        {"latest_time": 1, "seen": []},
        {"latest_time": 1, "signed_time": "1", "seen": {}},
        {"latest_time": 1, "signed_time": None, "seen": {}},
        {"latest_time": 1, "seen": {"a": {"version": 1}}},
        {"latest_time": 1, "seen": {"a": {"version": "1", "payload_sha256": "b"}}},
        {"latest_time": 1, "seen": {"a": {"version": 1, "payload_sha256": 2}}},
    ],
)
def test_what_is_damaged_is_none(document: object) -> None:
    assert parse_history(json.dumps(document).encode()) is None


def test_the_document_of_the_release_before_is_read() -> None:
    seen = {"a": {"version": 2, "payload_sha256": "b"}}
    raw = json.dumps({"latest_time": 1, "seen": seen}).encode()
    assert parse_history(raw) == ManifestHistory(latest_time=1, seen={"a": LastSeen(2, "b")})
    assert parse_history(raw + b" " * MAX_HISTORY_BYTES) is None
