"""Which model is served where none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.serving.default_model import (
    default_model,
    set_default_model,
    with_default_model,
)
from companion_core.testing.publisher import FakePublisher, manifest_document

pytestmark = pytest.mark.unit


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    return InstancePaths(tmp_path / "state")


def record(paths: InstancePaths, *ids: str) -> None:
    """Write a list that names these models; it need not be signed to be chosen from."""
    document = manifest_document("https://a.example/x/y.gguf", b"x")
    document["models"] = [{**document["models"][0], "id": name} for name in ids]
    paths.own_manifest.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    paths.own_manifest.write_bytes(FakePublisher().envelope(document))
    paths.own_manifest.chmod(0o600)


def test_without_a_model_there_is_no_default(paths: InstancePaths) -> None:
    assert default_model(paths) is None
    config = with_default_model(parse_config({}), paths)
    with pytest.raises(UsageError) as caught:
        _ = config.model_id
    assert caught.value.reason is Reason.CONFIGURATION_INVALID
    for line in ("companion models add", "[manifest]", "[model]", "trusted_keys"):
        assert line in caught.value.detail


def test_the_only_model_is_the_default(paths: InstancePaths) -> None:
    record(paths, "mine")
    assert with_default_model(parse_config({}), paths).model_id == "mine"
    record(paths, "mine", "another")
    assert default_model(paths) is None


def test_the_person_chooses_the_default(paths: InstancePaths) -> None:
    record(paths, "mine", "another")
    set_default_model(paths, "another")
    assert default_model(paths) == "another"
    set_default_model(paths, None)
    assert default_model(paths) is None


def test_what_is_configured_wins(paths: InstancePaths) -> None:
    set_default_model(paths, "another")
    config = parse_config({"model": {"id": "configured"}})
    assert with_default_model(config, paths).model_id == "configured"


@pytest.mark.parametrize("text", ["", "no id", "../x y", "\xff"])
def test_a_damaged_choice_is_no_choice(paths: InstancePaths, text: str) -> None:
    set_default_model(paths, "x")
    paths.default_model.write_text(text, encoding="latin-1")
    assert default_model(paths) is None


def test_a_choice_that_is_longer_than_any_of_ours_is_refused(paths: InstancePaths) -> None:
    set_default_model(paths, "x")
    paths.default_model.write_text("x" * 300)
    with pytest.raises(CompanionError) as caught:
        default_model(paths)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", json.dumps({"payload": "AAAA"}).encode()])
def test_a_damaged_list_has_no_default(paths: InstancePaths, raw: bytes) -> None:
    record(paths, "mine")
    paths.own_manifest.write_bytes(raw)
    assert default_model(paths) is None
