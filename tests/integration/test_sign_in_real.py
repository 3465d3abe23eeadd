"""Real parts: an OpenID provider, a second one, a real browser, a real keyring, the whole path."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from sign_in_browsers import Chromium, ScriptedBrowser
from sign_in_parts import session_of, settings_of

from companion_core.authority.sign_in import (
    AccountSession,
    Client,
    Exchange,
    sign_in_elsewhere,
    sign_in_with_browser,
)
from companion_core.egress.live import LiveEgress
from companion_core.errors import CompanionError, Reason
from companion_core.system.state_files import write_private
from companion_core.testing import FakeKeychain
from companion_core.testing.tls_host import HostRequest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SUPPORT = Path(__file__).parents[1] / "support"
PROVIDER = SUPPORT / "oidc_provider"
NPM_SECONDS = 100
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEVER = threading.Event()


@dataclass
class Provider:
    """A running service: its issuer, and how to sign in there."""

    issuer: str
    context: Any
    folder: Path

    def client(self) -> Client:
        exchange = Exchange(LiveEgress(), self.context)
        return Client(settings_of(self.issuer), exchange)

    def session(self, keychain: FakeKeychain, **options: Any) -> AccountSession:
        return session_of(self.issuer, self.context, self.folder, keychain, **options)

    def counts(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.issuer}/counts", context=self.context) as answer:
            return dict(json.load(answer))


@contextlib.contextmanager
def running(argv: list[str]) -> Iterator[str]:
    """Run a service; the issuer that it tells when it listens."""
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("{"):
                yield json.loads(line)["issuer"]
                return
        raise AssertionError("the service did not start")
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def pem(authority, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("service") / "server.pem"
    write_private(file, authority.server_pem("127.0.0.1"))
    return file


@pytest.fixture(scope="module")
def oidc(pem, context, tmp_path_factory, require_real) -> Iterator[Provider]:
    npm, node = shutil.which("npm"), shutil.which("node")
    require_real("Node.js and npm", npm is not None and node is not None)
    folder = tmp_path_factory.mktemp("oidc")
    shutil.copytree(PROVIDER, folder, dirs_exist_ok=True)
    installed = subprocess.run(
        [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        timeout=NPM_SECONDS,
        check=False,
    )
    require_real("the npm package oidc-provider", installed.returncode == 0)
    with running([str(node), str(folder / "server.mjs"), str(pem)]) as issuer:
        yield Provider(issuer, context, folder)


@pytest.fixture(scope="module")
def authlib(pem, context, tmp_path_factory, require_real) -> Iterator[Provider]:
    for part in ("authlib", "flask"):
        require_real(part, importlib.util.find_spec(part) is not None)
    program = [sys.executable, "-W", "ignore", str(SUPPORT / "authlib_provider.py"), str(pem)]
    with running(program) as issuer:
        yield Provider(issuer, context, tmp_path_factory.mktemp("authlib"))


class Browses(LiveEgress):
    """A doorway whose browser is a function, in a thread of its own."""

    def __init__(self, browse: Callable[[str], Any]) -> None:
        self.browse = browse
        self.ended: Any = None
        self.thread: threading.Thread | None = None

    def open_browser(self, url: str) -> bool:
        def run() -> None:
            self.ended = self.browse(url)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return True


def sign_in(provider: Provider, keychain: FakeKeychain, browse: Callable[[str], Any]) -> Any:
    egress = Browses(browse)
    session = provider.session(keychain)
    granted = asyncio.run(
        sign_in_with_browser(provider.client(), show=None, egress=egress, seconds=100)
    )
    assert egress.thread is not None
    egress.thread.join(60)
    session.store(granted, NEVER)
    return egress.ended


@pytest.fixture(params=["oidc", "authlib"])
def provider(request) -> Provider:
    return request.getfixturevalue(request.param)


def test_a_session_at_a_real_service_begins_is_renewed_and_ends(provider, context) -> None:
    keychain = FakeKeychain()
    status, page = sign_in(provider, keychain, ScriptedBrowser(context).visit)
    assert (status, "goes on in companion" in page) == (200, True)
    session = provider.session(keychain)
    first = session.token(NEVER)
    second = session.token(NEVER, rejected=first)
    third = session.token(NEVER, rejected=second)
    assert len({token.reveal() for token in (first, second, third)}) == 3
    refresh = session._custody.load_session().refresh_token
    assert session.end(NEVER)
    assert keychain.items == {}
    with pytest.raises(CompanionError) as caught:
        session.token(NEVER)
    assert caught.value.reason is Reason.SIGN_IN_REQUIRED
    # The service itself accepts the token no more.
    with pytest.raises(Exception, match=r"^$"):
        provider.client().refresh(refresh, None)


def test_a_refresh_token_that_leaked_ends_the_session(oidc, context) -> None:
    """Somebody else used it first: the service ends the whole family, and so does the client."""
    keychain = FakeKeychain()
    sign_in(oidc, keychain, ScriptedBrowser(context).visit)
    session = oidc.session(keychain)
    stolen = session._custody.load_session()
    oidc.client().refresh(stolen.refresh_token, None)
    with pytest.raises(CompanionError) as caught:
        session.token(NEVER, rejected=stolen.access_token)
    assert caught.value.reason is Reason.SIGN_IN_REQUIRED
    assert keychain.items == {}


def test_a_code_is_of_one_use_and_of_one_verifier(oidc, context) -> None:
    refused_before = oidc.counts()["refused"]
    keychain = FakeKeychain()
    client = oidc.client()
    granted: list[Any] = []
    exchange = client.exchange_code

    def twice(code: Any, **rest: Any) -> Any:
        granted.append(exchange(code, **rest))
        return exchange(code, **rest)

    client.exchange_code = twice  # type: ignore[method-assign]  # a program that replays
    egress = Browses(ScriptedBrowser(context).visit)
    with pytest.raises(CompanionError) as caught:
        asyncio.run(sign_in_with_browser(client, show=None, egress=egress, seconds=60))
    assert caught.value.reason is Reason.INVALID_TOKEN_RESPONSE
    assert "invalid_grant" in caught.value.detail
    assert len(granted) == 1
    assert keychain.items == {}
    assert oidc.counts()["refused"] == refused_before + 1


def test_a_person_allows_it_on_another_device(oidc, context) -> None:
    browsers: list[threading.Thread] = []

    def show(code: Any) -> None:
        browser = ScriptedBrowser(context, user_code=code.user_code)
        browsers.append(
            threading.Thread(target=browser.visit, args=(code.verification_uri,), daemon=True)
        )
        browsers[0].start()

    granted = sign_in_elsewhere(
        oidc.client(), show=show, cancelled=NEVER, wait=lambda _s: NEVER.wait(0.2)
    )
    browsers[0].join(30)
    keychain = FakeKeychain()
    oidc.session(keychain).store(granted, NEVER)
    assert oidc.session(keychain).token(NEVER) == granted.access_token


def test_a_real_browser_clicks_through(oidc, tmp_path, require_real) -> None:
    require_real("Chromium", CHROMIUM is not None)
    keychain = FakeKeychain()

    def click(url: str) -> str:
        with Chromium(str(CHROMIUM), str(tmp_path / "profile")) as browser:
            return browser.click_through(url)

    ended = sign_in(oidc, keychain, click)
    assert ended == "http:/callback"
    assert oidc.session(keychain).state(NEVER).signed_in


# --- the whole path, with a real keyring --------------------------------------------------------


def behind_a_sign_in(host: Any) -> list[str | None]:
    """Let a host give its files only to who shows a bearer token; what was shown to it."""
    plain, seen = host.answer, []

    def answer(request: HostRequest) -> None:
        shown = request.headers.get("Authorization")
        seen.append(shown)
        if shown is not None and shown.startswith("Bearer "):
            plain(request)
            return
        request.send_response(HTTPStatus.UNAUTHORIZED)
        request.send_header("WWW-Authenticate", "Bearer")
        request.send_header("Content-Length", "0")
        request.end_headers()

    host.answer = answer
    return seen


def test_from_the_sign_in_to_an_answer(world, oidc, authority, tmp_path, require_real) -> None:
    """Sign in, manifest, download, verify, start, health, available, an answer; then log out."""
    tools = ("gnome-keyring-daemon", "dbus-run-session")
    require_real("gnome-keyring", all(map(shutil.which, tools)))
    world.publish()
    shown = behind_a_sign_in(world.manifest_host)
    both = world.folder / "both.pem"
    both.write_bytes(world.ca_file.read_bytes() + authority.ca_file.read_bytes())
    world.configure(
        account={"issuer": oidc.issuer, "client_id": "companion"},
        network={"extra_ca_file": str(both)},
        keychain={"name": "linux"},
    )
    steps = ["login --status --json", "up --detach --json", "login --json", "login --status --json"]
    steps += ["up --detach --json", "chat Hello", "logout --json"]
    steps += ["login --status --json", "down"]
    # What people see who give up: one prints the address, one came over ssh, one has no browser.
    given_up = [
        ["GIVE-UP", *world.argv("login", "--print-url")],
        ["GIVE-UP", "env", "SSH_CONNECTION=here", *world.argv("login", "--json")],
        ["GIVE-UP", "env", "PATH=/nowhere", *world.argv("login", "--json")],
    ]
    commands = [*given_up, *(world.argv(*step.split()) for step in steps)]
    told = in_a_session(tmp_path, both, commands)
    printed, on_a_device, told = told[0], told[1:3], told[3:]
    assert printed[0] == 130, printed
    assert f"{oidc.issuer}/auth?response_type=code" in printed[2]
    for status, out, err in on_a_device:
        assert status == 130, err
        assert json.loads(err.splitlines()[0])["url"] == f"{oidc.issuer}/device"
        assert json.loads(out)["reason"] == Reason.INTERRUPTED
    before, refused, login, signed_in, up, chat, logout, after, down = told
    assert before[0] == 4
    assert json.loads(before[1])["reason"] == Reason.SIGN_IN_REQUIRED
    assert (refused[0], json.loads(refused[1])["reason"]) == (4, Reason.SIGN_IN_REQUIRED), refused
    assert "companion login" in refused[2]
    assert login[0] == 0, login
    assert json.loads(login[1])["signed_in"] is True
    assert json.loads(signed_in[1])["refreshable"] is True
    assert up[0] == 0, up
    assert json.loads(up[1])["available"] is True
    assert chat[0] == 0, chat
    assert chat[1].strip()
    assert json.loads(logout[1]) == {"ok": True, "revoked": True}
    assert json.loads(after[1])["signed_in"] is False
    assert down[0] == 0, down
    tokens = {each.removeprefix("Bearer ") for each in shown if each is not None}
    assert len(tokens) == 1
    for _, out, err in told:
        assert not any(token in out + err for token in tokens)


def in_a_session(tmp_path: Path, ca_file: Path, commands: list[list[str]]) -> list[Any]:
    """Run commands on a bus of their own, with a keyring, a display and the person's browser."""
    home, runtime, programs = tmp_path / "home", tmp_path / "run", tmp_path / "bin"
    for folder in (home, runtime, programs):
        folder.mkdir(mode=0o700)
    opener = programs / "xdg-open"
    browser = [sys.executable, str(SUPPORT / "sign_in_browsers.py"), str(ca_file)]
    opener.write_text(f'#!/bin/sh\nexec {" ".join(browser)} "$1"\n')
    opener.chmod(0o700)
    environment = {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(runtime),
        "PATH": f"{programs}:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
        "DISPLAY": ":99",
    }
    program = [sys.executable, str(SUPPORT / "sign_in_keyring.py")]
    done = subprocess.run(
        ["timeout", "200", "dbus-run-session", "--", *program],
        env=environment,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))
