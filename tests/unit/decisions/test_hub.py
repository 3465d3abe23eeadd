"""Which files of a repository are a model, whatever a stranger called them."""

from __future__ import annotations

from typing import Any

import pytest

from companion_core.decisions.hub import (
    HubName,
    HubRepository,
    choose_files,
    parse_hub_name,
    parse_repository,
    quantisation_of,
)

pytestmark = pytest.mark.unit

COMMIT = "c" * 40
DIGEST = "d" * 64


def sibling(path: str, size: int = 100, sha256: Any = DIGEST) -> dict[str, Any]:
    return {"rfilename": path, "size": size, "lfs": {"sha256": sha256, "size": size}}


def document(*paths: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "id": "acme/tiny-GGUF",
        "sha": COMMIT,
        "cardData": {"license": "apache-2.0"},
        "siblings": [sibling(path) for path in paths],
    }
    return {**whole, **changes}


def repository(*paths: str) -> HubRepository:
    found = parse_repository(document(*paths))
    assert found is not None
    return found


QUANTS = ("t-Q8_0.gguf", "t-Q4_K_M.gguf", "UD/t-UD-Q2_K_XL.gguf")


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("hf:acme/tiny-GGUF", "acme/tiny-GGUF", None),
        ("hf:acme/tiny-GGUF:Q4_K_M", "acme/tiny-GGUF", "Q4_K_M"),
        ("hf:a/b.c_d:q8_0", "a/b.c_d", "q8_0"),
    ],
)
def test_a_name_is_read(text: str, name: str, tag: str | None) -> None:
    assert parse_hub_name(text) == HubName(repository=name, tag=tag)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "hf:",
            "acme/tiny",
            "hf:acme",
            "hf:acme/",
            "hf:/tiny",
            "hf:a/b/c",
            "hf:a/b:",
            "hf:a b/c",
        ),
        *(
            "hf:../b",
            "hf:a/..",
            "hf:a/b..c",
            "hf:a/b%2f",
            "hf:-a/b",
            "hf:a/b?x",
            "hf:a/b\n",
            "HF:a/b",
        ),
        *("hf:a/b:c/d", "hf:é/b", 5, None, b"hf:a/b"),
    ],
)
def test_anything_else_is_no_name(text: Any) -> None:
    assert parse_hub_name(text) is None


# --- the repository -------------------------------------------------------------------------


def test_a_repository_is_read() -> None:
    found = repository(*QUANTS)
    assert (found.id, found.commit, found.licence) == ("acme/tiny-GGUF", COMMIT, "apache-2.0")
    assert [(file.path, file.size, file.sha256) for file in found.files] == [
        (path, 100, DIGEST) for path in QUANTS
    ]


@pytest.mark.parametrize(
    "changes",
    [
        *({"id": name} for name in ("", "../x", "a", 5, None, "a/b:c")),
        *({"sha": commit} for commit in ("", "main", "C" * 40, None, COMMIT + "0")),
        *({"siblings": files} for files in (None, {}, "x")),
    ],
)
def test_an_answer_that_is_no_repository(changes: dict[str, Any]) -> None:
    assert parse_repository(document(*QUANTS, **changes)) is None


@pytest.mark.parametrize("answer", [None, [], "x", 5, {}])
def test_an_answer_that_is_something_else(answer: Any) -> None:
    assert parse_repository(answer) is None


@pytest.mark.parametrize(
    "path",
    [
        *("../x.gguf", "a/../x.gguf", "/x.gguf", "./x.gguf", ".x.gguf", "a//x.gguf", "a\\x.gguf"),
        *("x\n.gguf", "C:x.gguf", "x.bin", "x.gguf/", "é.gguf", "x" * 600 + ".gguf", ""),
    ],
)
def test_a_file_of_another_name_is_left_out(path: str) -> None:
    assert repository(path, "x.gguf").files == repository("x.gguf").files


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "x.gguf",
        {"rfilename": "y.gguf", "size": 5},
        {"rfilename": "y.gguf", "lfs": None},
        sibling("y.gguf", 0),
        sibling("y.gguf", -1),
        sibling("y.gguf", 2**60),
        sibling("y.gguf", sha256="D" * 64),
        sibling("y.gguf", sha256=None),
    ],
)
def test_a_file_without_a_stated_digest_is_left_out(entry: Any) -> None:
    found = parse_repository(document(siblings=[entry, sibling("x.gguf")]))
    assert found is not None
    assert [file.path for file in found.files] == ["x.gguf"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": ["mit", "other"]}, "mit"),
        ({"license": 5}, None),
        ({"license": "a\nb"}, None),
        ({}, None),
        (None, None),
        ({"license": []}, None),
    ],
)
def test_a_licence_may_be_missing(card: Any, licence: str | None) -> None:
    found = parse_repository(document(cardData=card))
    assert found is not None
    assert found.licence == licence


