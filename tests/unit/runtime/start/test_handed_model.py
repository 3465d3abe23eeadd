from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.manifest_kind import Role
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.runtime.start.handed_model import hand_on

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.name != "posix", reason="descriptors as paths are POSIX"),
]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    made = parts.verified_model(path)
    yield made
    made.close()


def reason_of(function, *args) -> Reason:
    with pytest.raises(Refused) as caught:
        function(*args)
    return caught.value.reason


def test_each_start_has_a_description_of_its_own(tmp_path, model) -> None:
    first, second = (hand_on(model, tmp_path, Tier.NONE) for _ in range(2))
    ours = model.files[0].descriptor
    numbers = [int(each.files[0].path.rpartition("/")[2]) for each in (first, second)]
    assert len({*numbers, ours}) == 3
    os.lseek(numbers[0], 3, os.SEEK_SET)
    assert [os.lseek(each, 0, os.SEEK_CUR) for each in (numbers[1], ours)] == [0, 0]
    assert os.path.samestat(os.fstat(numbers[0]), os.fstat(ours))
    assert not os.get_inheritable(numbers[0])
    assert Path(second.files[0].path).read_bytes() == b"weights"
    (file,) = first.files
    assert (file.name, file.size) == ("tiny.gguf", 7)
    for each in (first, second, second):
        each.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(numbers[0])


def test_several_files_are_links_in_a_folder_of_the_start(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    model = parts.verified_model(tmp_path / "one", tmp_path / "two")
    handed = hand_on(model, tmp_path / "start", Tier.LANDLOCK)
    assert [Path(file.path).read_text() for file in handed.files] == ["one", "two"]
    assert {Path(file.path).parent for file in handed.files} == {tmp_path / "start" / "model"}
    assert [path for path, _ in handed.reached_by] != [file.path for file in handed.files]
    handed.close()
    model.close()


def test_each_keeps_the_role_that_was_signed(tmp_path) -> None:
    roles = {"chat": Role.MODEL, "sees": Role.PROJECTOR, "polite": Role.ADAPTER}
    for name in roles:
        (tmp_path / name).write_text(name)
    model = parts.verified_model(*(tmp_path / name for name in roles), roles=roles)
    handed = hand_on(model, tmp_path / "start", Tier.LANDLOCK)
    assert [file.role for file in handed.files] == ["model", "projector", "adapter"]
    handed.close()
    model.close()


@linux_only
def test_in_bubblewrap_each_is_mounted_under_its_name(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    model = parts.verified_model(tmp_path / "one", tmp_path / "two")
    handed = hand_on(model, tmp_path / "start", Tier.BUBBLEWRAP)
    paths = ["/verified-model/one", "/verified-model/two"]
    assert [file.path for file in handed.files] == paths
    assert [path for path, _ in handed.reached_by] == paths
    assert not (tmp_path / "start").exists()
    handed.close()
    model.close()


@linux_only
def test_only_a_file_that_has_a_name_can_be_mounted(tmp_path, model) -> None:
    stored = tmp_path / "tiny.gguf"
    stored.rename(tmp_path / "renamed")
    hand_on(model, tmp_path, Tier.BUBBLEWRAP).close()
    stored.write_bytes(b"another")
    (tmp_path / "renamed").unlink()
    before = len(list(Path("/proc/self/fd").iterdir()))
    handed = hand_on(model, tmp_path, Tier.NONE)  # there the name does not matter
    assert Path(handed.files[0].path).read_bytes() == b"weights"
    handed.close()
    with pytest.raises(CompanionError, match="model_removed"):
        hand_on(model, tmp_path, Tier.BUBBLEWRAP)
    assert not model.is_open
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_where_descriptors_open_as_the_same_the_name_must_lead_there(
    tmp_path, model, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    handed = hand_on(model, tmp_path, Tier.SANDBOX_EXEC)
    path = handed.files[0].path
    handed.close()
    assert path.startswith("/dev/fd/")
    stored = tmp_path / "tiny.gguf"
    stored.rename(tmp_path / "renamed")
    assert reason_of(hand_on, model, tmp_path, Tier.NONE) is Reason.STATE_PATH_UNSAFE
    stored.write_bytes(b"another")
    assert reason_of(hand_on, model, tmp_path, Tier.NONE) is Reason.DIGEST_MISMATCH


def test_a_model_that_is_closed_is_not_handed_on(tmp_path, model) -> None:
    model.close()
    assert reason_of(hand_on, model, tmp_path, Tier.NONE) is Reason.DIGEST_MISMATCH
