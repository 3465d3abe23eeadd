from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host.rules import TrustRecord
from companion_core.plugin_host.trust_store import CheckRecord, TrustBook, TrustStore

pytestmark = pytest.mark.unit

RECORD = TrustRecord(
    name="lamp",
    group="companion.runtime.v1",
    module="companion_lamp",
    distribution="companion-runtime-lamp",
    version="0.1.0",
    digest="00",
    editable=False,
    files={"companion_lamp/__init__.py": "11"},
)
CHECK = CheckRecord(digest="00", kit="1.0", passed=("spawn",))


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "state" / "plugins.json")


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "state" / "plugins.json"


def test_without_a_file_no_plugin_is_trusted(store: TrustStore):
    assert store.read() == TrustBook()


def test_what_was_written_is_read_back(store: TrustStore):
    store.trust(RECORD)
    store.remember_check("lamp", CHECK)
    assert store.read() == TrustBook(trusted={"lamp": RECORD}, checked={"lamp": CHECK})


def test_trusting_again_replaces_and_untrusting_forgets_all(store: TrustStore):
    store.trust(RECORD)
    store.remember_check("lamp", CHECK)
    assert store.untrust("lamp")
    assert store.read() == TrustBook()
    assert not store.untrust("lamp")


def test_file_and_folder_are_the_owners_alone(store: TrustStore, tmp_path: Path):
    store.trust(RECORD)
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert file_of(tmp_path).parent.stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_old_content(
    store: TrustStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.trust(RECORD)

    def full(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompanionError) as caught:
        store.untrust("lamp")
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert store.read().trusted == {"lamp": RECORD}
    assert [path.name for path in file_of(tmp_path).parent.iterdir()] == ["plugins.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_file_that_others_may_write_is_refused(store: TrustStore, tmp_path: Path):
    store.trust(RECORD)
    file_of(tmp_path).chmod(0o666)
    with pytest.raises(CompanionError) as caught:
        store.read()
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE


def test_a_link_is_refused(store: TrustStore, tmp_path: Path):
    store.trust(RECORD)
    file_of(tmp_path).rename(tmp_path / "elsewhere")
    file_of(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CompanionError) as caught:
        store.read()
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE


def row(**changes: object) -> dict:
    return {"schema": 1, "trusted": {"lamp": {**RECORD_ROW, **changes}}, "checked": {}}


RECORD_ROW = {
    "name": "lamp",
    "group": "companion.runtime.v1",
    "module": "companion_lamp",
    "distribution": "companion-runtime-lamp",
    "version": "0.1.0",
    "digest": "00",
    "editable": False,
    "files": {"companion_lamp/__init__.py": "11"},
}


def test_the_sample_row_is_well_formed(store: TrustStore, tmp_path: Path):
    store.trust(RECORD)
    file_of(tmp_path).write_text(json.dumps(row()))
    assert store.read().trusted == {"lamp": RECORD}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        '{"schema": 2, "trusted": {}, "checked": {}}',
        '{"schema": true, "trusted": {}, "checked": {}}',
        '{"schema": 1, "trusted": [], "checked": {}}',
        '{"schema": 1, "trusted": {"lamp": {}}, "checked": {}}',
        json.dumps(row(name="other")),
        json.dumps(row(digest="")),
        json.dumps(row(digest=7)),
        json.dumps(row(editable=1)),
        json.dumps(row(files=[])),
        json.dumps(row(files={"a": 1})),
        json.dumps(row(surplus=1)),
        '{"schema": 1, "trusted": {}, "checked": {"a": {"digest": 1, "kit": "1", "passed": []}}}',
        '{"schema": 1, "trusted": {}, "checked": {"a": {"digest": "1", "kit": "1"}}}',
    ],
)
def test_a_malformed_file_is_no_empty_one(store: TrustStore, tmp_path: Path, text: str):
    store.trust(RECORD)
    file_of(tmp_path).write_text(text)
    for act in (store.read, lambda: store.trust(RECORD), lambda: store.untrust("lamp")):
        with pytest.raises(CompanionError) as caught:
            act()
        assert caught.value.reason is Reason.PLUGIN_STORE_MALFORMED
    assert file_of(tmp_path).read_text() == text


def test_changes_at_the_same_time_are_all_kept(store: TrustStore, tmp_path: Path):
    names = [f"lamp{number}" for number in range(12)]

    def trust(name: str) -> None:
        TrustStore(file_of(tmp_path)).trust(replace(RECORD, name=name))

    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(trust, names))
    assert sorted(store.read().trusted) == sorted(names)