# --- the choice -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "quantisation"),
    [
        ("NAME-Q4_K_M.gguf", "Q4_K_M"),
        ("name.q8_0.gguf", "Q8_0"),
        ("UD-Q2_K_XL/name-UD-Q2_K_XL-00001-of-00003.gguf", "UD-Q2_K_XL"),
        ("x-IQ4_XS.gguf", "IQ4_XS"),
        ("x-BF16.gguf", "BF16"),
        ("x-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("x.gguf", None),
        (None, None),
    ],
)
def test_a_path_names_its_quantisation(path: Any, quantisation: str | None) -> None:
    assert quantisation_of(path) == quantisation


@pytest.mark.parametrize(
    ("tag", "chosen"),
    [(None, "t-Q4_K_M.gguf"), ("q8_0", "t-Q8_0.gguf"), ("UD-Q2_K_XL", "UD/t-UD-Q2_K_XL.gguf")],
)
def test_the_quantisation_chooses(tag: str | None, chosen: str) -> None:
    choice = choose_files(repository(*QUANTS), tag=tag)
    assert [file.path for file in choice.files] == [chosen]
    assert choice.offered == ("Q8_0", "Q4_K_M", "UD-Q2_K_XL")


@pytest.mark.parametrize("tag", ["Q5_K_M", "Q4_K", "K_M", ".*", ""])
def test_a_quantisation_that_is_not_there_shows_what_is(tag: str) -> None:
    choice = choose_files(repository(*QUANTS), tag=tag)
    assert choice.files == ()
    assert choice.offered == ("Q8_0", "Q4_K_M", "UD-Q2_K_XL")


def test_the_only_model_needs_no_quantisation() -> None:
    assert [file.path for file in choose_files(repository("x.gguf")).files] == ["x.gguf"]
    assert choose_files(repository("x-Q8_0.gguf", "x-Q6_K.gguf")).files == ()


def test_a_file_may_be_named() -> None:
    for file in ("t-Q8_0.gguf", "UD/t-UD-Q2_K_XL.gguf", "t-UD-Q2_K_XL.gguf"):
        [chosen] = choose_files(repository(*QUANTS), tag="Q4_K_M", file=file).files
        assert file in {chosen.path, chosen.name}
    assert choose_files(repository(*QUANTS), file="other.gguf").files == ()


PARTS = tuple(f"F/t-F16-0000{number}-of-00003.gguf" for number in (2, 1, 3))


def test_all_parts_of_a_split_model_are_taken_in_order() -> None:
    choice = choose_files(repository(*PARTS, *QUANTS), tag="F16")
    assert [file.path for file in choice.files] == sorted(PARTS)


def test_a_split_model_without_a_part_is_none() -> None:
    assert choose_files(repository(*PARTS[:2]), tag="F16").files == ()


def test_a_split_of_absurdly_many_parts_is_none() -> None:
    assert choose_files(repository("t-F16-00001-of-99999.gguf"), tag="F16").files == ()
    assert choose_files(repository("t-F16-00001-of-00000.gguf"), tag="F16").files == ()


def test_the_nearest_projector_comes_along() -> None:
    others = ("mmproj-F32.gguf", "UD/mmproj-BF16.gguf", "mmproj-t-F16.gguf")
    assert choose_files(repository(*QUANTS)).projector is None
    taken = choose_files(repository(*QUANTS, *others)).projector
    assert taken is not None
    assert taken.path == "mmproj-t-F16.gguf"
    nested = choose_files(repository(*QUANTS, *others), tag="UD-Q2_K_XL").projector
    assert nested is not None
    assert nested.path == "UD/mmproj-BF16.gguf"


@pytest.mark.parametrize(
    "other", ["t-imatrix-Q4_K_M.gguf", "mtp-t-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf"]
)
def test_what_lies_beside_a_model_is_no_model(other: str) -> None:
    choice = choose_files(repository(other, "t-Q4_K_M.gguf"))
    assert [file.path for file in choice.files] == ["t-Q4_K_M.gguf"]


def test_without_a_repository_nothing_is_chosen() -> None:
    assert choose_files(None).files == ()
