from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import CodeFile, code_digest

pytestmark = pytest.mark.unit

Install = Callable[..., Path]

# An import of any of it fails.
EXPLODES = "raise SystemExit('imported')\n"
LAMP = {"companion_lamp/__init__.py": EXPLODES, "companion_lamp/py.typed": ""}
INFO = "companion_runtime_lamp-0.1.0.dist-info"


def lamp(install: Install, **how: object) -> Path:
    return install("companion-runtime-lamp", LAMP, {"lamp": "companion_lamp"}, **how)


def test_everything_about_a_plugin_is_read_without_importing_it(install_distribution: Install):
    site = lamp(install_distribution)
    (found,) = find_plugins([str(site)])
    assert (found.name, found.group, found.module) == ("lamp", RUNTIME_GROUP, "companion_lamp")
    assert (found.distribution, found.version) == ("companion-runtime-lamp", "0.1.0")
    assert found.root == os.path.realpath(site)
    assert (found.editable, found.intact, found.first_on_path) == (False, True, True)
    assert found.modules == {"companion_lamp": "companion_lamp/__init__.py"}
    assert [file.path for file in found.files] == sorted(LAMP)


def test_the_digest_is_over_the_contents_and_not_over_metadata(install_distribution: Install):
    one = lamp(install_distribution, folder="one")
    other = lamp(
        install_distribution,
        folder="other",
        extra={"INSTALLER": "uv\n"},
        unlisted={"companion_lamp/__pycache__/__init__.cpython-311.pyc": "byte code"},
    )
    (first,), (second,) = find_plugins([str(one)]), find_plugins([str(other)])
    assert first.digest == second.digest
    assert second.intact

    (other / "companion_lamp" / "py.typed").write_text("partial\n")
    (third,) = find_plugins([str(other)])
    assert third.digest != first.digest


def test_the_digest_is_computed_and_not_read_from_record(install_distribution: Install):
    record = "companion_lamp/__init__.py,sha256=0000,0\ncompanion_lamp/py.typed,,\n"
    site = lamp(install_distribution, extra={"RECORD": record})
    (found,) = find_plugins([str(site)])
    real = lamp(install_distribution, folder="real")
    (honest,) = find_plugins([str(real)])
    assert found.digest == honest.digest == code_digest(honest.files)


@pytest.mark.parametrize(
    "stray",
    [
        "companion_lamp/extra.py",
        "companion_lamp/deep/extra.so",
        "companion_lamp/extra.pyc",
        "companion_lamp/__pycache__/extra.py",
        "companion_lamp/extra.cpython-311-x86_64-linux-gnu.so",
        "companion_lamp/libextra.so.1.2",
        "companion_lamp/EXTRA.DLL",
        "companion_lamp/extra.dylib",
    ],
)
def test_code_that_record_does_not_list_is_seen_and_named(
    install_distribution: Install, stray: str
):
    site = lamp(install_distribution, unlisted={stray: ""})
    (found,) = find_plugins([str(site)])
    assert not found.intact
    assert found.strays == (stray,)


@pytest.mark.parametrize(
    "left",
    [
        "companion_lamp/.DS_Store",
        "companion_lamp/._plugin",
        "companion_lamp/Thumbs.db",
        "companion_lamp/__pycache__/__init__.cpython-311.pyc.140231",
        "companion_lamp/__init__.py.swp",
        "companion_lamp/__init__.py~",
        "companion_lamp/notes/todo.txt",
    ],
)
def test_what_cannot_be_imported_is_no_code(install_distribution: Install, left: str):
    site = lamp(install_distribution, unlisted={left: "left by another program"})
    (found,) = find_plugins([str(site)])
    assert (found.intact, found.strays) == (True, ())


def test_a_linked_folder_inside_the_package_is_seen(install_distribution: Install, tmp_path: Path):
    site = lamp(install_distribution)
    (tmp_path / "elsewhere").mkdir()
    (site / "companion_lamp" / "deep").symlink_to(tmp_path / "elsewhere")
    (found,) = find_plugins([str(site)])
    assert (found.intact, found.strays) == (False, ("companion_lamp/deep",))


def test_byte_code_without_source_is_seen_although_listed(install_distribution: Install):
    site = install_distribution(
        "companion-runtime-lamp",
        {**LAMP, "companion_lamp/hidden.pyc": ""},
        {"lamp": "companion_lamp"},
    )
    assert [found.intact for found in find_plugins([str(site)])] == [False]


def test_a_listed_file_that_is_missing_or_no_file_is_seen(install_distribution: Install):
    site = lamp(install_distribution)
    (site / "companion_lamp" / "py.typed").unlink()
    (found,) = find_plugins([str(site)])
    assert (found.intact, found.digest) == (False, None)

    os.mkfifo(site / "companion_lamp" / "py.typed")
    (found,) = find_plugins([str(site)])
    assert (found.intact, found.digest) == (False, None)


