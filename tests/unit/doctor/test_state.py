"""State that is open, foreign or linked; what `--repair` closes, and what it leaves alone."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from doctor_parts import make_config, make_situation
from staging_parts import leave

from companion_core.doctor import state
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.errors import Reason

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX systems"),
]

MODEL = "ab" * 32


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A state folder as a companion leaves it."""
    situation = make_situation(tmp_path)
    paths = situation.paths
    paths.prepare()
    for path, mode in {
        paths.lock_file: 0o600,
        paths.manifest_memory: 0o600,
        paths.manifests / f"{MODEL}.json": 0o600,
        paths.folder / "manifest-memory.json": 0o600,
        paths.plugin_store: 0o600,
        paths.logs / "runtime.log": 0o600,
        paths.models / MODEL: 0o400,
        paths.models / f".{MODEL}.part": 0o600,
        paths.models / f".{MODEL}.resume": 0o600,
    }.items():
        path.write_text("{}")
        path.chmod(mode)
    return paths.root


def look(tmp_path: Path, *, repair: bool = False):
    rows = run_checks(state.checks(), make_situation(tmp_path, repair=repair))
    return {row.id: row for row in rows}


def modes(root: Path) -> dict[str, int]:
    paths = [root, *root.rglob("*")]
    return {str(p.relative_to(root)): stat.S_IMODE(p.lstat().st_mode) for p in paths}


def test_a_companions_own_state_is_fine(tmp_path, place):
    assert look(tmp_path)["state-folder"].status is Status.OK


def test_a_missing_state_is_fine_and_nothing_is_made(tmp_path):
    rows = look(tmp_path, repair=True)
    assert {row.status for row in rows.values()} == {Status.OK}
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        (".", 0o755, 0o700),
        (".", 0o777, 0o700),
        ("instances", 0o750, 0o700),
        ("instances/default", 0o755, 0o700),
        ("instances/default/logs", 0o777, 0o700),
        ("instances/default/logs/runtime.log", 0o644, 0o600),
        ("instances/default/manifest-memory.json", 0o666, 0o600),
        ("manifests/memory.json", 0o666, 0o600),
        (f"manifests/{MODEL}.json", 0o644, 0o600),
        ("models", 0o755, 0o700),
        (f"models/{MODEL}", 0o446, 0o400),
        (f"models/.{MODEL}.part", 0o644, 0o600),
        (f"models/.{MODEL}.resume", 0o666, 0o600),
        ("plugins.json", 0o640, 0o600),
    ],
)
def test_an_open_mode_is_told_then_closed_then_fine(tmp_path, place, name, wrong, right):
    (place / name).chmod(wrong)
    before = modes(place)
    told = look(tmp_path)["state-folder"]
    assert (told.status, told.reason) == (Status.FAIL, Reason.STATE_PATH_UNSAFE)
    assert told.finding.fix == state.REPAIR
    assert modes(place) == before, "nothing is changed unasked"
    repaired = look(tmp_path, repair=True)["state-folder"]
    assert repaired.status is Status.REPAIRED, repaired.finding.detail
    assert stat.S_IMODE((place / name).stat().st_mode) == right
    assert modes(place) == {**before, str((place / name).relative_to(place)): right}
    assert look(tmp_path, repair=True)["state-folder"].status is Status.OK


def test_a_link_is_refused_and_not_followed(tmp_path, place):
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    letter.chmod(0o644)
    (place / "instances" / "default" / "logs" / "more.log").symlink_to(letter)
    row = look(tmp_path, repair=True)["state-folder"]
    assert (row.status, row.reason) == (Status.FAIL, Reason.STATE_PATH_UNSAFE)
    assert "more.log" in row.finding.detail
    assert stat.S_IMODE(letter.stat().st_mode) == 0o644


def test_a_file_with_a_second_name_is_told_and_left_alone(tmp_path, place):
    page = tmp_path / "page.html"
    page.write_text("for everybody")
    page.chmod(0o644)
    (place / "manifests" / f"{'cd' * 32}.json").hardlink_to(page)
    (place / "models").chmod(0o755)
    row = look(tmp_path, repair=True)["state-folder"]
    assert row.status is Status.FAIL
    assert "cdcd" in row.finding.detail
    assert stat.S_IMODE(page.stat().st_mode) == 0o644
    assert stat.S_IMODE((place / "models").stat().st_mode) == 0o700


def test_a_model_that_is_a_second_name_of_the_persons_file_is_fine(tmp_path, place):
    model = tmp_path / "model.gguf"
    model.write_text("for everybody to read")
    model.chmod(0o644)
    (place / "models" / ("cd" * 32)).hardlink_to(model)
    assert look(tmp_path)["state-folder"].status is Status.OK
    model.unlink()
    assert look(tmp_path)["state-folder"].status is Status.OK, "its first name is gone"


def test_a_model_that_others_could_write_is_told_and_a_second_name_left_alone(tmp_path, place):
    model = tmp_path / "model.gguf"
    model.write_text("for everybody to write")
    model.chmod(0o666)
    (place / "models" / ("cd" * 32)).hardlink_to(model)
    row = look(tmp_path, repair=True)["state-folder"]
    assert row.status is Status.FAIL
    assert "cdcd" in row.finding.detail
    assert stat.S_IMODE(model.stat().st_mode) == 0o666


