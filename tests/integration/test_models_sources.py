"""`companion models add` of an https address and of a hub's repository, and `run` of both."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.errors import Reason
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour
from companion_core.testing.model_hub import HUB_TOKEN, HubMisbehaviour, ModelHub

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NAME = "acme/tiny-GGUF"
QUANT = "tiny-Q4_K_M.gguf"
PATH = "/models/small.gguf"
CLIENTS = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "python"


class Person:
    """A person without a keychain, a model host, and a hub."""

    def __init__(self, world: Any, hub: ModelHub) -> None:
        self.world = world
        self.hub = hub
        self.host = world.model_host
        self.host.content = {PATH: world.content}
        self.configure()

    def configure(self, more: str = "") -> None:
        self.world.config_file.write_text(
            "[runtime]\nthreads = 1\n[keychain]\nname = 'memory'\n"
            f"[models]\nkey_file = '{self.world.folder / 'own.pem'}'\n"
            f"[network]\nextra_ca_file = '{self.world.ca_file}'\n{more}"
        )

    def do(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HF_ENDPOINT": self.hub.endpoint, "HF_HOME": "/nonexistent"}
        env.pop("HF_TOKEN", None)
        done: subprocess.CompletedProcess[str] = self.world.companion(
            *arguments, env={**env, **environment}, stdin=subprocess.DEVNULL
        )
        return done

    def add(self, source: str, *more: str, code: int = 0, **environment: str) -> str:
        done = self.do("models", "add", source, *more, **environment)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def shown(self, model_id: str) -> dict[str, Any]:
        done = self.do("models", "show", model_id, "--json")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.world.state / "models").glob("*"))


@pytest.fixture
def me(world: Any, tmp_path: Path) -> Iterator[Person]:
    authority = CertificateAuthority(tmp_path)
    Path(world.ca_file).write_bytes(
        Path(world.ca_file).read_bytes() + Path(authority.ca_file).read_bytes()
    )
    files = {
        QUANT: world.content,
        "tiny-Q8_0.gguf": world.content + bytes(64),
        "notes-Q4_0.gguf": b"not a model" * 100,
        "README.md": b"# tiny\n",
    }
    only = {"big-Q6_K.gguf": world.content, "small-Q5_0.gguf": world.content}
    context = authority.server_context("127.0.0.1", "localhost")
    with ModelHub(context, {NAME: files, "acme/two": only, "acme/new": files}) as hub:
        yield Person(world, hub)


# --- an address ---


def test_a_model_at_an_address_is_recorded_as_it_came_and_can_be_fetched_again(me: Person) -> None:
    url = me.host.url(PATH)
    told = me.add(url)
    assert "its host states no digest" in told
    shown = me.shown("small")
    digest = hashlib.sha256(me.world.content).hexdigest()
    assert shown["files"][0]["sha256"] == digest
    assert shown["origin"] == url
    (me.world.state / "models" / digest).unlink()
    pulled = me.do("models", "pull", "small", "--json")
    assert json.loads(pulled.stdout)["new"] is True, pulled.stderr
    me.host.content = {PATH: me.world.content[:-1] + b"x"}
    (me.world.state / "models" / digest).unlink()
    changed = me.do("models", "pull", "small")
    assert changed.returncode == 3
    assert Reason.DIGEST_MISMATCH in changed.stderr
    assert me.files() == []


def test_every_hop_on_the_way_is_shown_and_recorded(me: Person) -> None:
    elsewhere = me.world.manifest_host
    elsewhere.content = {"/cdn/x": me.world.content}
    me.host.misbehave = Misbehaviour(status=302, location=elsewhere.url("/cdn/x"))
    told = me.add(me.host.url(PATH))
    assert f"redirects to {elsewhere.url('/cdn/x')}" in told
    assert me.shown("small")["origin"] == f"{me.host.url(PATH)} -> {elsewhere.url('/cdn/x')}"


def test_a_download_that_breaks_goes_on_where_it_was(me: Person) -> None:
    eighth = len(me.world.content) // 8
    me.host.misbehave = Misbehaviour(close_after=eighth)
    assert "ended the connection" in me.add(me.host.url(PATH), code=4)
    me.host.misbehave = Misbehaviour()
    me.host.requests.clear()
    me.add(me.host.url(PATH))
    ranges = [headers.get("range") for _, headers in me.host.requests]
    assert any(each is not None and int(each[6:-1]) >= eighth for each in ranges), ranges


@pytest.mark.parametrize(
    ("knobs", "code", "says"),
    [
        (Misbehaviour(status=404), 4, "404: it has no such file"),
        (Misbehaviour(status=401), 4, "401: it asks for a sign-in"),
        (Misbehaviour(status=302, location="http://127.0.0.1/x"), 3, "redirects to http://"),
        (Misbehaviour(status=302, location="/models/small.gguf"), 4, "redirects without an end"),
        (Misbehaviour(unannounced=True), 3, "does not say how large"),
        (Misbehaviour(announce=1000), 3, "is cut off"),
    ],
)
def test_a_host_that_cannot_or_must_not_give_it_is_told_in_words(
    me: Person, knobs: Misbehaviour, code: int, says: str
) -> None:
    me.host.misbehave = knobs
    assert says in me.add(me.host.url(PATH), code=code)
    assert me.do("models", "list").stdout.startswith("there is no model yet")


def test_what_is_no_model_is_refused_before_it_is_fetched(me: Person) -> None:
    me.host.content = {PATH: b"<html>" + bytes(50_000_000)}
    assert "is no GGUF file" in me.add(me.host.url(PATH), code=3)
    assert me.files() == []


# --- a repository of a hub ---


def test_a_repository_is_one_command_away_from_an_answer(me: Person) -> None:
    done = me.do("run", f"hf:{NAME}", "How do I stop it?")
    assert done.returncode == 0, done.stderr
    assert "companion down" in done.stdout
    shown = me.shown("tiny-Q4_K_M")
    assert shown["origin"] == f"hf:{NAME}@{me.hub.commit_of(NAME)}/{QUANT}"
    assert shown["licence"] == "apache-2.0"
    assert shown["vouched_by"] == "you"
    asked = [headers for host, _, headers in me.hub.requests]
    assert not any("authorization" in headers for headers in asked)
    me.hub.requests.clear()
    again = me.do("run", "tiny-Q4_K_M", "How do I stop it?")
    assert (again.stdout, me.hub.requests) == (done.stdout, [])


def test_a_quantisation_a_file_and_a_revision_are_chosen_by_name(me: Person) -> None:
    me.add(f"hf:{NAME}:q8_0", "--id", "eight")
    assert me.shown("eight")["size"] == len(me.world.content) + 64
    me.add(f"hf:{NAME}", "--file", QUANT, "--revision", me.hub.commit_of(NAME))
    refused = me.add("hf:acme/two", code=2)
    assert "no Q4_K_M" in refused
    assert "big-Q6_K.gguf" in refused
    assert "(Q6_K, Q5_0)" in refused
    assert "there is no such revision in it" in me.add(f"hf:{NAME}", "--revision", "v9", code=4)
    assert "has no whole Q3_K_S" in me.add(f"hf:{NAME}:Q3_K_S", code=2)
    assert "is no GGUF file" in me.add(f"hf:{NAME}", "--file", "notes-Q4_0.gguf", code=3)
    assert "hf:OWNER/REPO" in me.add("hf:acme", code=2)
    assert "HF_HUB_OFFLINE is set" in me.add(f"hf:{NAME}", code=4, HF_HUB_OFFLINE="1")
    assert "HF_ENDPOINT is no https" in me.add(f"hf:{NAME}", code=2, HF_ENDPOINT="http://x.example")


@pytest.mark.parametrize(
    ("knobs", "code", "says"),
    [
        (HubMisbehaviour(gated=True), 4, "accept the terms on its page"),
        (HubMisbehaviour(private=True), 4, "or it is private"),
        (HubMisbehaviour(not_json=True), 4, "is not what was asked for"),
        (HubMisbehaviour(announce="0" * 64), 3, "announces other bytes"),
        (HubMisbehaviour(wrong_byte=True), 3, Reason.DIGEST_MISMATCH),
        (HubMisbehaviour(short=100), 3, "is cut off"),
        (HubMisbehaviour(elsewhere="https://hf.co.evil.example/x"), 3, "hf.co.evil.example"),
        (HubMisbehaviour(elsewhere="http://127.0.0.1/x"), 3, "redirects to http://"),
        (HubMisbehaviour(link_seconds=-1), 4, "a signed link may have expired"),
        (HubMisbehaviour(limited=9, limit_seconds=0), 4, "answers no more requests"),
    ],
)
def test_each_refusal_and_each_lie_of_a_hub_ends_in_words_and_records_nothing(
    me: Person, knobs: HubMisbehaviour, code: int, says: str
) -> None:
    me.hub.misbehave = knobs
    assert says in me.add(f"hf:{NAME}", code=code)
    assert me.do("models", "list").stdout.startswith("there is no model yet")


def test_a_hub_that_asks_to_wait_is_waited_for(me: Person) -> None:
    me.hub.misbehave = HubMisbehaviour(limited=2, limit_seconds=0)
    assert "answers again in 1 s" in me.add(f"hf:{NAME}")


def test_a_renamed_repository_is_followed_and_told(me: Person) -> None:
    me.hub.misbehave = HubMisbehaviour(renamed_to="acme/new")
    assert f"{NAME} is called acme/new now" in me.add(f"hf:{NAME}")
    assert me.shown("tiny-Q4_K_M")["origin"].startswith("hf:acme/new@")


@pytest.mark.parametrize("ranges", ["honour", "ignore", "lie"])
def test_a_broken_transfer_is_finished_whatever_the_byte_host_makes_of_a_range(
    me: Person, ranges: str
) -> None:
    me.hub.misbehave = HubMisbehaviour(cut_after=400_000, cut_times=2, ranges=ranges)
    me.add(f"hf:{NAME}")
    assert me.do("models", "verify").returncode == 0


def test_a_token_is_sent_on_request_to_the_hub_alone(me: Person) -> None:
    me.hub.misbehave = HubMisbehaviour(gated=True, granted=True)
    me.add(f"hf:{NAME}", code=4, HF_TOKEN=HUB_TOKEN)
    assert not any("authorization" in headers for _, _, headers in me.hub.requests)
    told = me.add(f"hf:{NAME}", "--hub-token", HF_TOKEN=HUB_TOKEN)
    assert HUB_TOKEN not in told
    sent = {host for host, _, headers in me.hub.requests if "authorization" in headers}
    assert sent == {"hub"}
    assert "there is no token: set HF_TOKEN" in me.add(f"hf:{NAME}", "--hub-token", code=2)
    bad = me.add(f"hf:{NAME}", "--hub-token", code=4, HF_TOKEN="hf_other")
    assert "the token is not valid" in bad


def test_an_id_that_the_publisher_has_is_refused_by_name(me: Person) -> None:
    me.world.publish()
    more = (
        f"[manifest]\nurl = '{me.world.manifest_host.url('/manifest.json')}'\n"
        f"trusted_keys = ['{me.world.public_key}']\n"
    )
    me.configure(more)
    told = me.add(f"hf:{NAME}", "--id", "tiny", code=3)
    assert "the publisher has a model tiny" in told


def test_the_hubs_own_client_reads_the_same_double(
    me: Person, tmp_path: Path, require_real: Any
) -> None:
    require_real("huggingface_hub (make .venv/.clients)", CLIENTS.exists())
    program = (
        "import hashlib, sys, huggingface_hub as hub\n"
        "path = hub.hf_hub_download(sys.argv[1], sys.argv[2], token=False)\n"
        "print(hashlib.sha256(open(path, 'rb').read()).hexdigest())\n"
        "print(hub.HfApi().model_info(sys.argv[1], files_metadata=True).siblings[1].lfs.sha256)\n"
    )
    done = subprocess.run(
        [CLIENTS, "-c", program, NAME, QUANT],
        env={
            "HF_ENDPOINT": me.hub.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SSL_CERT_FILE": str(me.world.ca_file),
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(me.world.content).hexdigest()
    assert digest in done.stdout.splitlines()