def test_scripts_and_foreign_paths_of_record_are_not_code(install_distribution: Install):
    record = "".join(
        f"{path},,\n" for path in ["../../bin/lamp", "/etc/hostname", *LAMP, f"{INFO}/METADATA", ""]
    )
    site = lamp(install_distribution, extra={"RECORD": record})
    (found,) = find_plugins([str(site)])
    assert [file.path for file in found.files] == sorted(LAMP)


@pytest.mark.parametrize("record", ["", '\0,"', "companion_lamp/py.typed"])
def test_without_a_whole_record_nothing_is_owned_by_guess(
    install_distribution: Install, record: str
):
    site = lamp(install_distribution, extra={"RECORD": record})
    (found,) = find_plugins([str(site)])
    assert (found.digest is None) or not found.intact


def test_an_editable_install_is_seen(install_distribution: Install):
    origin = json.dumps({"url": "file:///src", "dir_info": {"editable": True}})
    site = lamp(install_distribution, extra={"direct_url.json": origin})
    assert [found.editable for found in find_plugins([str(site)])] == [True]


@pytest.mark.parametrize("origin", ["{", "[]", '{"dir_info": 1}', '{"dir_info": {}}'])
def test_another_origin_is_not_editable(install_distribution: Install, origin: str):
    site = lamp(install_distribution, extra={"direct_url.json": origin})
    assert [found.editable for found in find_plugins([str(site)])] == [False]


def test_a_folder_earlier_on_the_path_shadows(install_distribution: Install, tmp_path: Path):
    site = lamp(install_distribution)
    early = tmp_path / "early"
    (early / "companion_lamp").mkdir(parents=True)
    (early / "companion_lamp" / "__init__.py").write_text(EXPLODES)
    assert [p.first_on_path for p in find_plugins([str(early), str(site)])] == [False]
    assert [p.first_on_path for p in find_plugins([str(site), str(early)])] == [True]


def test_a_module_of_the_standard_library_is_never_the_plugins_own(install_distribution: Install):
    site = install_distribution("json-lamp", {"json/__init__.py": EXPLODES}, {"lamp": "json"})
    assert [found.first_on_path for found in find_plugins([str(site)])] == [False]


def test_one_folder_twice_on_the_path_is_one_claim(install_distribution: Install, tmp_path: Path):
    site = lamp(install_distribution)
    (tmp_path / "lib64").symlink_to(site)
    assert len(find_plugins([str(site), str(tmp_path / "lib64"), str(site)])) == 1


def test_two_copies_are_two_claims(install_distribution: Install):
    one = lamp(install_distribution, folder="one")
    other = lamp(install_distribution, folder="other")
    assert len(find_plugins([str(one), str(other)])) == 2


def test_two_versions_left_in_one_folder_are_two_claims(install_distribution: Install):
    site = lamp(install_distribution)
    lamp(install_distribution, version="0.0.9")
    assert len(find_plugins([str(site)])) == 2


def test_entry_points_of_other_groups_are_left_out(install_distribution: Install):
    site = lamp(install_distribution, group="console_scripts")
    lamp(install_distribution, group="companion.runtime.v10", folder="later")
    assert find_plugins([str(site), str(site.parent / "later")]) == ()


def test_both_groups_are_found_sorted(install_distribution: Install):
    site = lamp(install_distribution)
    vault = {"vault/__init__.py": EXPLODES}
    install_distribution("a-vault", vault, {"vault": "vault"}, group=AUTHORITY_GROUP)
    assert [found.name for found in find_plugins([str(site)])] == ["lamp", "vault"]


def test_entry_points_that_cannot_be_read_name_their_distribution(install_distribution: Install):
    site = lamp(install_distribution)
    (site / INFO / "entry_points.txt").write_text(f"[{RUNTIME_GROUP}]\nno value\n")
    (found,) = find_plugins([str(site)])
    assert (found.name, found.module) == ("companion-runtime-lamp", "")


def test_text_of_a_foreign_distribution_is_safe_to_show(install_distribution: Install):
    site = install_distribution("lamp", LAMP, {"\x1b[31mlamp" + "x" * 500: "companion_lamp"})
    (found,) = find_plugins([str(site)])
    assert found.name.isascii()
    assert found.name.isprintable()
    assert len(found.name) <= 100


def test_a_distribution_that_cannot_be_read_costs_itself(install_distribution: Install):
    site = lamp(install_distribution)
    broken = site / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "entry_points.txt").write_bytes(b"[companion.runtime.v1]\nx = \xff\n")
    assert [found.name for found in find_plugins([str(site)])] == ["lamp"]


def test_a_distribution_without_metadata_is_found_all_the_same(install_distribution: Install):
    site = lamp(install_distribution)
    (site / INFO / "METADATA").write_text("")
    assert [found.name for found in find_plugins([str(site)])] == ["lamp"]


def test_a_changed_byte_is_another_file():
    assert code_digest([CodeFile("a", "0")]) != code_digest([CodeFile("a", "1")])
