import os
import stat

import pytest

from companion_core.config.writer import write_config
from companion_core.errors import Reason, UsageError

pytestmark = pytest.mark.unit


def refused(path, text, before):
    with pytest.raises(UsageError) as error:
        write_config(path, text, before=before)
    assert error.value.reason is Reason.CONFIGURATION_INVALID
    return error.value.detail


def test_a_new_file_and_its_folders_are_the_persons_alone(tmp_path):
    path = tmp_path / "config" / "companion" / "config.toml"
    write_config(path, "# é\n", before=None)
    assert path.read_text(encoding="utf-8") == "# é\n"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    folder.chmod(0o755)
    write_config(folder / "companion.toml", "", before=None)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755 or os.name != "posix"


def test_a_link_and_the_mode_of_the_file_stay(tmp_path):
    real, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    real.write_text("[model]\n", encoding="utf-8")
    real.chmod(0o644)
    link.symlink_to(real)
    write_config(link, "[model]\n# more\n", before="[model]\n")
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == "[model]\n# more\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o644 or os.name != "posix"


@pytest.mark.parametrize("before", [None, "[model]\n"])
def test_what_was_written_in_the_meantime_is_not_overwritten(tmp_path, before):
    path = tmp_path / "config.toml"
    path.write_text("# mine\n", encoding="utf-8")
    assert "in the meantime" in refused(path, "[model]\n# ours\n", before)
    assert path.read_text(encoding="utf-8") == "# mine\n"


def test_a_path_that_is_no_text_is_refused_before_anything_is_written(tmp_path):
    assert "no text" in refused(tmp_path / "config.toml", "key = '\udcff'", None)
    assert not (tmp_path / "config.toml").exists()


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away"
)
def test_a_file_of_someone_else_is_left_alone(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("", encoding="utf-8")
    os.chown(path, 12345, -1)
    assert "someone else" in refused(path, "[model]\n", "")
