"""What may be suggested, from files as they are found."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click
import pytest

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.cli import cli
from companion_core.cli.suggestions import client_names, instances, model_ids, plugin_names
from companion_core.config.paths import InstancePaths

pytestmark = pytest.mark.unit


def context(state: Path, **params: Any) -> click.Context:
    root = click.Context(cli, info_name="companion")
    root.params = {"state_dir": state, "instance": "default"}
    below = click.Context(click.Command("show"), parent=root)
    below.params = params
    return below


def suggest(which: Any, state: Path, incomplete: str = "", **params: Any) -> list[Any]:
    return list(which(context(state, **params), click.Argument(["name"]), incomplete))


def write_list(path: Path, *ids: str) -> None:
    payload = json.dumps({"models": [{"id": each} for each in ids]}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"payload": base64.b64encode(payload).decode()}))


def test_models_of_every_list_are_suggested(tmp_path: Path) -> None:
    paths = InstancePaths(tmp_path)
    write_list(paths.own_manifest, "mine", "small:Q4")
    write_list(paths.manifests / f"{'0' * 64}.json", "tiny", "mine")
    assert suggest(model_ids, tmp_path) == ["mine", "small:Q4", "tiny"]
    assert suggest(model_ids, tmp_path, "s") == ["small:Q4"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"payload": 7}',
        '{"payload": "!"}',
        '{"payload": "W10="}',
        '{"payload": "eyJtb2RlbHMiOiBbN119"}',
    ],
)
def test_a_damaged_list_suggests_nothing(tmp_path: Path, text: str) -> None:
    paths = InstancePaths(tmp_path)
    write_list(paths.own_manifest, "mine")
    paths.manifests.mkdir()
    (paths.manifests / "other.json").write_text(text)
    assert suggest(model_ids, tmp_path) == ["mine"]


def test_an_id_that_could_steer_a_shell_is_left_out(tmp_path: Path) -> None:
    write_list(InstancePaths(tmp_path).own_manifest, "$(touch x)", "a b", "fine", "a\nb")
    assert suggest(model_ids, tmp_path) == ["fine"]


def test_names_of_keys_and_never_a_key(tmp_path: Path) -> None:
    paths = InstancePaths(tmp_path, "second")
    keys = ClientKeyFile(paths.client_keys, clock=lambda: 0.0)
    keys.add("editor", models=None, requests_per_minute=None, delegate=False)
    assert suggest(client_names, tmp_path) == []
    assert suggest(client_names, tmp_path, instance="second") == ["editor"]


def test_plugins_and_instances(tmp_path: Path) -> None:
    assert {"linux", "llamacpp"} <= set(suggest(plugin_names, tmp_path))
    assert suggest(instances, tmp_path) == []
    (tmp_path / "instances" / "second").mkdir(parents=True)
    assert suggest(instances, tmp_path) == ["second"]