def test_a_pipe_in_the_way_neither_hangs_nor_is_touched(tmp_path, place):
    os.mkfifo(place / "models" / "pipe", 0o644)
    row = look(tmp_path, repair=True)["state-folder"]
    assert row.status is Status.FAIL
    assert stat.S_IMODE((place / "models" / "pipe").lstat().st_mode) == 0o644


def test_a_foreign_folder_is_no_state_folder(tmp_path):
    home = tmp_path / "state"
    home.mkdir(mode=0o755)
    (home / "letter.txt").write_text("mine")
    row = look(tmp_path, repair=True)["state-folder"]
    assert row.reason is Reason.STATE_PATH_UNSAFE
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_a_folder_that_the_person_locked_is_one_row_and_can_be_opened(tmp_path, place):
    place.chmod(0)
    rows = look(tmp_path)
    assert rows["state-access"].reason is Reason.STATE_PATH_UNSAFE
    assert {rows[name].status for name in ("state-folder", "trust-store")} == {Status.SKIP}
    rows = look(tmp_path, repair=True)
    assert rows["state-access"].status is Status.REPAIRED
    assert rows["state-folder"].status is Status.OK
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_foreign_folder_is_not_opened_to_its_owner(tmp_path):
    home = tmp_path / "state"
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    home.chmod(0o555)
    row = look(tmp_path, repair=True)["state-access"]
    assert (row.status, row.reason) == (Status.FAIL, Reason.STATE_PATH_UNSAFE)
    assert stat.S_IMODE(home.stat().st_mode) == 0o555


def test_opening_a_folder_adds_rights_of_its_owner_alone(tmp_path, place):
    place.chmod(0o050)
    found = state.check_access(make_situation(tmp_path, repair=True))
    assert found.status is Status.REPAIRED
    assert stat.S_IMODE(place.stat().st_mode) == 0o750


def test_a_stored_models_digest_is_not_shown_whole(tmp_path, place):
    (place / "models" / MODEL).chmod(0o446)
    for repair in (False, True):
        detail = look(tmp_path, repair=repair)["state-folder"].finding.detail
        assert f"{MODEL[:8]}…" in detail
        assert MODEL[:9] not in detail
    (place / "models" / MODEL).unlink()
    (place / "models" / MODEL).symlink_to(tmp_path)
    assert MODEL[:9] not in look(tmp_path)["state-folder"].finding.detail


def test_the_runtimes_own_data_is_not_read(tmp_path, place):
    kept = place / "instances" / "default" / "data" / "lamp"
    kept.mkdir(parents=True, mode=0o700)
    kept.parent.chmod(0o700)
    (kept / "blob").write_text("")
    (kept / "blob").chmod(0o644)
    assert look(tmp_path, repair=True)["state-folder"].status is Status.OK
    assert stat.S_IMODE((kept / "blob").stat().st_mode) == 0o644


def test_a_link_of_the_persons_own_to_the_state_is_fine(tmp_path, place):
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert look(tmp_path)["state-folder"].status is Status.OK


def test_a_store_of_trusted_plugins_that_cannot_be_read_is_named(tmp_path, place):
    (place / "plugins.json").write_text("{")
    row = look(tmp_path)["trust-store"]
    assert row.reason is Reason.PLUGIN_STORE_MALFORMED
    assert "plugins.json" in row.finding.detail


def test_room_is_required_for_what_is_still_to_be_fetched(tmp_path, place, monkeypatch):
    situation = make_situation(tmp_path)
    assert state.check_room(situation).status is Status.OK

    class File:
        sha256, size = "ef" * 32, 10**18

    class Model:
        id, files = "tiny", (File,)

    class Manifest:
        models = (Model,)

    situation.config, situation.manifest = make_config(), Manifest
    assert state.check_room(situation).reason is Reason.DISK_UNAVAILABLE
    part = place / "models" / f".{File.sha256}.part"
    with part.open("wb") as sparse:
        sparse.truncate(10**12)
    File.size = 10**12 + 1
    assert state.check_room(situation).status is Status.FAIL, "nothing says how to go on"
    leave(place / "models", File.sha256, size=File.size)
    with part.open("wb") as sparse:
        sparse.truncate(10**12)
    assert state.check_room(situation).status is Status.OK, "a part of it is there"
    part.unlink()
    File.size = 10**18
    (place / "models" / File.sha256).touch()
    assert state.check_room(situation).status is Status.OK
    # Root, which the tests may run as, may write to every folder.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert state.check_room(situation).reason is Reason.DISK_UNAVAILABLE


def test_a_file_that_no_companion_made_is_left_as_it_is(tmp_path, place):
    notes = [place / "models" / "notes.txt", place / "instances" / ".DS_Store"]
    for path in notes:
        path.write_text("mine")
        path.chmod(0o644)
    assert look(tmp_path, repair=True)["state-folder"].status is Status.OK
    assert {stat.S_IMODE(path.stat().st_mode) for path in notes} == {0o644}
