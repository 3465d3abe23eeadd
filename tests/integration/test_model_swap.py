"""Attacker: someone who writes to the verified file between its proof and its use (I-01)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from runtime_parts import alive, wait_until

from companion_core.companion import Companion
from companion_core.decisions.integrity import parse_model_spec
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models import lease as file_lease
from companion_core.models.lease import FileLeases, is_held, release
from companion_core.models.proof import Prover

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="leases of Linux"),
]

CONTENT = b"the verified bytes"

# Opens for writing as an attacker would, and prints that it tries and that it got in.
WRITER = """
import os, sys
print("trying", flush=True)
descriptor = os.open(sys.argv[1], os.O_WRONLY)
print("in", flush=True)
"""


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def prover(hold) -> Prover:

    spec = parse_model_spec(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    return Prover(spec, threading.Event(), hold)


def writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "trying\n"
    return process


def in_a_thread(life) -> None:
    """Run a loop as a server does that starts its workers in threads."""
    with ThreadPoolExecutor(1) as worker:
        worker.submit(asyncio.run, life()).result()


def beside_a_host_that_handles_sigio(life) -> None:
    def hosts(*_: object) -> None:
        heard.append(1)

    heard: list[int] = []
    before = signal.signal(signal.SIGIO, hosts)
    try:
        asyncio.run(life())
        assert signal.getsignal(signal.SIGIO) is hosts
        assert heard == []
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("run", [asyncio.run, in_a_thread, beside_a_host_that_handles_sigio])
def test_a_writer_is_noticed_and_waits_until_the_lease_is_released(model, run) -> None:
    async def life() -> None:
        touched = asyncio.Event()
        leases = FileLeases(touched.set, look_seconds=0.05)
        assert leases.open()
        proof = await asyncio.to_thread(prover(leases.hold).prove, model)
        assert proof.held
        assert is_held(proof.descriptor)
        with writer(model) as attacker:
            await asyncio.wait_for(touched.wait(), 30)
            assert not is_held(proof.descriptor)
            assert attacker.poll() is None
            proof.discard()
            assert await asyncio.to_thread(attacker.stdout.readline) == "in\n"
        leases.close()

    run(life() if run is asyncio.run else life)


def test_a_file_that_is_open_for_writing_is_not_proved(model) -> None:
    async def life() -> None:
        leases = FileLeases(lambda: None)
        leases.open()
        descriptor = os.open(model, os.O_WRONLY)
        try:
            with pytest.raises(CompanionError) as caught:
                await asyncio.to_thread(prover(leases.hold).prove, model)
            assert caught.value.reason is Reason.MODEL_IN_USE
        finally:
            os.close(descriptor)
        proof = await asyncio.to_thread(prover(leases.hold).prove, model)
        assert proof.held
        proof.discard()
        leases.close()

    asyncio.run(life())


def test_readers_renames_and_links_do_not_break_the_lease(model) -> None:
    async def life() -> None:
        touched = asyncio.Event()
        leases = FileLeases(touched.set)
        leases.open()
        proof = await asyncio.to_thread(prover(leases.hold).prove, model)
        assert model.read_bytes() == CONTENT
        os.link(model, model.with_name("linked"))
        model.rename(model.with_name("renamed"))
        await asyncio.sleep(0.05)
        assert not touched.is_set()
        # The lease is of the inode: the other name is held as well.
        with pytest.raises(BlockingIOError):
            os.open(model.with_name("linked"), os.O_WRONLY | os.O_NONBLOCK)
        proof.discard()
        leases.close()

    asyncio.run(life())


def test_after_a_lost_lease_the_file_is_leased_and_hashed_again(model) -> None:
    async def life() -> None:
        leases = FileLeases(lambda: None)
        leases.open()
        again = prover(leases.hold)
        proof = await asyncio.to_thread(again.prove, model)
        assert proof.is_sound
        with writer(model) as attacker:  # the writer waits: the lease is being broken
            await asyncio.to_thread(wait_until, lambda: not is_held(proof.descriptor))
            assert not proof.is_sound
            await asyncio.to_thread(again.prove_again, proof)
            assert await asyncio.to_thread(attacker.stdout.readline) == "in\n"
        assert proof.held
        assert proof.is_sound
        descriptor = os.open(model, os.O_RDONLY)
        with contextlib.suppress(BlockingIOError):
            os.open(model, os.O_WRONLY | os.O_NONBLOCK)
        release(proof.descriptor)
        writing = os.open(model, os.O_WRONLY)
        with pytest.raises(CompanionError) as caught:  # the writer has the file open
            await asyncio.to_thread(again.prove_again, proof)
        assert caught.value.reason is Reason.MODEL_IN_USE
        assert not proof.held
        os.pwrite(writing, b"T", 0)
        os.close(writing)
        os.close(descriptor)
        with pytest.raises(Refused):
            await asyncio.to_thread(again.prove_again, proof)
        proof.discard()
        leases.close()

    asyncio.run(life())


def test_only_a_change_made_under_the_lease_counts_as_our_own(model) -> None:
    async def life() -> None:
        for hold in (True, False):
            leases = FileLeases(lambda: None)
            if hold:
                leases.open()
            proof = await asyncio.to_thread(prover(leases.hold).prove, model)
            with proof.own_change():
                os.link(model, model.with_name(f"link {hold}"))
            assert proof.is_sound is hold
            os.link(model, model.with_name(f"another {hold}"))
            with proof.own_change():
                model.chmod(0o400)
            assert not proof.is_sound  # the link was not ours
            proof.discard()
            leases.close()

    asyncio.run(life())


def test_outside_the_main_thread_a_file_is_held_and_no_signal_kills(model) -> None:
    async def life() -> None:
        leases = FileLeases(lambda: None)
        assert leases.open()
        proof = prover(leases.hold).prove(model)
        assert proof.is_sound
        with pytest.raises(BlockingIOError):  # and the lease's signal comes
            os.open(model, os.O_WRONLY | os.O_NONBLOCK)
        assert not proof.is_sound
        proof.discard()
        leases.close()

    in_a_thread(life)


def test_a_file_system_without_leases_is_told_apart(model, monkeypatch) -> None:
    real = fcntl.fcntl

    def refuse(descriptor, command, argument=0):
        if command == fcntl.F_SETLEASE and argument == fcntl.F_RDLCK:
            raise OSError(22, "Invalid argument")
        return real(descriptor, command, argument)

    async def life() -> None:
        # In place of a file system without leases, which a test cannot mount.
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        leases = FileLeases(lambda: None)
        leases.open()
        proof = await asyncio.to_thread(prover(leases.hold).prove, model)
        assert not proof.held
        proof.discard()
        leases.close()

    asyncio.run(life())
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL


def test_a_lease_taken_while_others_are_checked_hides_no_writer(monkeypatch) -> None:
    told = []
    leases = FileLeases(lambda: told.append(1))
    leases._held |= {101, 102}

    def looked_at(descriptor: int) -> bool:
        leases._held.add(descriptor + 100)  # as another thread does
        return descriptor != 102

    # The other thread has to act in the middle of the check.
    monkeypatch.setattr(file_lease, "is_held", looked_at)
    leases.check_leases()
    assert told == [1]
    assert leases._held == {101, 201, 202}


def test_a_file_without_a_lease_can_be_released() -> None:
    receiving, sending = os.pipe()
    release(receiving)
    assert not is_held(receiving)
    os.close(receiving)
    os.close(sending)
    assert not is_held(receiving)


def test_two_companions_in_one_process_share_the_signal_handler(model) -> None:
    async def life() -> None:
        touched = asyncio.Event()
        first, second = FileLeases(lambda: None), FileLeases(touched.set)
        assert first.open()
        assert second.open()
        gone = await asyncio.to_thread(prover(first.hold).prove, model)
        kept = await asyncio.to_thread(prover(second.hold).prove, model)
        gone.discard()
        first.close()
        with writer(model) as attacker:
            await asyncio.wait_for(touched.wait(), 30)
            kept.discard()
            await asyncio.to_thread(attacker.stdout.readline)
        second.close()

    asyncio.run(life())
    assert signal.getsignal(signal.SIGIO) == signal.SIG_DFL


def test_the_whole_companion_stops_serving_before_the_writer_gets_in(world) -> None:
    world.publish()

    async def life() -> None:
        steps = []
        companion = Companion.open(
            world.config(), state_dir=world.state, on_step=lambda step: steps.append(step.text)
        )
        async with companion:
            assert any("held against writers" in text for text in steps)
            pid = companion.status().runtime.pid
            stored = world.stored_models()[0]
            stored.chmod(0o600)
            with writer(stored) as attacker:
                # When the writer is in, nothing that serves the old bytes is left.
                assert await asyncio.to_thread(attacker.stdout.readline) == "in\n"
                assert not psutil.pid_exists(pid)
                assert companion.availability().reason is Reason.NOT_VERIFIED
                assert companion.status().runtime is None

    asyncio.run(life())
    assert world.wait_until_alone() == []


def test_a_writer_waits_until_the_real_runtime_has_ended(person) -> None:
    """The verified file has one name: Ollama's store has an empty file under a mount of it."""
    lease_break = int(Path("/proc/sys/fs/lease-break-time").read_text())
    assert person.companion("up", "--detach").returncode == 0
    status = person.status()
    runtime = psutil.Process(status["runtime"]["pid"])
    tree = [runtime, *runtime.children(recursive=True)]
    stored = person.stored_models()[0]
    names = [stored, *(f for f in person.state.rglob("sha256-*") if f.samefile(stored))]
    assert names == [stored]
    began = time.monotonic()
    stored.chmod(0o600)
    with writer(names[-1]) as attacker:
        assert attacker.stdout.readline() == "in\n"
    assert time.monotonic() - began < lease_break  # let in by the companion, not by the kernel
    assert not any(map(alive, (process.pid for process in tree)))
    after = person.status()
    assert (after["available"], after["reason"]) == (False, "not_verified")
    assert after["runtime"] is None
    # The stored bytes are not those signed for: the next start fetches them anew.
    assert person.companion("down").returncode == 0
    assert person.companion("up", "--detach").returncode == 0
