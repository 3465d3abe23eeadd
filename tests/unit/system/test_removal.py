"""A folder that a hostile program filled is removed, or left at a bound."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time

import pytest

from companion_core.system.removal import Budget, remove_tree

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="descriptors of folders"),
]

DEEP = 3_000


def patient() -> Budget:
    """Return a budget for a busy machine, on which removing one folder may take milliseconds."""
    return Budget(seconds=60)


def nest(folder, depth: int = DEEP) -> None:
    """Make nested folders whose path is longer than the system takes."""
    folder.mkdir(exist_ok=True)
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT, dir_fd=at))
    os.close(at)


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - only the names are needed


def test_folders_deeper_than_recursion_and_paths_allow_are_removed(tmp_path) -> None:
    nest(tmp_path / "start")
    before = open_descriptors()
    assert remove_tree(tmp_path / "start", patient())
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


def test_many_files_odd_names_and_kinds_are_removed(tmp_path) -> None:
    folder = tmp_path / "start"
    (folder / "wide").mkdir(parents=True)
    for number in range(3_000):
        (folder / "wide" / str(number)).touch()
    for number in range(300):
        (folder / f"folder{number}" / "x").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe\n", os.O_CREAT))
    os.mkdir(os.fsencode(folder) + b"/\xff folder")  # noqa: PTH102 - a Path takes text alone
    (folder / ("n" * 255)).mkdir()
    assert remove_tree(folder, patient())
    assert not folder.exists()


def test_links_are_removed_and_not_followed(tmp_path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    outside.chmod(0o750)
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "to-folder").symlink_to(outside)
    (folder / "to-file").symlink_to(outside / "kept")
    (folder / "dangling").symlink_to("nowhere")
    assert remove_tree(folder, patient())
    assert (outside / "kept").exists()
    assert outside.stat().st_mode & 0o777 == 0o750

    folder.symlink_to(outside)  # in the place of the folder itself
    assert not remove_tree(folder, patient())
    assert (outside / "kept").exists()


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o500, 0o600])
def test_folders_that_were_closed_to_their_owner_are_removed(tmp_path, mode) -> None:
    folder = tmp_path / "start"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    for closed in (folder / "a" / "b" / "c", folder / "a" / "b", folder / "a", folder):
        closed.chmod(mode)
    assert remove_tree(folder, patient())
    assert not os.path.lexists(folder)


def test_it_ends_at_its_bounds_and_goes_on_the_next_time(tmp_path) -> None:
    folder = tmp_path / "start"
    nest(folder, 50)
    assert not remove_tree(folder, Budget(entries=20))
    late = iter([0.0, *[1.0] * 20, *[99.0] * 1_000])
    assert not remove_tree(folder, Budget(seconds=10, clock=lambda: next(late)))
    assert remove_tree(folder, patient())


def test_files_that_appear_meanwhile_do_not_keep_it(tmp_path) -> None:
    folder = tmp_path / "start"
    (folder / "below").mkdir(parents=True)
    over = threading.Event()

    def fill() -> None:
        while not over.is_set():
            for place in (folder, folder / "below"):
                try:
                    (place / secrets.token_hex(4)).touch()
                except OSError:
                    return

    writer = threading.Thread(target=fill)
    writer.start()
    begun = time.monotonic()
    remove_tree(folder, Budget(seconds=1))
    assert time.monotonic() - begun < 10
    over.set()
    writer.join()
    assert remove_tree(folder, patient()) or not folder.exists()


@pytest.mark.parametrize("refused", ["unlink", "rename", "rmdir", "open", "scandir"])
def test_what_cannot_be_removed_stays_and_the_rest_goes(tmp_path, monkeypatch, refused) -> None:
    folder = tmp_path / "start"
    (folder / "stays").mkdir(parents=True)
    (folder / "stays" / "stays").touch()
    (folder / "goes").touch()
    real = getattr(os, refused)

    def refuse(name, *arguments, **options):
        if name == "stays" or refused == "scandir":
            raise PermissionError(1, "immutable")
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, refused, refuse)
    assert not remove_tree(folder, patient()) or refused in {"rmdir", "open"}
    monkeypatch.undo()
    if refused != "scandir":
        assert not (folder / "goes").exists()
    assert remove_tree(folder, patient()) or not folder.exists()


def test_a_folder_that_is_not_there_is_gone(tmp_path) -> None:
    assert remove_tree(tmp_path / "nothing")
    assert remove_tree(tmp_path / "nothing" / "below")
