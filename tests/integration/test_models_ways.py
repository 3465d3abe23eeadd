"""`companion models` where something is wrong or in the way: each refusal leads on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from companion_core.errors import Reason

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class Person:
    """A person without a keychain, whose key lies in a file."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.file = world.folder / "model.gguf"
        self.file.write_bytes(world.content)
        self.key = world.folder / "keys" / "own.pem"
        self.configure()

    def configure(self, more: str = "") -> None:
        self.world.config_file.write_text(
            "[runtime]\nthreads = 1\n[keychain]\nname = 'memory'\n"
            f"[models]\nkey_file = '{self.key}'\n{more}"
        )

    def models(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self.world.companion("models", *arguments)
        return done

    def ask(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.models(*arguments, "--json")
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)  # one document, also of a refusal
        return answer


@pytest.fixture
def me(world: Any) -> Person:
    return Person(world)


def test_what_adding_proves_is_said_with_the_day_and_the_memory(me: Person) -> None:
    done = me.models("add", str(me.file))
    assert done.returncode == 0, done.stderr
    assert "these are the bytes you recorded on 20" in done.stdout
    assert "nothing about who made them" in done.stdout
    assert "GB may be used" in done.stdout
    added = me.ask("add", str(me.file))
    assert added["new"] is False
    assert added["fit"]["fits"] is True
    assert added["fit"]["needed_bytes"] <= added["fit"]["available_bytes"]


def test_a_model_that_does_not_fit_is_told_with_both_numbers_before_it_is_copied(
    me: Person,
) -> None:
    me.configure("[limits]\nmax_ram_bytes = 1_000_000\n")
    done = me.models("add", str(me.file))
    assert done.returncode == 4
    assert "model does not fit: it needs about 0.1 GB" in done.stderr
    assert "0.0 GB may be used" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"companion: {Reason.MEMORY_SHORT}: ")
    assert me.world.stored_models() == []
    assert me.models("add", str(me.file), "--yes").returncode == 0


def test_a_refused_model_leaves_no_bytes(me: Person) -> None:
    me.ask("add", str(me.file))
    other = me.world.folder / "elsewhere" / "model.gguf"
    other.parent.mkdir()
    other.write_bytes(me.world.content + bytes(32))
    refused = me.models("add", str(other))
    assert refused.returncode == 3
    assert "companion models remove model" in refused.stderr
    assert "--id" in refused.stderr
    assert len(me.world.stored_models()) == 1


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("http://models.example.org/x.gguf", 3, "http:// is not used"),
        ("https://127.0.0.1:1/x.gguf", 4, "127.0.0.1 refuses the connection"),
        ("https://", 3, "https://"),
        ("hf:owner", 2, "is not of the form hf:OWNER/REPO[:QUANT]"),
        ("{folder}", 2, "is a folder; name a GGUF file; in it: model.gguf"),
        ("{folder}/none.gguf", 2, "is no file on this machine"),
        ("{folder}/companion.toml", 3, "is no GGUF file"),
    ],
)
def test_each_kind_of_source_is_answered_plainly(
    me: Person, source: str, code: int, says: str
) -> None:
    done = me.models("add", source.format(folder=me.world.folder))
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_belongs_to_a_repository_is_refused_for_a_file(me: Person) -> None:
    done = me.models("add", str(me.file), "--revision", "main")
    assert done.returncode == 2
    assert "--revision is for a repository" in done.stderr


def test_a_part_of_a_model_names_the_parts_that_are_missing(me: Person) -> None:
    part = me.file.with_name("big-00002-of-00007.gguf")
    part.write_bytes(me.world.content)
    done = me.models("add", str(part))
    assert done.returncode == 3
    assert "one part of 7; missing: big-00001-of-00007.gguf, " in done.stderr
    assert "and 3 more" in done.stderr


def test_a_model_of_another_instance_is_in_use_too(me: Person) -> None:
    me.ask("add", str(me.file))
    up = me.world.companion("up", "--detach", "--instance", "second")
    assert up.returncode == 0, up.stderr
    try:
        assert me.ask("list")["models"][0]["state"] == "ready"
        done = me.models("remove", "model")
        assert done.returncode == 4
        assert "companion down --instance second" in done.stderr
        assert me.ask("prune", code=4)["reason"] == Reason.MODEL_IN_USE
    finally:
        assert me.world.companion("down", "--instance", "second").returncode == 0
    assert me.ask("remove", "model")["freed"] == len(me.world.content)


def test_verify_answers_one_document_also_where_bytes_have_changed(me: Person) -> None:
    me.ask("add", str(me.file))
    [stored] = me.world.stored_models()
    stored.chmod(0o600)
    stored.write_bytes(me.world.content[:-1] + b"\0")
    answer = me.ask("verify", code=3)
    assert answer["ok"] is False
    assert answer["reason"] == Reason.DIGEST_MISMATCH
    [row] = answer["models"]
    assert row["reason"] == Reason.DIGEST_MISMATCH
    assert "piece 1 of 1, from byte 0 on" in row["detail"]
    told = me.models("verify").stderr
    assert "piece 1 of 1, from byte 0 on; changed since you recorded it; " in told
    assert "companion models remove model" in told


def test_verify_leads_back_to_the_bytes_of_a_publisher(me: Person) -> None:
    me.world.publish()
    me.world.configure()
    me.ask("pull", "tiny")
    [stored] = me.world.stored_models()
    stored.chmod(0o600)
    stored.write_bytes(me.world.content[:-1] + b"\0")
    told = me.models("verify", "tiny")
    assert told.returncode == 3
    assert "companion models pull tiny fetches what is wrong" in told.stderr
    assert me.models("pull", "tiny").returncode == 0
    assert me.models("verify", "tiny").returncode == 0


def test_a_list_whose_key_is_lost_can_be_left_behind(me: Person) -> None:
    me.ask("add", str(me.file), "--id", "one")
    me.ask("add", str(me.file), "--id", "two")
    me.key.unlink()
    assert me.ask("list", code=4)["reason"] == Reason.PERSONAL_KEY_MISSING
    told = me.models("remove", "one")
    assert told.returncode == 4
    assert "the list goes as a whole: one, two; --yes removes it" in told.stderr
    assert me.ask("remove", "none-of-them", "--yes", code=4)["ok"] is False
    assert me.ask("remove", "one", "--yes")["removed"] == ["one", "two"]
    assert me.world.stored_models() == []
    assert me.ask("add", str(me.file))["new"] is True
    assert me.world.companion("up", "--detach").returncode == 0


def test_pull_fetches_a_publishers_model_and_serves_nothing(me: Person) -> None:
    me.world.publish()
    me.world.configure()
    assert me.ask("list")["models"][0]["state"] == "absent"
    assert me.ask("pull", "tiny") == {"id": "tiny", "size": len(me.world.content), "new": True}
    assert me.ask("list")["models"][0]["state"] == "unloaded"
    assert me.ask("pull", "tiny")["new"] is False
    assert me.world.companion("status").returncode == 5
    assert me.ask("pull", "other", code=3)["reason"] == Reason.MODEL_NOT_IN_MANIFEST


def test_a_default_that_the_configuration_overrides_is_told(me: Person) -> None:
    me.ask("add", str(me.file))
    me.configure("[model]\nid = 'another'\n")
    done = me.models("default", "model")
    assert done.returncode == 0
    assert "names another, which counts before this default" in done.stderr


def test_a_projector_is_no_model_and_a_model_no_projector(me: Person, tmp_path: Path) -> None:
    done = me.models("add", str(me.file), "--projector", str(me.file))
    assert done.returncode == 3
    assert "is a model, and no projector" in done.stderr
