import errno
import functools
import io
import os
import stat
import struct
import sys
import types
from pathlib import Path

import pytest

from companion_core.errors import EnvironmentUnavailable, Reason, Refused
from companion_core.runtime.process.binary import check_unreplaceable
from companion_core.system import state_files
from companion_core.system.state_files import (
    check_owned,
    open_to_others,
    private_folder,
    read_private,
    refuse_link,
    write_private,
)

pytestmark = pytest.mark.security


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_folder_and_its_new_parents_are_the_owners_alone(tmp_path):
    folder = private_folder(tmp_path / "a" / "b")
    assert mode(folder) == mode(folder.parent) == 0o700


def test_a_folder_that_was_open_is_closed(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    assert mode(private_folder(folder)) == 0o700


def test_a_component_that_others_may_replace_is_refused(tmp_path):
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o777)
    with pytest.raises(Refused) as caught:
        private_folder(wide / "state")
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    assert not (wide / "state").exists()


EVERYBODY, NO_ONE = 0x20, 0xFFFFFFFF
OWNER, NAMED_USER, GROUP, NAMED_GROUP, MASK = 0x01, 0x02, 0x04, 0x08, 0x10


@pytest.fixture
def grant(require_real):
    return functools.partial(_grant, require_real)


def _grant(require_real, path, *entries, mask=7):
    """Give a file an access list (acl(5)); each entry is a kind, what it may do, and whom."""
    always = [(OWNER, 7, NO_ONE), (GROUP, 5, NO_ONE), (MASK, mask, NO_ONE), (EVERYBODY, 5, NO_ONE)]
    packed = b"".join(struct.pack("<HHI", *each) for each in sorted([*always, *entries]))
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError:
        require_real("a file system that knows access lists", False)  # noqa: FBT003 - as it is called


@pytest.mark.skipif(sys.platform != "linux", reason="access lists as Linux keeps them")
@pytest.mark.parametrize("entry", [(NAMED_USER, 7, 5555), (NAMED_GROUP, 2, 5555)])
def test_an_access_list_that_lets_another_write_is_refused(grant, tmp_path, entry):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    grant(shared, entry)
    for refused in (
        lambda: check_owned(shared / "state"),
        lambda: private_folder(shared / "state"),
        lambda: private_folder(shared),
    ):
        with pytest.raises(Refused) as caught:
            refused()
        assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    program = shared / "program"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(Refused) as caught:
        check_unreplaceable(program)
    assert caught.value.reason is Reason.RUNTIME_UNSAFE
    note = tmp_path / "note"
    note.write_bytes(b"x")
    note.chmod(0o600)
    grant(note, entry)
    with pytest.raises(Refused):
        read_private(note, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="access lists as Linux keeps them")
def test_an_access_list_that_lets_nobody_else_write_is_fine(grant, tmp_path):
    for number, (entry, mask) in enumerate(
        [
            ((NAMED_USER, 5, 5555), 7),  # may read
            ((NAMED_USER, 7, 5555), 5),  # could write, were it not for the mask
            ((NAMED_USER, 7, os.getuid()), 7),
            ((NAMED_USER, 7, 0), 7),
            ((NAMED_GROUP, 7, os.getgid()), 7),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o755)
        grant(folder, entry, mask=mask)
        check_owned(folder / "state")


@pytest.mark.skipif(sys.platform != "linux", reason="access lists as Linux keeps them")
def test_an_access_list_that_cannot_be_read_counts_as_open(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "getxattr", refused)
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o775)
    with pytest.raises(Refused):
        check_owned(folder / "state")


def test_a_sticky_folder_such_as_tmp_is_fine_above(tmp_path):
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert private_folder(sticky / "mine").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="owners of POSIX systems")
def test_a_folder_or_link_of_another_person_is_refused(tmp_path, require_real):
    require_real("root, who gives files away", os.geteuid() == 0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with pytest.raises(Refused):
        check_owned(foreign / "x")
    link = tmp_path / "link"
    link.symlink_to(foreign)
    with pytest.raises(Refused):
        check_owned(link / "x")


@pytest.mark.skipif(os.name != "posix", reason="owners of POSIX systems")
def test_anothers_home_is_a_lack_where_nothing_can_be_made_and_else_unsafe(
    tmp_path, monkeypatch, require_real
):
    """As with `HOME` of somebody else: nobody threatens whoever cannot write there."""
    require_real("root, who gives files away", os.geteuid() == 0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with pytest.raises(Refused):
        private_folder(foreign / "state")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EnvironmentUnavailable) as caught:
        private_folder(foreign / "state")
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert str(foreign) in caught.value.detail
    with pytest.raises(Refused):
        check_owned(foreign / "program")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, Reason.DISK_UNAVAILABLE),
        (errno.EIO, Reason.DISK_UNAVAILABLE),
        (errno.EMFILE, Reason.LIMIT_REACHED),
    ],
)
def test_what_the_system_refuses_is_a_lack_and_not_unsafe(tmp_path, monkeypatch, number, reason):
    """A folder that may not be looked into, a broken disk, no descriptor."""

    def refuse(*args, **_):
        raise OSError(number, os.strerror(number), args[0])

    path = tmp_path / "state.json"
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentUnavailable) as caught:
        read_private(path, 5)
    assert caught.value.reason is reason
    assert str(path) in caught.value.detail or reason is Reason.LIMIT_REACHED
    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(EnvironmentUnavailable) as caught:
        check_owned(path)
    assert caught.value.reason is reason


