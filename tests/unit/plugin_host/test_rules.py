from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.errors import Reason
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP
from companion_core.plugin_host.rules import (
    CodeFile,
    FirstParty,
    FoundPlugin,
    Release,
    code_digest,
    is_bytecode_cache,
    judge_found,
    modules_of,
    normalized,
    parse_first_party,
    parse_narrow,
    sourceless,
)

pytestmark = pytest.mark.unit

FILES = (CodeFile("companion_lamp/__init__.py", "aa"), CodeFile("companion_lamp/server.py", "bb"))

LAMP = FoundPlugin(
    name="lamp",
    group=RUNTIME_GROUP,
    module="companion_lamp",
    distribution="Companion.Runtime_Lamp",
    version="0.1.0",
    root="/site",
    editable=False,
    digest=code_digest(FILES),
    files=FILES,
    modules=modules_of(file.path for file in FILES),
    intact=True,
    first_on_path=True,
)

RELEASE = Release(
    digest=code_digest(FILES), group=RUNTIME_GROUP, entry_points={"lamp": "companion_lamp"}
)
TABLE: FirstParty = {"companion-runtime-lamp": {"0.1.0": RELEASE}}


def judge(*plugins: FoundPlugin, **how: object) -> list[Reason]:
    return list(judge_found(plugins, **{"first_party": TABLE, **how}))


def test_a_known_release_may_be_imported():
    assert judge(LAMP) == [Reason.OK]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"editable": True}, Reason.PLUGIN_EDITABLE),
        ({"module": "keyring"}, Reason.PLUGIN_FOREIGN_MODULE),
        ({"module": "companion_lamp:Plugin"}, Reason.PLUGIN_FOREIGN_MODULE),
        ({"module": ""}, Reason.PLUGIN_FOREIGN_MODULE),
        (
            {
                "module": "a.b",
                "modules": {"a.b": "a/b.py"},
            },  # the top-level folder belongs to no distribution
            Reason.PLUGIN_FOREIGN_MODULE,
        ),
        ({"first_on_path": False}, Reason.PLUGIN_SHADOWED),
        ({"intact": False}, Reason.PLUGIN_CHANGED),
        ({"digest": "00"}, Reason.PLUGIN_CHANGED),
        ({"digest": None}, Reason.PLUGIN_CHANGED),
        ({"version": "0.1.1"}, Reason.PLUGIN_CHANGED),
        ({"group": AUTHORITY_GROUP}, Reason.PLUGIN_CHANGED),
        ({"name": "torch"}, Reason.PLUGIN_CHANGED),
        ({"module": "companion_lamp.server"}, Reason.PLUGIN_CHANGED),
        ({"distribution": "companion-runtime-torch"}, Reason.PLUGIN_UNTRUSTED),
        ({"name": "Lamp\\n"}, Reason.PLUGIN_UNTRUSTED),
    ],
)
def test_every_single_difference_refuses(change: dict[str, object], reason: Reason):
    assert judge(dataclasses.replace(LAMP, **change)) == [reason]


def test_the_same_code_under_another_distribution_is_not_first_party():
    copy = dataclasses.replace(LAMP, name="copy", distribution="lamp-copy")
    assert judge(LAMP, copy) == [Reason.OK, Reason.PLUGIN_UNTRUSTED]


def test_an_empty_table_trusts_nobody():
    assert judge(LAMP, first_party={}) == [Reason.PLUGIN_UNTRUSTED]


def test_two_claims_of_a_name_are_both_refused_across_sides_too():
    rival = dataclasses.replace(LAMP, distribution="rival", group=AUTHORITY_GROUP)
    assert judge(LAMP, rival) == [Reason.PLUGIN_DUPLICATE] * 2


def test_a_name_of_the_core_is_refused_to_any_other_plugin():
    assert judge(LAMP, reserved={"lamp"}) == [Reason.PLUGIN_DUPLICATE]


def test_a_distribution_on_both_sides_loses_both():
    other = dataclasses.replace(
        LAMP, name="vault", group=AUTHORITY_GROUP, distribution="companion-runtime-lamp"
    )
    assert judge(LAMP, other) == [Reason.PLUGIN_BOTH_SIDES] * 2


def test_narrowing_removes_and_never_adds():
    assert judge(LAMP, narrow={"lamp"}) == [Reason.OK]
    assert judge(LAMP, narrow={"other"}) == [Reason.PLUGIN_NARROWED]
    assert judge(LAMP, narrow=set()) == [Reason.PLUGIN_NARROWED]
    assert judge(LAMP, narrow={"lamp"}, first_party={}) == [Reason.PLUGIN_UNTRUSTED]


@pytest.mark.parametrize(
    ("text", "names"),
    [(None, None), ("", set()), (" , ", set()), ("a, b,,a", {"a", "b"})],
)
def test_the_variable_that_narrows(text: str | None, names: set[str] | None):
    assert parse_narrow(text) == names


file_lists = st.lists(
    st.builds(CodeFile, st.text("ab/._", min_size=1), st.text("0f", min_size=1)),
    unique_by=lambda file: file.path,
)


@given(file_lists, st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_files(files: list[CodeFile], random: object):
    shuffled = files[:]
    random.shuffle(shuffled)
    assert code_digest(shuffled) == code_digest(files)


@given(file_lists, file_lists)
def test_the_digest_tells_different_code_apart(one: list[CodeFile], other: list[CodeFile]):
    assert (code_digest(one) == code_digest(other)) == (set(one) == set(other))


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("lamp/__init__.py", "lamp"),
        ("lamp/server.py", "lamp.server"),
        ("lamp/deep/__init__.py", "lamp.deep"),
        ("lamp/fast.cpython-311-x86_64-linux-gnu.so", "lamp.fast"),
        ("lamp.py", "lamp"),
    ],
)
def test_a_file_is_a_module(path: str, module: str):
    assert modules_of([path]) == {module: path}


@pytest.mark.parametrize("path", ["__init__.py", "lamp/py.typed", "a-b/c.py", "lamp.pth", "x.pyc"])
def test_a_file_is_no_module(path: str):
    assert modules_of([path]) == {}


@pytest.mark.parametrize(
    ("path", "cache", "without_source"),
    [
        ("a/__pycache__/b.cpython-311.pyc", True, False),
        ("a/b.pyc", False, True),
        ("__pycache__.pyc", False, True),
        ("a/__pycache__/b.py", False, False),
        ("a/b.pyo", False, True),
    ],
)
def test_byte_code(path: str, cache: bool, without_source: bool):
    assert (is_bytecode_cache(path), sourceless(path)) == (cache, without_source)


def test_the_table_is_read_as_it_is_written():
    text = json.dumps(
        {
            "companion-runtime-lamp": {
                "versions": {
                    "0.1.0": {
                        "digest": RELEASE.digest,
                        "group": RUNTIME_GROUP,
                        "entry_points": {"lamp": "companion_lamp"},
                    }
                }
            }
        }
    )
    assert parse_first_party(text) == TABLE


@pytest.mark.parametrize("read", [json.loads, parse_first_party])
def test_a_broken_table_is_a_fault_and_trusts_nothing(read: Callable[[str], object]):
    with pytest.raises(ValueError):
        read("{")


def test_names_of_distributions_compare_as_indexes_do():
    assert normalized("Companion.Runtime__Lamp") == "companion-runtime-lamp"
