"""Which models are obtained and held, when they are closed, and when a writer gets in."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import signal
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from serving_parts import LIMITS
from staging_parts import DATA, URL, Body, good
from swap_parts import held_model

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.decisions.isolation import Tier
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models import lease as file_lease
from companion_core.providers import DownloadFailed
from companion_core.serving.assembly import RuntimeProviders
from companion_core.serving.model_lists import ModelLists
from companion_core.serving.model_source import HeldModel, ModelSource
from companion_core.serving.own_list import open_own_list
from companion_core.serving.step import Step
from companion_core.testing import FakeKeychain
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit


# --- when a writer gets in: at once where no runtime runs, else when that has ended --------


def test_a_model_that_no_runtime_has_open_is_closed_at_once_for_a_writer() -> None:
    log: list[str] = []
    held = held_model("m", log)
    held.leases._on_break()
    assert held.wanted.is_set()
    assert held.closed
    assert log == ["let go of m"]


def test_a_model_that_a_runtime_has_open_is_only_marked_for_a_writer() -> None:
    log: list[str] = []
    held = held_model("m", log)
    held.in_use = True
    held.leases._on_break()
    assert held.wanted.is_set()
    assert not held.closed
    assert log == []


def test_before_the_proof_it_is_the_proof_that_fails() -> None:
    held = HeldModel()
    held.leases._on_break()
    assert not held.wanted.is_set()
    with pytest.raises(Refused) as caught:
        _ = held.model
    assert caught.value.reason is Reason.NOT_VERIFIED
    held.close()
    assert held.closed


def test_a_closed_model_is_no_longer_proved() -> None:
    held = held_model("m", [])
    assert held.is_proved
    held.close()
    assert not held.is_proved


# --- what is held: a model that was obtained, until it is closed; no other -----------------


class Scene:
    """A publisher, a downloader and a source; counts what is held open of its store."""

    def __init__(self, folder: Path) -> None:
        self.publisher = publisher = FakePublisher()
        self.paths = InstancePaths(folder)
        self.steps: list[Step] = []
        self.on_step: Callable[[Step], None] = self.steps.append
        self.downloader = SimpleNamespace(open=good)
        self.spawn = SimpleNamespace(formats=("gguf",))
        self.manifest = manifest = folder / "manifest.json"
        manifest.write_bytes(publisher.envelope(manifest_document(URL, DATA)))
        chosen: Any = SimpleNamespace(
            spawn=SimpleNamespace(provider=self.spawn),
            download=SimpleNamespace(provider=self.downloader),
        )
        section = {"url": manifest.as_uri(), "trusted_keys": [publisher.public_key]}
        config = parse_config({"manifest": section, "model": {"id": "tiny"}})
        keychain: Any = SimpleNamespace(provider=FakeKeychain(), plugin="fake")
        lists = ModelLists(
            config,
            self.paths,
            RefusingEgress(),
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            open_own_list(config, self.paths, keychain, clock=lambda: TEST_NOW),
            clock=lambda: TEST_NOW,
        )
        self.source = ModelSource(
            lists,
            self.paths,
            RuntimeProviders(chosen=chosen, binary="embedded", limits=LIMITS, tier=Tier.NONE),
        )
        self._leases_before = set(file_lease._OPEN)

    async def obtain(self) -> HeldModel:
        return await self.source.obtain("tiny", self.on_step)

    def held_open(self) -> tuple[int, int]:
        """Return how many descriptors of the store are open, and how many leases are held."""
        opened = (Path(file.path).parent for file in psutil.Process().open_files())
        return (
            sum(parent == self.paths.models for parent in opened),
            len(file_lease._OPEN - self._leases_before),
        )

    def store(self) -> None:
        """Have it in the store already, so that nothing is downloaded."""
        self.paths.models.mkdir(mode=0o700)
        path = self.paths.models / hashlib.sha256(DATA).hexdigest()
        path.write_bytes(DATA)
        path.chmod(0o400)


LEASES = 1 if sys.platform == "linux" else 0


@pytest.fixture
def play(tmp_path) -> Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]:
    def run(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def life() -> None:
            scene = Scene(tmp_path)
            try:
                await story(scene)
            finally:
                scene.source.close()
            assert scene.held_open() == (0, 0)

        asyncio.run(life())

    return run


def test_a_model_is_held_until_it_is_closed(play) -> None:
    async def story(scene: Scene) -> None:
        held = await scene.obtain()
        assert held.is_proved
        assert [step.name for step in scene.steps if not step.total] == ["manifest", "model"]
        assert scene.held_open() == (1, LEASES)
        held.close()
        assert scene.held_open() == (0, 0)

    play(story)


def test_two_are_held_beside_each_other_until_the_source_is_closed(play) -> None:
    async def story(scene: Scene) -> None:
        held = [await scene.obtain(), await scene.obtain()]
        assert scene.held_open() == (2, 2 * LEASES)
        scene.source.close()
        assert [each.closed for each in held] == [True, True]

    play(story)


def unreachable(scene: Scene) -> Reason:
    def fail(_request: Any) -> Any:
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)

    scene.downloader.open = fail
    return Reason.DOWNLOAD_FAILED


def other_bytes(scene: Scene) -> Reason:
    scene.downloader.open = lambda _request: Body(bytes(len(DATA)), length=len(DATA))
    return Reason.DIGEST_MISMATCH


def foreign_format(scene: Scene) -> Reason:
    scene.spawn.formats = ("mlx",)
    return Reason.MODEL_FORMAT_UNSUPPORTED


def no_model_of_its_format(scene: Scene) -> Reason:
    signed = b"JSON" + DATA[4:]
    scene.manifest.write_bytes(scene.publisher.envelope(manifest_document(URL, signed)))
    scene.downloader.open = lambda _request: Body(signed, length=len(signed))
    return Reason.MODEL_FORMAT_UNSUPPORTED


def nobody_to_tell(scene: Scene) -> Reason:
    def fail(step: Step) -> None:
        if step.name == "model":
            raise CompanionError(Reason.INTERNAL_FAULT)

    scene.on_step = fail
    return Reason.INTERNAL_FAULT


@pytest.mark.parametrize(
    "break_it", [unreachable, other_bytes, foreign_format, no_model_of_its_format, nobody_to_tell]
)
def test_a_model_that_is_not_obtained_is_not_held(play, break_it) -> None:
    async def story(scene: Scene) -> None:
        reason = break_it(scene)
        with pytest.raises(CompanionError) as caught:
            await scene.obtain()
        assert caught.value.reason is reason
        assert scene.held_open() == (0, 0)
        if sys.platform == "linux":
            assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL

    play(story)


@pytest.mark.parametrize("stored", [False, True], ids=["while it comes", "when it was proved"])
def test_a_model_whose_obtaining_is_cancelled_is_not_held(play, stored) -> None:
    async def story(scene: Scene) -> None:
        there, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def wait(step: Step) -> None:
            # Of a stored model it is told in the end, of another after each block.
            if step.total:
                loop.call_soon_threadsafe(there.set)
                go_on.wait()

        if stored:
            scene.store()
        scene.on_step = wait
        obtaining = asyncio.ensure_future(scene.obtain())
        await there.wait()
        obtaining.cancel()
        await asyncio.sleep(0)  # it hears of it
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await obtaining
        assert scene.held_open() == (0, 0)

    play(story)


def test_a_closed_model_is_forgotten_when_the_next_is_obtained(play) -> None:
    async def story(scene: Scene) -> None:
        first = await scene.obtain()
        reference = weakref.ref(first)
        first.close()
        del first
        second = await scene.obtain()
        gc.collect()
        assert reference() is None
        assert second.is_proved

    play(story)