def test_a_file_that_cannot_be_read_in_full_is_a_lack_and_named(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_private(path, b"12345")

    class Broken(io.BytesIO):
        def fileno(self):
            return opened.fileno()

        def read(self, *_):
            raise OSError(errno.EIO, "input/output error")

    with path.open("rb") as opened:
        monkeypatch.setattr(state_files, "open_ordinary", lambda *_: Broken())
        with pytest.raises(EnvironmentUnavailable) as caught:
            read_private(path, 5)
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert str(path) in caught.value.detail


def test_a_shared_folder_such_as_tmp_is_never_made_ones_own(tmp_path):
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    with pytest.raises(Refused):
        private_folder(sticky)
    assert stat.S_IMODE(sticky.stat().st_mode) == 0o1777


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Refused) as caught:
        private_folder(tmp_path / "one" / "state")
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE


@pytest.mark.parametrize("target", ["wide/mine", "deep/../wide/mine"])
def test_a_link_is_checked_along_the_path_that_the_system_takes(tmp_path, target):
    wide = tmp_path / "wide"
    (wide / "mine").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(target)
    private_folder(tmp_path / "link" / ".." / "fine")
    wide.chmod(0o777)
    with pytest.raises(Refused) as caught:
        private_folder(tmp_path / "link" / ".." / "state")
    assert str(wide) in caught.value.detail
    assert not (wide / "state").exists()


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((Refused, EnvironmentUnavailable)):
        private_folder(tmp_path / "file")


def test_a_write_is_private_and_whole_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "state.json"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    assert mode(path) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_private(path, b"one")

    def full(_descriptor):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentUnavailable) as caught:
        write_private(path, b"two")
    assert caught.value.reason is Reason.DISK_UNAVAILABLE
    assert path.read_bytes() == b"one"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_reading_refuses_what_others_could_have_written(tmp_path):
    path = tmp_path / "state.json"
    assert read_private(path, 10) is None
    write_private(path, b"12345")
    assert read_private(path, 5) == b"12345"
    with pytest.raises(Refused):
        read_private(path, 4)
    path.chmod(0o666)
    with pytest.raises(Refused) as caught:
        read_private(path, 5)
    assert str(path) in caught.value.detail
    link = tmp_path / "link"
    path.chmod(0o600)
    link.symlink_to(path)
    with pytest.raises(Refused):
        read_private(link, 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_or_a_folder_in_a_files_place_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("pipe", "folder"):
        with pytest.raises(Refused):
            read_private(tmp_path / name, 5)


def test_a_junction_is_a_link(tmp_path, monkeypatch):
    """Windows' other link between folders: `is_symlink` says no, its reparse tag tells."""
    mount_point = 0xA0000003
    monkeypatch.setattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", mount_point, raising=False)
    real = Path.lstat
    refuse_link(tmp_path)

    class Junction:
        st_mode = stat.S_IFDIR | 0o700
        st_reparse_tag = mount_point

    monkeypatch.setattr(Path, "lstat", lambda path: Junction if path == tmp_path else real(path))
    with pytest.raises(Refused) as caught:
        refuse_link(tmp_path)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE
    Junction.st_reparse_tag = 0
    refuse_link(tmp_path)


def test_a_sticky_folder_of_a_group_is_safe_if_the_entry_is_ours(tmp_path):
    """As /nix/store is, which the build users may write to."""
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o1775)
    if os.getuid() == 0:
        os.chown(store, 0, 30_000)
    (store / "entry").mkdir(mode=0o755)
    check_owned(store / "entry")
    store.chmod(0o775)
    if os.getuid() == 0:
        with pytest.raises(Refused) as caught:
            check_owned(store / "entry")
        assert str(store) in caught.value.detail


@pytest.mark.parametrize(
    ("number", "listed", "others"),
    [
        (50, ([], []), False),
        (50, (["root"], []), False),
        (50, (["me"], []), False),
        (50, (["other"], []), True),
        (50, (["me", "other"], []), True),
        (50, (["nobody-knows"], []), True),
        (50, ([], ["other"]), True),
        (999, ([], []), False),
        (1000, ([], []), True),
        (50, (None, []), True),
    ],
)
def test_a_system_group_without_members_opens_a_folder_to_nobody(
    tmp_path, monkeypatch, number, listed, others
):
    grp, pwd = pytest.importorskip("grp"), pytest.importorskip("pwd")
    members, primary = listed
    users = {"root": 0, "me": os.geteuid(), "other": 54_321}

    def user(name):
        return types.SimpleNamespace(pw_uid=users[name], pw_gid=number)

    def group(_number):
        if members is None:
            raise KeyError
        return types.SimpleNamespace(gr_mem=members)

    monkeypatch.setattr(pwd, "getpwnam", user)
    monkeypatch.setattr(pwd, "getpwall", lambda: [user(name) for name in primary])
    monkeypatch.setattr(grp, "getgrgid", group)
    tmp_path.chmod(0o2775)
    status = tmp_path.stat()
    fields = list(status)
    fields[5] = number
    assert open_to_others(os.stat_result(fields), tmp_path) is others


def test_a_refused_program_names_the_folder(tmp_path):
    wide = tmp_path / "wide"
    (wide / "bin").mkdir(parents=True)
    wide.chmod(0o777)
    program = wide / "bin" / "program"
    program.touch()
    with pytest.raises(Refused) as caught:
        check_unreplaceable(program)
    assert caught.value.detail == f"{wide} can be changed by others"
