"""Models of a hub's double over real TLS, by the calls of the command: it serves, and it lies."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_parts import HubPerson, gguf

from companion_core.errors import CompanionError
from companion_core.models.byte_pump import Pace
from companion_core.models.store import ModelStore
from companion_core.serving.remote_files import look_at_address
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.hub_documents import describe_repository
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.model_hub import HUB_TOKEN, HubMisbehaviour, ModelHub
from companion_core.testing.publisher import FakePublisher

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

NAME = "acme/tiny-GGUF"
MODEL = gguf()
FILES = {
    "tiny-Q4_K_M.gguf": MODEL,
    "tiny-Q8_0.gguf": gguf(size=310_000),
    "README.md": b"# tiny\n",
}
SPLIT = {
    "split/tiny-F16-00001-of-00002.gguf": gguf(size=100_000),
    "split/tiny-F16-00002-of-00002.gguf": gguf(size=90_000),
    "split/mmproj-tiny-F16.gguf": gguf("clip", 50_000),
}
# Of the public hub's, as any byte host that it may name tomorrow.
NAMES = ("huggingface.co", "eu.new.cdn.hf.co")


@pytest.fixture(scope="module")
def served(authority: CertificateAuthority) -> ssl.SSLContext:
    return authority.server_context("127.0.0.1", "localhost", *NAMES)


@pytest.fixture
def open_hub(
    served: ssl.SSLContext, context: ssl.SSLContext, tmp_path: Path
) -> Iterator[Callable[..., HubPerson]]:
    hubs: list[ModelHub] = []

    def make(files: dict[str, bytes] = FILES, **names: Any) -> HubPerson:
        hub = ModelHub(served, {NAME: files, "acme/new": files}, **names)
        hubs.append(hub.__enter__())
        return HubPerson(tmp_path, hub, context)

    yield make
    for hub in hubs:
        hub.__exit__()


@pytest.fixture
def me(open_hub: Callable[..., HubPerson]) -> HubPerson:
    return open_hub()


def told(call: Callable[[], Any]) -> str:
    with pytest.raises(CompanionError) as caught:
        call()
    return f"{caught.value.reason}: {caught.value.detail}"


def test_the_public_hub_may_send_to_whatever_byte_host_it_names_and_nothing_is_allowed_for_that(
    open_hub: Callable[..., HubPerson],
) -> None:
    me = open_hub(names=NAMES)
    me.add(f"hf:{NAME}")
    manifest = me.own.read().manifest
    assert manifest is not None
    commit = me.double.commit_of(NAME)
    assert manifest.allowed_sources == (f"https://huggingface.co/{NAME}/resolve/{commit}/",)
    assert me.own.read().origins["tiny-Q4_K_M"] == f"hf:{NAME}@{commit}/tiny-Q4_K_M.gguf"
    [stored] = me.stored
    (me.paths.models / stored).unlink()
    me.library.pull(
        "tiny-Q4_K_M",
        me.download,
        "https",
        progress=lambda _done, _total: None,
        cancelled=threading.Event(),
    )
    assert me.stored == [stored]


def test_all_parts_and_the_projector_come_along_and_a_mirrors_byte_hosts_are_recorded(
    open_hub: Callable[..., HubPerson],
) -> None:
    me = open_hub(SPLIT)
    me.add(f"hf:{NAME}")
    manifest = me.own.read().manifest
    assert manifest is not None
    [model] = manifest.models
    assert [(file.name, file.role.value) for file in model.files] == [
        ("tiny-F16-00001-of-00002.gguf", "model"),
        ("tiny-F16-00002-of-00002.gguf", "model"),
        ("mmproj-tiny-F16.gguf", "projector"),
    ]
    assert model.licence == "apache-2.0"
    assert len(me.stored) == 3
    endpoint = me.double.endpoint.rstrip("/")
    others = [each for each in manifest.allowed_sources if not each.startswith(endpoint)]
    assert len(others) == 1


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"wrong_byte": True}, "digest_mismatch"),
        ({"short": 100}, "size_mismatch"),
        ({"announce": "0" * 64}, "digest_mismatch: 127.0.0.1 announces other bytes"),
        ({"elsewhere": "https://hf.co.evil.example/x"}, "redirects to https://hf.co.evil.example"),
        ({"elsewhere": "http://127.0.0.1/x"}, "redirects to http://127.0.0.1/x"),
        ({"elsewhere": "https://[::1"}, "redirects to what is no address"),
        ({"loop": True}, "127.0.0.1 redirects without an end"),
        ({"link_seconds": -1.0}, "a signed link may have expired"),
        ({"limited": 9, "limit_seconds": 0}, "try again in some minutes"),
        ({"gated": True}, "accept the terms on its page https://127.0.0.1:"),
        ({"private": True}, "or it is private: check the name, or send your token"),
        ({"nonsense": b"<html>sign in to the hotel's network</html>"}, "is not what was asked for"),
        ({"nonsense": b"[" * 200_000}, "is not what was asked for"),
        ({"nonsense": b'{"id": "acme/tiny-GGUF"}'}, "is not what was asked for"),
    ],
)
def test_each_refusal_and_each_lie_of_a_hub_ends_in_words_and_leaves_nothing(
    me: HubPerson, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr("companion_core.models.transfer.RETRY_PAUSES", (0.0, 0.0))
    monkeypatch.setattr("companion_core.models.peek.RETRY_PAUSES", (0.0, 0.0))
    me.double.misbehave = HubMisbehaviour(**knobs)
    assert says in told(lambda: me.add(f"hf:{NAME}"))
    assert (me.recorded, me.stored) == ([], [])


@pytest.mark.parametrize(
    ("knobs", "token", "says"),
    [
        ({"gated": True}, HUB_TOKEN, "ask for it on its page https://127.0.0.1:"),
        ({"disabled": True}, HUB_TOKEN, "the hub has disabled it: choose another one"),
        ({}, "hf_other", "the token is not valid: make another"),
    ],
)
def test_what_a_token_does_not_open_is_told(
    me: HubPerson, knobs: dict[str, Any], token: str, says: str
) -> None:
    me.double.misbehave = HubMisbehaviour(**knobs)
    assert says in told(lambda: me.add(f"hf:{NAME}", token))


def test_a_missing_repository_revision_and_file_are_told(me: HubPerson) -> None:
    assert "check the name" in told(lambda: me.add("hf:acme/none"))
    assert "may see: check the name" in told(lambda: me.add("hf:acme/none", HUB_TOKEN))
    assert "no such revision" in told(lambda: me.add(f"hf:{NAME}", revision="v9"))
    assert "has no whole none.gguf" in told(lambda: me.add(f"hf:{NAME}", file="none.gguf"))
    assert "has no whole Q3_K_S" in told(lambda: me.add(f"hf:{NAME}:Q3_K_S"))


def test_a_hub_that_answers_for_another_commit_is_not_believed(me: HubPerson) -> None:
    commit = me.double.commit_of(NAME)
    document = describe_repository(NAME, "c" * 40, FILES, blobs=True)
    me.double.misbehave = HubMisbehaviour(nonsense=json.dumps(document).encode())
    asked = told(lambda: me.look(f"hf:{NAME}", revision=commit))
    assert "is not what was asked for" in asked


def test_a_hub_that_asks_to_wait_is_waited_for_twice(me: HubPerson) -> None:
    me.double.misbehave = HubMisbehaviour(limited=2, limit_seconds=0)
    me.add(f"hf:{NAME}")
    assert me.waits == [1, 1]


def test_a_wait_in_the_middle_is_no_silence_of_the_downloader(
    me: HubPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *rest = Pace.__init__.__defaults__ or ()
    monkeypatch.setattr(Pace.__init__, "__defaults__", (1.0, *rest))
    download, found = me.look(f"hf:{NAME}")
    asked = len(me.double.requests)
    me.double.misbehave = HubMisbehaviour(limited=2, limit_seconds=1)
    me.library.additions.add_remote(found, me.fetching(download))
    assert [host for host, _, _ in me.double.requests[asked:]] == ["hub"] * 3 + ["bytes"]
    assert me.waits == [2, 2]


def test_a_renamed_repository_is_followed_and_told(me: HubPerson) -> None:
    me.double.misbehave = HubMisbehaviour(renamed_to="acme/new")
    _, found = me.look(f"hf:{NAME}", HUB_TOKEN)
    assert found.told == (f"{NAME} is called acme/new now",)
    assert found.origin.startswith("hf:acme/new@")


def test_an_ended_link_is_asked_for_again_also_after_a_break(me: HubPerson) -> None:
    me.double.misbehave = HubMisbehaviour(ended_links=1)
    download, found = me.look(f"hf:{NAME}")  # the first look had an ended one
    asked = len(me.double.requests)
    me.double.misbehave = HubMisbehaviour(ended_links=3, cut_after=200_000)
    me.library.additions.add_remote(found, me.fetching(download))
    fetched = [
        headers.get("range") for host, _, headers in me.double.requests[asked:] if host == "bytes"
    ]
    assert fetched[:2] == [None, None]  # ended, then cut
    assert fetched[2] is not None
    assert fetched[2].startswith("bytes=200000-")
    assert me.stored == [hashlib.sha256(MODEL).hexdigest()]


@pytest.mark.parametrize("ranges", ["ignore", "lie"])
def test_a_range_that_is_not_honoured_costs_a_beginning_and_never_a_wrong_byte(
    me: HubPerson, ranges: str
) -> None:
    me.double.misbehave = HubMisbehaviour(cut_after=200_000, cut_times=2, ranges=ranges)
    me.add(f"hf:{NAME}")
    assert me.stored == [hashlib.sha256(MODEL).hexdigest()]


def test_a_token_goes_to_the_hub_alone_and_opens_what_was_added_again(me: HubPerson) -> None:
    me.double.misbehave = HubMisbehaviour(gated=True, granted=True)
    me.add(f"hf:{NAME}", HUB_TOKEN)
    sent = {host for host, _, headers in me.double.requests if "authorization" in headers}
    assert sent == {"hub"}
    assert {host for host, _, _ in me.double.requests} == {"hub", "bytes"}


def test_what_is_no_model_or_no_projector_is_refused_before_it_is_fetched(
    open_hub: Callable[..., HubPerson],
) -> None:
    me = open_hub(
        {
            "a-Q4_0.gguf": b"no model" * 1000,
            "b-Q5_0.gguf": gguf("clip"),
            "c-Q6_K.gguf": gguf(),
            "mmproj-c.gguf": gguf("llama", 70_000),
        }
    )
    for quant, says in (
        ("Q4_0", "(a-Q4_0.gguf) is no GGUF file"),
        ("Q5_0", "(b-Q5_0.gguf) is a projector, and no model"),
        ("Q6_K", "(mmproj-c.gguf) is a model, and no projector"),
    ):
        assert says in told(lambda quant=quant: me.add(f"hf:{NAME}:{quant}"))  # type: ignore[misc]  # a default binds the loop's value
    assert me.stored == []


def test_a_full_disk_is_told_with_both_numbers_before_a_byte_is_fetched(
    open_hub: Callable[..., HubPerson], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = open_hub(SPLIT)
    _, found = me.look(f"hf:{NAME}:F16")
    asked = len(me.double.requests)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=200_000))
    says = told(lambda: me.library.additions.require_room(found))
    assert says.startswith("disk_unavailable: tiny-F16 takes 0.0 GB, and ")
    assert len(me.double.requests) == asked


# --- an address, whose bytes nobody states ---


@pytest.fixture
def host(served: ssl.SSLContext) -> Iterator[ModelHost]:
    with ModelHost(served, {"/m.gguf": gguf(licence="mit")}) as host:
        yield host


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"status": 404}, "404: it has no such file"),
        ({"status": 401}, "401: it asks for a sign-in"),
        ({"status": 302, "location": "/m.gguf"}, "redirects without an end"),
        ({"status": 302, "location": "https://me@127.0.0.1/x"}, "source_not_allowed"),
        ({"unannounced": True}, "does not say how large"),
        ({"announce": 40}, "is cut off"),
        ({"announce": 300_001}, "ended the connection before"),
    ],
)
def test_a_host_that_cannot_or_must_not_give_it_is_told_in_words(
    me: HubPerson, host: ModelHost, knobs: dict[str, Any], says: str
) -> None:
    host.misbehave = Misbehaviour(**knobs)
    assert says in told(lambda: add_address(me, host))
    assert me.recorded == []


def add_address(me: HubPerson, host: ModelHost, then: bytes | None = None, **named: Any) -> Any:
    found = look_at_address(
        host.url("/m.gguf"),
        model_id=named.get("model_id"),
        download=me.download,
        plugin="https",
        cancelled=threading.Event(),
    )
    if then is not None:
        host.content = {"/m.gguf": then}
    return me.library.additions.add_remote(found, me.fetching(me.download))


def test_what_is_recorded_is_what_came_and_not_what_was_shown_first(
    me: HubPerson, host: ModelHost
) -> None:
    added = add_address(me, host, then=gguf(licence="proprietary"))
    assert added.licence == "proprietary"
    manifest = me.own.read().manifest
    assert manifest is not None
    assert manifest.models[0].licence == "proprietary"


def test_bytes_that_are_not_recorded_in_the_end_are_not_kept(
    me: HubPerson, host: ModelHost
) -> None:
    assert "is no GGUF file" in told(lambda: add_address(me, host, then=bytes(300_000)))
    assert me.stored == []
    host.content = {"/m.gguf": gguf()}
    add_address(me, host)
    before = me.stored
    host.content = {"/m.gguf": gguf(licence="other")}
    assert "is recorded with other bytes" in told(lambda: add_address(me, host))
    assert me.stored == before


# --- without a network ---


def test_a_model_of_ones_own_needs_no_network_also_behind_an_https_manifest(
    me: HubPerson, tmp_path: Path, context: ssl.SSLContext
) -> None:
    me.add(f"hf:{NAME}")
    asked = len(me.double.requests)
    section = {
        "url": "https://127.0.0.1:9/manifest.json",  # nobody listens there
        "trusted_keys": [FakePublisher().public_key],
    }
    later = HubPerson(tmp_path, me.double, context, keychain=me.keychain, manifest=section)
    found = later.lists.find("tiny-Q4_K_M", threading.Event())

    def refuse(_request: Any) -> Any:
        raise AssertionError("the network was asked")

    store = ModelStore(me.paths.models)
    store.stage(
        found.model, allowed_sources=found.manifest.allowed_sources, download=refuse
    ).close()
    assert len(me.double.requests) == asked
