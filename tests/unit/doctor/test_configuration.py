"""The effective configuration: every key with its origin, and no secret."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from doctor_parts import PUBLIC_KEY, make_situation

from companion_core.config.sections import SECTIONS
from companion_core.doctor import configuration
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.errors import Reason, UsageError

pytestmark = pytest.mark.unit

FILE = f"""
manifest.url = "https://models.example.org/manifest.json?token=planted-secret"
manifest.trusted_keys = ["{PUBLIC_KEY}"]
[model]
id = "tiny"
[runtime]
binary = "/usr/bin/llama-server"
binary_sha256 = "{"ab" * 32}"
options = {{ flash_attention = true, api_key = "planted-secret" }}
[gateway]
port = 4711
"""


def look(tmp_path, text=FILE, **changes):
    if text is not None:
        (tmp_path / "companion.toml").write_text(text)
        (tmp_path / "companion.toml").chmod(0o600)
    situation = make_situation(tmp_path, **changes)
    return {row.id: row for row in run_checks(configuration.checks(), situation)}


def test_every_key_of_every_section_has_a_row_with_its_origin(tmp_path):
    rows = look(tmp_path)
    for section, table in SECTIONS.items():
        for key in dataclasses.fields(table):
            row = rows[f"config.{section}.{key.name}"]
            assert row.status is Status.OK
            assert row.finding.value
            assert row.finding.source in {"file", "default"}
    sources = {id_: row.finding.source for id_, row in rows.items()}
    assert sources["config.gateway.port"] == sources["config.manifest.url"] == "file"
    assert sources["config.gateway.queue_bound"] == "default"
    assert rows["config.gateway.port"].finding.value == "4711"
    assert rows["config.runtime.name"].finding.value == "the single trusted one"


def test_no_secret_and_no_digest_is_in_it(tmp_path):
    rows = look(tmp_path)
    text = json.dumps([row.document() for row in rows.values()])
    for secret in ("planted-secret", "abab", PUBLIC_KEY):
        assert secret not in text
    assert rows["config.manifest.url"].finding.value == '"https://models.example.org/manifest.json"'
    assert "flash_attention" in rows["config.runtime.options"].finding.value


def test_the_open_backend_is_red(tmp_path):
    text = FILE.replace("[runtime]", "[runtime]\nunsafe_open_backend = true")
    row = look(tmp_path, text)[configuration.OPEN_BACKEND]
    assert (row.status, row.reason) == (Status.FAIL, Reason.BACKEND_OPEN)
    assert row.finding.fix
    assert look(tmp_path)[configuration.OPEN_BACKEND].status is Status.OK


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (FILE.replace("port", "prot"), "did you mean port"),
        ("[", "companion.toml"),
        ("\0", "companion.toml"),
        ("[manifest]\ntrusted_keys = []\n", "manifest.trusted_keys must be"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_a_row_and_the_values_are_skipped(
    tmp_path, text, detail
):
    rows = look(tmp_path, text)
    assert rows["configuration"].reason is Reason.CONFIGURATION_INVALID
    assert detail in rows["configuration"].finding.detail
    values = [row for id_, row in rows.items() if id_.startswith("config.")]
    assert len(values) == sum(len(dataclasses.fields(table)) for table in SECTIONS.values())
    assert {row.status for row in values} == {Status.SKIP}
    assert rows["option.instance"].status is Status.OK


def test_a_file_that_the_person_named_has_to_be_there(tmp_path):
    rows = look(tmp_path, None, origins={"config_file": "option"})
    assert rows["configuration"].reason is Reason.CONFIGURATION_INVALID
    assert "there is no such file" in rows["configuration"].finding.detail


def test_without_a_file_every_default_holds(tmp_path):
    rows = look(tmp_path, None)
    assert rows["configuration"].status is Status.OK
    assert rows["config.manifest.url"].finding.value == "none"
    assert rows["config.gateway.max_in_flight"].finding.source == "default"


def test_options_outside_the_file_have_a_row_with_their_origin(tmp_path):
    rows = look(
        tmp_path,
        origins={"state_dir": "environment", "config_file": "option"},
        environ={"COMPANION_PLUGINS": "linux"},
    )
    found = {
        id_.removeprefix("option."): (row.finding.value, row.finding.source)
        for id_, row in rows.items()
        if id_.startswith("option.")
    }
    assert found == {
        "config-file": (str(tmp_path / "companion.toml"), "option"),
        "state-dir": (str(tmp_path / "state"), "environment"),
        "instance": ("default", "default"),
        "plugins-allowed": ('"linux"', "environment"),
    }


def test_a_person_without_a_home_is_told_and_the_rest_goes_on(tmp_path):
    def nowhere():
        raise UsageError(Reason.USAGE, "there is no home folder; use --config")

    rows = look(tmp_path, config_file=nowhere)
    assert rows["configuration"].reason is Reason.USAGE
    assert rows["option.config-file"].status is Status.SKIP
    assert rows["option.instance"].status is Status.OK


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_in_the_files_place_is_a_row(tmp_path):
    os.mkfifo(tmp_path / "companion.toml", 0o600)
    assert look(tmp_path, None)["configuration"].reason is Reason.CONFIGURATION_INVALID
