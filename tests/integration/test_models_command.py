"""`companion models` with a real llama.cpp: a person's own model beside a publisher's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from swap_world import Client

from companion_core.errors import Reason

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class Person:
    """A person without a keychain, who has a GGUF file and no publisher."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.file = world.folder / "My Model.gguf"
        self.file.write_bytes(world.content)
        world.config_file.write_text(
            "[runtime]\nthreads = 1\n[keychain]\nname = 'memory'\n"
            f"[models]\nkey_file = '{world.folder / 'keys' / 'own.pem'}'\n"
        )

    def ask(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.world.companion("models", *arguments, "--json")
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
        return answer


@pytest.fixture
def me(world: Any) -> Person:
    return Person(world)


def test_a_file_of_ones_own_is_added_and_served_without_any_publisher(me: Person) -> None:
    assert me.ask("list") == {"models": []}
    added = me.ask("add", str(me.file))
    assert (added["id"], added["vouched_by"], added["new"]) == ("My-Model", "you", True)
    [row] = me.ask("list")["models"]
    assert (row["state"], row["stored"], row["default"]) == ("unloaded", True, True)
    assert row["context_length"] > 0

    up = me.world.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    status = json.loads(up.stdout)
    assert status["model"] == {
        "id": "My-Model",
        "verified": True,
        "vouched_by": "you",
        "held": "lease",
    }
    assert status["manifest"]["source"] == "own"
    assert Client(me.world).chat("My-Model") == "ok"
    assert me.ask("list")["models"][0]["state"] == "ready"
    assert me.ask("remove", "My-Model", code=4)["reason"] == Reason.MODEL_IN_USE
    assert me.ask("prune", code=4)["reason"] == Reason.MODEL_IN_USE
    assert me.world.companion("down").returncode == 0
    assert me.file.read_bytes() == me.world.content


def test_what_was_added_is_shown_proved_and_removed(me: Person) -> None:
    me.ask("add", str(me.file), "--id", "mine")
    shown = me.ask("show", "mine")
    assert shown["origin"] == str(me.file)
    assert [file["role"] for file in shown["files"]] == ["model"]
    assert me.ask("verify", "mine")["models"] == [{"id": "mine", "reason": "ok"}]
    assert me.ask("verify")["renewed"] is True
    assert me.ask("remove", "mine")["freed"] == len(me.world.content)
    assert me.ask("list") == {"models": []}
    assert me.world.stored_models() == []


def test_other_bytes_of_the_same_name_have_to_be_removed_first(me: Person) -> None:
    me.ask("add", str(me.file))
    me.file.unlink()  # the store has the only name of the bytes that were recorded
    me.file.write_bytes(me.world.content + bytes(32))
    refused = me.ask("add", str(me.file), code=3)
    assert refused["reason"] == Reason.DIGEST_MISMATCH
    me.ask("remove", "My-Model")
    assert me.ask("add", str(me.file))["size"] == len(me.world.content) + 32


@pytest.mark.parametrize("change", ["in the store", "in the original"])
def test_changed_bytes_are_never_served_or_signed_again(me: Person, change: str) -> None:
    me.ask("add", str(me.file))
    [stored] = me.world.stored_models()
    target = stored if change == "in the store" else me.file
    target.chmod(0o600)
    target.write_bytes(me.world.content[:-1] + b"\0")
    proved = me.world.companion("models", "verify", "--json")
    if change == "in the original" and proved.returncode == 0:
        return  # this file system made a copy, which shares nothing with it
    assert proved.returncode == 3
    assert json.loads(proved.stdout.splitlines()[0])["renewed"] is False
    up = me.world.companion("up", "--detach", "--json")
    assert json.loads(up.stdout.splitlines()[-1])["reason"] == Reason.DIGEST_MISMATCH
    assert "companion models remove" in up.stderr
    me.ask("remove", "My-Model")
    me.file.unlink()
    me.file.write_bytes(me.world.content)
    me.ask("add", str(me.file))
    assert me.world.companion("up", "--detach").returncode == 0


def test_two_models_need_a_default(me: Person) -> None:
    me.ask("add", str(me.file), "--id", "one")
    me.ask("add", str(me.file), "--id", "two")
    none = me.world.companion("up", "--detach")
    assert none.returncode == 2
    assert "companion models" in none.stderr
    me.ask("default", "two")
    assert [row["default"] for row in me.ask("list")["models"]] == [False, True]
    me.ask("remove", "one")
    assert len(me.world.stored_models()) == 1  # the other one needs the same bytes


def test_an_id_that_the_publisher_takes_later_is_refused_by_name(me: Person) -> None:
    me.ask("add", str(me.file), "--id", "tiny")
    me.world.publish()
    me.world.configure(models={"key_file": str(me.world.folder / "keys" / "own.pem")})
    assert me.ask("add", str(me.file), "--id", "tiny", code=3)["reason"] == Reason.MODEL_ID_TAKEN
    assert {row["vouched_by"] for row in me.ask("list")["models"]} == {"you", "publisher"}
    up = me.world.companion("up", "--detach", "--json")
    assert json.loads(up.stdout.splitlines()[-1])["reason"] == Reason.MODEL_ID_TAKEN
    me.ask("remove", "tiny")
    assert me.world.companion("up", "--detach").returncode == 0


@pytest.mark.parametrize(
    ("content", "says"), [(b"PK\3\4 a zip file", "no GGUF"), (None, "is no file"), (b"", "no GGUF")]
)
def test_what_is_no_model_is_refused_in_words(
    me: Person, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    done = me.world.companion("models", "add", str(path))
    assert done.returncode in {2, 3}
    assert says in done.stderr
    assert me.world.stored_models() == []


def test_without_a_place_for_the_key_the_way_on_is_told(me: Person) -> None:
    me.world.config_file.write_text("[keychain]\nname = 'memory'\n")
    done = me.world.companion("models", "add", str(me.file))
    assert done.returncode == 4
    assert "models.key_file" in done.stderr
    assert me.ask("list") == {"models": []}
