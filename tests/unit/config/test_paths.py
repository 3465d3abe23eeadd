import os
import tempfile
from pathlib import Path

import pytest

from companion_core.config.paths import MAX_SOCKET_PATH, InstancePaths, default_state_dir
from companion_core.control.client import find_running
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason, Refused, UsageError

pytestmark = pytest.mark.unit

LONGEST = "/01234567/backend.sock"


def test_two_instances_share_models_and_manifests_and_nothing_else(tmp_path):
    one, two = InstancePaths(tmp_path), InstancePaths(tmp_path, "two")
    one.prepare()
    two.prepare()
    assert one.models == two.models
    assert one.manifest_memory == two.manifest_memory
    for name in ("folder", "logs", "lock_file", "state_file"):
        assert getattr(one, name) != getattr(two, name)
    assert one.run_folder() != two.run_folder()


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "x" * 33, "a\n"])
def test_an_instance_name_is_no_path(tmp_path, name):
    with pytest.raises(UsageError) as caught:
        InstancePaths(tmp_path, name)
    assert caught.value.reason is Reason.USAGE


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """Nobody is logged in: the system's place for that is no argument of anything."""
    monkeypatch.setattr("companion_core.config.paths.LOGIN_FOLDERS", tmp_path / "nowhere")


@pytest.mark.usefixtures("no_login")
@pytest.mark.parametrize("length", [1, 40, 80, 120, 200])
@pytest.mark.parametrize("folder", ["XDG_RUNTIME_DIR", "XDG_CACHE_HOME"])
def test_sockets_fit_however_deep_the_state_folder_is(tmp_path, monkeypatch, length, folder):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 90)))
    paths = InstancePaths(tmp_path / ("d" * length))
    paths.prepare()
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv(folder, short)
        made = paths.run_folder()
        assert len(os.fsencode(made)) + len(LONGEST) <= MAX_SOCKET_PATH
        assert made.stat().st_mode & 0o777 == 0o700
        assert made.is_relative_to(paths.root) or made.is_relative_to(short)


@pytest.mark.usefixtures("no_login")
@pytest.mark.skipif(os.name != "posix", reason="others share folders on POSIX systems")
@pytest.mark.parametrize("folder", ["XDG_RUNTIME_DIR", "TMPDIR", "XDG_CACHE_HOME"])
def test_no_socket_lies_where_another_user_could_make_its_folder_first(
    tmp_path, monkeypatch, folder
):
    for name in ("XDG_RUNTIME_DIR", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / ("x" * 90)))
    paths = InstancePaths(tmp_path / ("d" * 120))
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        monkeypatch.setenv(folder, shared)
        monkeypatch.setattr(tempfile, "tempdir", None)  # what the process knew of TMPDIR
        assert paths.run_folder_path().is_relative_to(shared)
        for mode in (0o1777, 0o777):
            Path(shared).chmod(mode)
            with pytest.raises(UsageError) as caught:
                paths.run_folder_path()
            assert caught.value.reason is Reason.CONFIGURATION_INVALID
            assert str(paths.root) in caught.value.detail


def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter.txt").write_text("")
    with pytest.raises(Refused) as caught:
        InstancePaths(home).prepare()
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    assert str(home) in caught.value.detail
    assert home.stat().st_mode & 0o777 == 0o755
    assert [p.name for p in home.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "instances",
        "instances/default",
        "instances/default/logs",
        "instances/default/data",
        "models",
        "manifests",
    ],
)
def test_a_link_in_place_of_a_folder_of_ours_is_refused(tmp_path, name):
    root, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    paths = InstancePaths(root)
    paths.prepare()
    if (root / name).exists():
        (root / name).rename(tmp_path / "before")
    (root / name).symlink_to(elsewhere)
    for use in (paths.prepare, lambda: find_running(paths, RefusingEgress())):
        with pytest.raises(Refused) as caught:
            use()
        assert caught.value.reason is Reason.STATE_PATH_UNSAFE
        assert str(root / name) in caught.value.detail
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert list(elsewhere.iterdir()) == []


def test_a_broken_link_is_refused_too(tmp_path):
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "default").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused):
        InstancePaths(tmp_path).prepare()
    assert not (tmp_path / "nowhere").exists()


def test_the_state_folder_may_be_reached_through_links(tmp_path):
    disk = tmp_path / "disk"
    (disk / "state").mkdir(parents=True)
    (tmp_path / "home").symlink_to(disk)
    (disk / "link").symlink_to(disk / "state")
    paths = InstancePaths(tmp_path / "home" / "link")
    paths.prepare()
    assert find_running(paths, RefusingEgress()) is None
    assert (disk / "state" / "instances" / "default").is_dir()
    assert (disk / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [[], ["instances"], ["instances", "models"]])
def test_an_empty_folder_and_a_companions_own_are_closed_to_others(tmp_path, content):
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    for name in content:
        (root / name).mkdir(mode=0o755)
    InstancePaths(root).prepare()
    for folder in (root, *root.iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_home_the_person_is_asked_for_a_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(UsageError) as caught:
        default_state_dir()
    assert "--state-dir" in caught.value.detail


def test_a_path_that_is_no_text_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UsageError) as caught:
        InstancePaths(tmp_path / os.fsdecode(b"latin-\xe9"))
    assert "--state-dir" in caught.value.detail
