"""`companion login` and `logout` where nobody can sign in, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from companion_core.cli import main
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason

pytestmark = pytest.mark.integration

ACCOUNT = """
[account]
issuer = "https://login.example"
client_id = "companion"
[keychain]
name = "memory"
"""


def told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, *arguments: str
) -> tuple[int, str, str]:
    file = tmp_path / "companion.toml"
    file.write_text(text)
    file.chmod(0o600)
    argv = ["--config", str(file), "--state-dir", str(tmp_path / "state"), *arguments]
    status = main(argv, egress=RefusingEgress())
    out, err = capfd.readouterr()
    return status, out, err


@pytest.mark.parametrize("command", ["login", "logout"])
def test_without_an_account_the_lines_to_write_are_said(tmp_path, capfd, command) -> None:
    status, out, err = told(tmp_path, capfd, "", command, "--json")
    assert status == 2
    assert json.loads(out)["reason"] == Reason.CONFIGURATION_INVALID
    assert "[account]" in err
    assert "client_id" in err


def test_a_keychain_that_keeps_nothing_is_refused_before_the_browser(tmp_path, capfd) -> None:
    status, out, err = told(tmp_path, capfd, ACCOUNT, "login", "--json")
    assert status == 4
    assert json.loads(out)["reason"] == Reason.KEYCHAIN_ABSENT
    assert "memory" in err


def test_the_status_says_that_nobody_is_signed_in(tmp_path, capfd) -> None:
    status, out, _ = told(tmp_path, capfd, ACCOUNT, "login", "--status", "--json")
    assert status == 4
    document = json.loads(out)
    assert document["signed_in"] is False
    assert document["reason"] == Reason.SIGN_IN_REQUIRED
    assert "companion login" in document["advice"]
    status, out, _ = told(tmp_path, capfd, ACCOUNT, "login", "--status")
    assert (status, out) == (4, "not signed in at https://login.example\n")


def test_a_logout_without_a_session_is_no_error(tmp_path, capfd) -> None:
    status, out, _ = told(tmp_path, capfd, ACCOUNT, "logout", "--json")
    assert status == 0
    assert json.loads(out) == {"ok": True, "revoked": False}
    assert told(tmp_path, capfd, ACCOUNT, "logout")[1] == "nobody was signed in\n"


def test_two_wishes_at_once_are_refused(tmp_path, capfd) -> None:
    assert told(tmp_path, capfd, ACCOUNT, "login", "--status", "--print-url")[0] == 2


@pytest.mark.parametrize(
    "line",
    [
        'issuer = "http://login.example"',
        'issuer = "https://login.example/?x=1"',
        "issuer = 7",
        'client_id = ""',
        "scopes = []",
        'scopes = ["a b"]',
        'redirect_path = "callback"',
        'redirect_path = "/../callback"',
        'redirect_path = "/call?back"',
        'client_secret = "x"',
    ],
)
def test_a_malformed_account_is_refused(tmp_path, capfd, line) -> None:
    key = line.partition(" ")[0]
    kept = [each for each in ACCOUNT.splitlines() if not each.startswith(key)]
    at = kept.index("[account]") + 1
    text = "\n".join([*kept[:at], line, *kept[at:]])
    status, _, err = told(tmp_path, capfd, text, "login", "--status")
    assert status == 2
    assert key in err
