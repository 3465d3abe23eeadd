"""Where a person's token for a hub is found, when they ask for it to be sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from companion_core.authority.hub_token import find_hub_token
from companion_core.errors import UsageError

pytestmark = pytest.mark.unit


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    named = {"HF_HOME": str(tmp_path)}
    assert find_hub_token(named).reveal() == "hf_file"
    assert find_hub_token({**named, "HUGGING_FACE_HUB_TOKEN": "hf_b"}).reveal() == "hf_b"
    both = {**named, "HUGGING_FACE_HUB_TOKEN": "hf_b", "HF_TOKEN": " hf_a\n"}
    assert find_hub_token(both).reveal() == "hf_a"


def test_the_file_lies_where_the_hubs_own_client_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, environment in (
        (".cache/huggingface/token", {}),
        ("cache/huggingface/token", {"XDG_CACHE_HOME": str(tmp_path / "cache")}),
        ("mine", {"HF_TOKEN_PATH": str(tmp_path / "mine")}),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"hf_{path.name}")
        assert find_hub_token(environment).reveal() == f"hf_{path.name}"


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "line\r\nX-Other: 1", "ü"])
def test_what_is_missing_or_cannot_be_a_token_is_refused_without_being_shown(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        find_hub_token({"HF_HOME": str(tmp_path)})
    assert "X-Other" not in raised.value.detail
