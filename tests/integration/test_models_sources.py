"""`companion models add` of an https address and of a hub's repository, and `run` of both."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companion_core.demo.run import MODEL_FILE
from companion_core.errors import Reason
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour
from companion_core.testing.model_hub import HUB_TOKEN, HubMisbehaviour, ModelHub

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NAME = "acme/tiny-GGUF"
QUANT = "tiny-Q4_K_M.gguf"
PATH = "/models/small.gguf"
CLIENTS = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "python"

# What the hub's own client makes of the double's answers.
CLIENT = """
import hashlib, sys
import huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError
name, file = sys.argv[1:3]
path = hub.hf_hub_download(name, file, token=False)
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
listed = hub.HfApi().model_info(name, files_metadata=True).siblings
print(next(each.lfs.sha256 for each in listed if each.rfilename == file))
for repository, wanted, revision in (
    ("acme/gated", file, "main"),
    (name, "none.gguf", "main"),
    (name, file, "none"),
    ("acme/none", file, "main"),
):
    try:
        hub.hf_hub_download(repository, wanted, revision=revision, token=False)
    except HfHubHTTPError as error:
        print(type(error).__name__.removeprefix("Remote"))
"""


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
    with ModelHub(context, {NAME: files, "acme/two": only, "acme/gated": files}) as hub:
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
    (stored,) = me.files()
    (me.world.state / "models" / stored).unlink()
    assert me.do("models", "pull", "small").returncode == 0
    assert me.files() == [stored]


def test_a_download_that_breaks_goes_on_where_it_was(me: Person) -> None:
    eighth = len(me.world.content) // 8
    me.host.misbehave = Misbehaviour(close_after=eighth)
    assert "ended the connection" in me.add(me.host.url(PATH), code=4)
    me.host.misbehave = Misbehaviour()
    me.host.requests.clear()
    me.add(me.host.url(PATH))
    ranges = [headers.get("range") for _, headers in me.host.requests]
    assert any(each is not None and int(each[6:-1]) >= eighth for each in ranges), ranges


def test_a_host_that_leads_elsewhere_is_told_in_words(me: Person) -> None:
    me.host.misbehave = Misbehaviour(status=302, location="http://127.0.0.1/x")
    told = me.add(me.host.url(PATH), code=3)
    assert "redirects to http://127.0.0.1/x" in told
    assert told.splitlines()[-1].startswith(f"companion: {Reason.SCHEME_NOT_ALLOWED}: ")


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
    assert me.do("down").returncode == 0
    again = me.do("run", f"hf:{NAME}", "How do I stop it?", HF_HUB_OFFLINE="1")
    assert (again.stdout, me.hub.requests) == (done.stdout, []), again.stderr


def test_a_quantisation_a_file_and_a_revision_are_chosen_by_name(me: Person) -> None:
    me.add(f"hf:{NAME}:q8_0", "--id", "eight")
    assert me.shown("eight")["size"] == len(me.world.content) + 64
    me.add(f"hf:{NAME}", "--file", QUANT, "--revision", me.hub.commit_of(NAME))
    refused = me.add("hf:acme/two", code=2)
    assert "no Q4_K_M" in refused
    assert "big-Q6_K.gguf" in refused
    assert "(Q6_K, Q5_0)" in refused
    assert "hf:OWNER/REPO" in me.add("hf:acme", code=2)
    assert "HF_HUB_OFFLINE is set" in me.add(f"hf:{NAME}", code=4, HF_HUB_OFFLINE="1")
    assert "HF_ENDPOINT is no https" in me.add(f"hf:{NAME}", code=2, HF_ENDPOINT="http://x.example")


def test_a_hub_that_asks_to_wait_and_refuses_is_told_and_records_nothing(me: Person) -> None:
    me.hub.misbehave = HubMisbehaviour(limited=2, limit_seconds=0, wrong_byte=True)
    told = me.add(f"hf:{NAME}", code=3)
    assert "answers again in 1 s" in told
    assert told.splitlines()[-1].startswith(f"companion: {Reason.DIGEST_MISMATCH}: ")
    assert me.do("models", "list").stdout.startswith("there is no model yet")


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
    (stored,) = me.files()
    (me.world.state / "models" / stored).unlink()
    pull = ("models", "pull", "tiny-Q4_K_M")
    assert "then send your token with --hub-token" in me.do(*pull).stderr
    assert "HF_HUB_OFFLINE is set" in me.do(*pull, HF_HUB_OFFLINE="1").stderr
    assert me.do(*pull, "--hub-token", HF_TOKEN=HUB_TOKEN).returncode == 0
    assert me.files() == [stored]
    assert {host for host, _, headers in me.hub.requests if "authorization" in headers} == {"hub"}


def test_what_was_accepted_starts_where_there_is_no_network_at_all(
    me: Person, require_real: Any
) -> None:
    require_real("bubblewrap", shutil.which("bwrap") is not None)
    me.world.publish()
    me.host.content["/" + MODEL_FILE.name] = me.world.content
    me.configure(
        f"[manifest]\nurl = '{me.world.manifest_host.url('/manifest.json')}'\n"
        f"trusted_keys = ['{me.world.public_key}']\n"
    )
    me.add(f"hf:{NAME}", "--id", "mine")
    assert me.do("models", "pull", "tiny").returncode == 0
    me.hub.requests.clear()
    script = " && ".join(
        [
            shlex.join(me.world.argv("run", "mine", "How do I stop it?")),
            shlex.join(me.world.argv("run", "tiny", "How do I stop it?")),
            shlex.join(me.world.argv("down")),
        ]
    )
    alone = ["bwrap", "--dev-bind", "/", "/", "--unshare-net", "--die-with-parent", "sh", "-c"]
    done = subprocess.run(
        [*alone, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("companion down") == 2
    assert me.hub.requests == []


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
    program = CLIENT
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
    assert done.stdout.splitlines() == [
        digest,
        digest,
        "GatedRepoError",
        "EntryNotFoundError",
        "RevisionNotFoundError",
        "RepositoryNotFoundError",
    ]
