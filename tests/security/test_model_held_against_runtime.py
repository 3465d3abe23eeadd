"""Attacker: a runtime that was taken over, and wants to be started again with other bytes (I-01).

It attacks the model through everything that it was given, undoes what would be seen, and exits.
In no tier may a runtime be started with what it wrote, nor may a flag that it sets on its
descriptors reach the companion's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runtime_parts as parts
import serving_parts
import staging_parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.manifest import ManifestModel
from companion_core.errors import Reason
from companion_core.models import proof as model_proof
from companion_core.models.store import ModelStore
from companion_core.serving.model_source import HeldModel
from companion_core.serving.served_model import ServedModel
from companion_core.testing import FakeHealthChecker

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="leases and the tiers of Linux"),
]

TAKEN_OVER = """
    if said.startswith("PY:"):
        exec(said[3:], globals())
"""

# Everything that the runtime knows of the model, and what came of each attempt.
TOOLS = """
import fcntl
path, notes = sys.argv[1], sys.argv[-1]
results = {}
def attempt(name, act):
    try:
        act()
        results[name] = "succeeded"
    except OSError as error:
        results[name] = error.strerror
    # At once, and by a rename: the companion may end this process at any moment now.
    Path(notes, "attack.new").write_text(json.dumps(results))
    Path(notes, "attack.new").rename(Path(notes, "attack.json"))
def inherited():
    if path.startswith("/proc/self/fd/"):
        return int(path.rpartition("/")[2])
    return os.open(path, os.O_RDONLY)
def write():
    for name in (path, f"/proc/self/fd/{fd}"):
        try:
            writing = os.open(name, os.O_RDWR | os.O_NONBLOCK)
        except OSError as failed:
            error = failed
        else:
            os.pwrite(writing, b"EVIL", 0)
            os.close(writing)
            return
    raise error
fd = inherited()
before = os.fstat(fd)
"""

REWRITE = """
attempt("lease given up", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK))
attempt("mode", lambda: os.fchmod(fd, 0o600))
attempt("write", write)
attempt("times", lambda: os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns)))
attempt("mode back", lambda: os.fchmod(fd, 0o400))
attempt("lease taken back", lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
os._exit(3)
"""

# Not SIGKILL: this very process plays the companion.
SIGNAL = f"""
attempt("signal", lambda: fcntl.fcntl(fd, fcntl.F_SETSIG, {int(signal.SIGUSR1)}))
attempt("mode", lambda: os.fchmod(fd, 0o600))
attempt("write", write)
os._exit(3)
"""

TOUCH = """
attempt("mode", lambda: os.fchmod(fd, 0o400))
os._exit(3)
"""


@pytest.fixture(params=[Tier.BUBBLEWRAP, Tier.LANDLOCK, Tier.NONE])
def tier(request: pytest.FixtureRequest, require_tier: Any) -> Tier:
    require_tier(request.param)
    return request.param


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cc-") as name:
        yield Path(name)


def _with_link(plan: Any, request: Any) -> Any:
    """Have the model looked for at a path in the runtime's own folder, as Ollama does."""
    place, store = request.data_dir + "/store/blobs/model", request.data_dir + "/store"
    argv = tuple(place if part == request.model_path else part for part in plan.argv)
    return replace(plan, argv=argv, model_link=place, model_copies=(place,), store=store)


class Session:
    """A companion of which only the manifest is missing, and its hostile runtime."""

    def __init__(self, folder: Path, tier: Tier, *, linked: bool) -> None:
        program = parts.write_fake_runtime(folder / "runtime")
        source, answers = program.read_text(), '    words = f"You said: {said}".split(" ")\n'
        assert answers in source
        program.write_text(source.replace(answers, TAKEN_OVER + answers))

        def with_notes(plan: Any, request: Any) -> Any:
            plan = replace(plan, argv=(*plan.argv, request.data_dir))
            return _with_link(plan, request) if linked else plan

        self.folder = folder
        self.tier = tier
        self.held = HeldModel()
        self.unwatched = asyncio.Event()
        self.serving = serving_parts.make_serving(
            folder,
            spawner=parts.FakeSpawner(alter=with_notes),
            health=FakeHealthChecker(),
            binary=str(program),
            binary_sha256=hashlib.sha256(program.read_bytes()).hexdigest(),
            tier=tier,
            timing=replace(serving_parts.QUICK, liveness_interval=3600),
        )
        self.served = ServedModel(
            self.serving,
            self.held,
            on_step=lambda _step: None,
            hurry=asyncio.Event(),
            on_unwatched=self.unwatched.set,
        )

    @property
    def stored(self) -> Path:
        return Path(self.held.model.files[0].path)

    @property
    def pid(self) -> int | None:
        return getattr(self.serving.runtime, "pid", None)

    def results(self) -> dict[str, str]:
        (notes,) = self.folder.rglob("attack.json")
        return json.loads(notes.read_text())

    def seen_by_runtime(self) -> bytes:
        (seen,) = self.folder.rglob("model.seen")
        return seen.read_bytes()

    async def attack(self, code: str) -> None:
        """Send the code; it ends the runtime, and with it the answer."""
        messages = [{"role": "user", "content": f"PY:{TOOLS}{code}"}]
        await serving_parts.post(
            self.serving, "/v1/chat/completions", {"model": "tiny", "messages": messages}
        )

    async def is_back(self, before: int | None) -> None:
        await serving_parts.until(
            lambda: self.pid not in {None, before} and self.serving.lifecycle().ok
        )

    async def has_stopped(self) -> None:
        await serving_parts.until(lambda: self.serving.status().runtime is None)
        await serving_parts.until(lambda: self.serving.watchdog.gave_up or self.held.closed)


@contextlib.asynccontextmanager
async def session(
    folder: Path, tier: Tier, *, leases: bool = True, linked: bool = False
) -> AsyncIterator[Session]:
    made = Session(folder, tier, linked=linked)
    if leases:
        assert made.held.leases.open()
    models = folder / "models"
    store = ModelStore(models, hold=made.held.leases.hold)
    model: ManifestModel = staging_parts.model_of()
    made.held.take_proof(
        await asyncio.to_thread(staging_parts.stage, models, staging_parts.good, model, store=store)
    )
    assert made.held.model.files[0].held is leases
    await made.serving.open()
    try:
        await made.served.begin()
        yield made
    finally:
        await made.served.unwatch()
        await made.serving.stop()
        await made.serving.gateway.close()
        made.held.close()


def test_a_restart_never_uses_what_the_runtime_wrote(folder, tier) -> None:
    async def life() -> None:
        async with session(folder, tier) as companion:
            before, untouched = companion.pid, companion.stored.stat()
            await companion.attack(REWRITE)
            if tier is Tier.NONE:  # it has the person's rights there, and waits for the lease
                await companion.has_stopped()
                assert not companion.served.verified
            else:
                await companion.is_back(before)
                assert companion.seen_by_runtime() == staging_parts.DATA
                assert companion.served.verified
                assert companion.held.model.files[0].held
            results = companion.results()
            assert results["lease given up"] != "succeeded"
            # Without a tier the attempt breaks the lease, which may end it before it notes that.
            assert (
                results.get("write", "ended" if tier is Tier.NONE else "succeeded") != "succeeded"
            )
            assert companion.stored.read_bytes() == staging_parts.DATA
            if tier is not Tier.NONE:  # what it is told of mode and times is not what was done
                after = companion.stored.stat()
                assert after.st_mode == untouched.st_mode
                assert after.st_mtime_ns == untouched.st_mtime_ns
                assert after.st_ctime_ns == untouched.st_ctime_ns

    asyncio.run(life())


def test_without_leases_what_it_wrote_is_found_and_never_started(folder) -> None:
    async def life() -> None:
        async with session(folder, Tier.NONE, leases=False) as companion:
            await companion.attack(REWRITE)
            await companion.has_stopped()
            assert companion.results()["write"] == "succeeded"
            assert companion.results()["times"] == "succeeded"
            assert companion.stored.stat().st_mode & 0o777 == 0o400
            assert companion.serving.watchdog.gave_up is Reason.DIGEST_MISMATCH
            assert not companion.served.verified
            assert companion.unwatched.is_set()
            # A second start fails alike, and hashes nothing.
            with pytest.raises(Exception, match="digest_mismatch"):
                await companion.serving.restart()

    asyncio.run(life())


def test_the_runtime_cannot_choose_the_leases_signal(folder, tier) -> None:
    told: list[int] = []
    earlier = signal.signal(signal.SIGUSR1, lambda number, _frame: told.append(number))

    async def life() -> None:
        async with session(folder, tier) as companion:
            before = companion.pid
            await companion.attack(SIGNAL)
            if tier is not Tier.NONE:
                await companion.is_back(before)
                companion.stored.chmod(0o600)
                with pytest.raises(BlockingIOError):
                    os.open(companion.stored, os.O_WRONLY | os.O_NONBLOCK)
            await companion.has_stopped()
            assert companion.held.wanted.is_set()  # by SIGIO
            assert told == []

    try:
        asyncio.run(life())
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@pytest.mark.parametrize("leases", [True, False])
def test_a_file_is_hashed_again_only_when_something_happened_to_it(
    folder, monkeypatch, leases
) -> None:
    hashed = []
    real = model_proof.Prover._hash

    def counted(prover: Any, descriptor: int) -> Any:
        hashed.append(descriptor)
        return real(prover, descriptor)

    async def life() -> None:
        async with session(folder, Tier.NONE, leases=leases) as companion:
            # Counts the hashes and makes each of them; a proof does not tell how it was made.
            monkeypatch.setattr(model_proof.Prover, "_hash", counted)
            # Without a lease nobody can tell: it is hashed before each start.
            each = ((0, 1, 1), (1, 2, 3))[not leases]
            for code, times in zip(("end()", TOUCH, "end()"), each, strict=True):
                before = companion.pid
                await companion.attack(code)
                await companion.is_back(before)
                assert len(hashed) == times

    asyncio.run(life())


def test_the_runtime_inherits_no_file_description_of_the_companion(folder, tier) -> None:
    """Flags, offsets and leases belong to a file description: none of the companion's is shared."""
    move = """
for number in map(int, os.listdir("/proc/self/fd")):
    attempt(f"place {number}", lambda: os.lseek(number, 7, os.SEEK_SET))
    attempt(f"append {number}", lambda: fcntl.fcntl(
        number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND | os.O_NONBLOCK))
os._exit(3)
"""

    def flags() -> dict[int, tuple[int, int | None]]:
        found = {}
        for number in (int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                place = None
                with contextlib.suppress(OSError):
                    place = os.lseek(number, 0, os.SEEK_CUR)
                found[number] = (fcntl.fcntl(number, fcntl.F_GETFL), place)
        return found

    async def life() -> None:
        async with session(folder, tier) as companion:
            model = companion.held.model.files[0].descriptor
            before, pid = flags(), companion.pid
            await companion.attack(move)
            after = flags()
            await companion.is_back(pid)
            assert after[model] == before[model]
            changed = {
                number: (before[number], after[number])
                for number in before.keys() & after.keys()
                if (after[number][0] ^ before[number][0]) & os.O_APPEND
            }
            assert changed == {}

    asyncio.run(life())


def test_files_of_a_folder_are_read_under_their_names_and_not_written(folder, tier) -> None:
    for name in ("one.gguf", "two.gguf"):
        (folder / name).write_bytes(name.encode())
        (folder / name).chmod(0o400)
    model = parts.verified_model(folder / "one.gguf", folder / "two.gguf")
    look = """
    folder = os.path.dirname(model)
    Path("seen.json").write_text(json.dumps({n: open(f"{folder}/{n}").read()
                                             for n in sorted(os.listdir(folder))}))
    writable = []
    for name in os.listdir(folder):
        try:
            os.chmod(f"{folder}/{name}", 0o600)
            os.close(os.open(f"{folder}/{name}", os.O_RDWR))
            writable.append(name)
        except OSError:
            pass
    Path("writable.json").write_text(json.dumps(writable))
"""

    async def life() -> tuple[Any, Any]:
        backend = await machine.supervisor.start(machine.spec(model=model, tier=tier))
        own = Path(backend.channel.path).parent
        found = [json.loads((own / name).read_text()) for name in ("seen.json", "writable.json")]
        await machine.supervisor.stop()
        return found[0], found[1]

    with parts.machine() as machine:
        source, start = machine.program.read_text(), '    print("started"'
        machine.program.write_text(source.replace(start, look + start))
        seen, writable = asyncio.run(life())
        assert machine.leftovers() == []
    model.close()
    assert seen == {"one.gguf": "one.gguf", "two.gguf": "two.gguf"}
    if tier is not Tier.NONE:
        assert writable == []


MOVE = """
os.rename(os.path.dirname(os.path.dirname(path)), notes + "/elsewhere")
os._exit(3)
"""

WRITE_ANYWHERE = """
found = [os.path.join(root, name) for root, _, names in os.walk(notes) for name in names]
inside = [name for name in found if os.path.samestat(os.lstat(name), os.stat(path))]
def write_to(name):
    os.close(os.open(name, os.O_RDWR | os.O_NONBLOCK))
for name in {path, *inside}:
    attempt("mode", lambda: os.chmod(name, 0o600))
    attempt(f"writing {name == path}", lambda: write_to(name))
os._exit(3)
"""


@pytest.mark.parametrize("leases", [True, False])
def test_a_runtime_has_no_name_of_the_model_where_it_may_write(folder, tier, leases) -> None:
    """Not even after it moved the folder in which its backend looks for the model."""

    async def life() -> None:
        async with session(folder, tier, leases=leases, linked=True) as companion:
            data = next(folder.rglob("store")).parent
            os.link(companion.stored, data / "of an earlier version")
            before = companion.pid
            await companion.attack(MOVE)
            await companion.is_back(before)
            assert companion.seen_by_runtime() == staging_parts.DATA
            assert companion.stored.stat().st_nlink == 1
            if tier is Tier.NONE:  # it has the person's rights there
                return
            before = companion.pid
            await companion.attack(WRITE_ANYWHERE)
            await companion.is_back(before)
            results = companion.results()
            assert set(results) == {"mode", "writing True"}
            assert results["writing True"] != "succeeded"
            assert companion.stored.read_bytes() == staging_parts.DATA
            assert companion.served.verified

    asyncio.run(life())


def test_a_mode_that_the_runtime_sets_ends_nothing(folder, tier) -> None:
    opened = TOUCH.replace("0o400", "0o666")

    async def life() -> None:
        async with session(folder, tier) as companion:
            before = companion.pid
            await companion.attack(opened)
            await companion.is_back(before)
            assert companion.stored.stat().st_mode & 0o777 == 0o400
            assert companion.served.verified

    asyncio.run(life())


def test_a_model_that_was_removed_is_not_called_verified(folder, tier) -> None:
    async def life() -> None:
        async with session(folder, tier) as companion:
            before = companion.pid
            companion.stored.unlink()
            await companion.attack("os._exit(3)")
            if tier is not Tier.BUBBLEWRAP:  # the open file is all that is needed
                await companion.is_back(before)
                return
            await companion.has_stopped()
            assert companion.serving.watchdog.gave_up is Reason.MODEL_REMOVED
            assert not companion.served.verified

    asyncio.run(life())
