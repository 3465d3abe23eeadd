"""Soak a real companion in faults for so many seconds, and account for every request.

    python benchmarks/soak.py [SECONDS] [--seed N] [--clients N]

Clients ask the embedded llama.cpp for whole answers and streams, and leave some of them; each tries
again as the SDKs do. Meanwhile one fault follows on the other (`soak_faults.py`), in an order that
the seed decides, which is printed. At the end a table says what became of the requests and what the
companion held.

The exit code is 1 if a request was lost: not answered within `PATIENCE_SECONDS` of retries, or
refused for good; if a 5xx came while nothing was wrong; if an answer was another than the same
question had before; if what the companion holds has grown; or if anything of it is left.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import math
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asking import OK, Answer, Asker, Leave, NoAnswer
from companion_world import MODELS, Companion, World, world
from soak_faults import Clock, Faults, Keyring, small_disk

from companion_core.cli.foreground import run_event_loop

PATIENCE_SECONDS: Final = 120.0
# A connection that fails and a fault may be seen in the other order.
AFTERMATH_SECONDS: Final = 5.0
# A process that was killed is gone a moment later.
NOTICED_SECONDS: Final = 0.3
# The companion comes to rest: connections that are idle are closed.
REST_SECONDS: Final = 4.0
# What the SDKs of OpenAI and Anthropic try again, besides every status from 500 on.
AGAIN: Final = frozenset({408, 409, 429})
SERVER_ERROR: Final = 500
NOT_SERVED: Final = "model_not_served"
LONG_RUN_SECONDS: Final = 120.0
QUESTIONS: Final = tuple(f"What are you? {number}" for number in range(8))
# The most by which it may have grown. Worker threads are made when they are first needed, up to
# four more than the machine has processors; of memory, Python keeps what it may need again.
MAY_GROW: Final = {"descriptors": 2, "tasks": 1, "threads": 8, "memory, MiB": 12}

# Runs the command line, and writes on SIGUSR2 what its process holds.
PROGRAM: Final = """
import asyncio, json, os, signal, sys
from pathlib import Path

def tell(*_):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = {
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "threads": len(os.listdir("/proc/self/task")),
        "tasks": len(asyncio.all_tasks()),
        "memory, MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
    }
    there = Path(os.environ["SOAK_HELD"])
    there.with_suffix(".new").write_text(json.dumps(held))
    there.with_suffix(".new").replace(there)

signal.signal(signal.SIGUSR2, tell)
from companion_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Account:
    """What became of the requests.

    Attributes:
        saved: requests that were answered after a refusal or a failure, by the first one's name.
        unexplained: each 5xx, cut-off answer or silence while nothing was wrong.
        lost: the requests that no retry saved.
        other: answers that differ from what the same question was answered before.
        newest: when the newest request that is answered was sent.
    """

    answered: int = 0
    streams: int = 0
    left: int = 0
    saved: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    unexplained: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    other: int = 0
    slowest: float = 0.0
    slowest_in: str = ""
    stall: float = 0.0
    stall_in: str = ""
    newest: float = 0.0
    last_answer: float = field(default_factory=time.monotonic)


class Soak:
    """The clients, the faults and what is counted, around one companion."""

    def __init__(self, companion: Companion, faults: Faults, clients: int, held: Path) -> None:
        self.account = Account()
        self.samples: list[tuple[str, dict[str, float]]] = []
        self.happened: collections.Counter[str] = collections.Counter()
        self._companion = companion
        self._faults = faults
        self._clients = clients
        self._held = held
        self._going = asyncio.Event()
        self._resting = asyncio.Event()
        self._busy = 0
        self._fault = ""
        self._fault_ended = -math.inf
        self._model = MODELS[0]
        self._texts: dict[tuple[str, int], str] = {}
        self._number = 0

    async def run(self, seconds: float, chance: random.Random) -> None:
        """Soak it."""
        clients = [
            asyncio.create_task(self._be_client(random.Random(chance.random())))  # noqa: S311 - a mix, no secret
            for _ in range(self._clients)
        ]
        try:
            await self._warm_up()
            await self._sample("start, at rest", rest=True)
            began = time.monotonic()
            self.account.last_answer = began
            minutes = asyncio.create_task(self._sample_each_minute(began))
            await self._harm(began + seconds, chance)
            minutes.cancel()
            await self._sample("end, at rest", rest=True)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    # --- faults -----------------------------------------------------------------------------

    async def _warm_up(self) -> None:
        """Have everything happen once that makes what is kept: a swap there and back, a restart."""
        self._going.set()
        for fault in (self._faults.kill_runtime, self._faults.swap, self._faults.swap):
            await self._do(fault)

    async def _harm(self, until: float, chance: random.Random) -> None:
        deck: list[Any] = []
        while time.monotonic() < until and self._companion.process.poll() is None:
            if not deck:
                deck = self._faults.all.copy()
                chance.shuffle(deck)
            fault = deck.pop()
            await self._faults.before(fault)
            await self._do(fault)
            await asyncio.sleep(0.5 if self._faults.short else chance.uniform(1, 4))
        if self._companion.process.poll() is not None:
            self._faults.wrong.append(f"the companion ended: {self._companion.errors()[-500:]}")

    async def _do(self, fault: Any) -> None:
        name = fault.__name__.replace("_", " ")
        self._fault = name
        began = time.monotonic()
        before = self.account.failures.copy()
        words = await fault()
        harmed = time.monotonic()
        served = await self._until_served(harmed)
        self._fault, self._fault_ended = "", time.monotonic()
        self.happened[name] += 1
        print(
            f"{name} {words}: held {harmed - began:.1f} s, served {served:.1f} s after it; "
            f"{words_of(self.account.failures - before)}",
            file=sys.stderr,
            flush=True,
        )

    async def _until_served(self, began: float) -> float:
        """Wait until a request of later than `began` is answered; return how long that took."""
        began += NOTICED_SECONDS
        while time.monotonic() - began < PATIENCE_SECONDS:
            if self._companion.process.poll() is not None:
                break
            if self.account.newest > began:
                break
            await asyncio.sleep(0.02)
        return time.monotonic() - began + NOTICED_SECONDS

    # --- what it holds ------------------------------------------------------------------------

    async def _sample_each_minute(self, began: float) -> None:
        for minute in range(1, 10**6):
            await asyncio.sleep(began + 60 * minute - time.monotonic())
            await self._sample(f"minute {minute}, {self._fault or 'no fault'}", rest=False)

    async def _sample(self, name: str, *, rest: bool) -> None:
        if rest:
            self._going.clear()
            while self._busy:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(REST_SECONDS)
        self._held.unlink(missing_ok=True)
        self._companion.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 15
        while not self._held.exists() and time.monotonic() < deadline:  # noqa: ASYNC110 - it comes from another process
            await asyncio.sleep(0.05)
        if self._held.exists():
            self.samples.append((name, json.loads(self._held.read_text())))
        if rest:
            self.account.last_answer = time.monotonic()
            self._going.set()

    def grown(self) -> list[str]:
        """Return what has grown from the start to the end, in words."""
        if len(self.samples) < 2:  # noqa: PLR2004 - a start and an end
            return ["what it holds was not told"]
        first, last = self.samples[0][1], self.samples[-1][1]
        return [
            f"{name} grew from {first[name]} to {last[name]}"
            for name, allowed in MAY_GROW.items()
            if last[name] > first[name] + allowed
        ]

    # --- requests -----------------------------------------------------------------------------

    async def _be_client(self, chance: random.Random) -> None:
        asker = Asker(self._companion.port, self._companion.token, silence=60.0)
        try:
            while True:
                await self._going.wait()
                self._busy += 1
                try:
                    await self._settle(asker, chance)
                finally:
                    self._busy -= 1
                if chance.random() < 0.1:  # noqa: PLR2004 - some clients connect anew
                    await asker.close()
                await asyncio.sleep(chance.random() / 10)
        finally:
            await asker.close()

    async def _settle(self, asker: Asker, chance: random.Random) -> None:
        """Ask one question until it is answered, as a client with retries does."""
        kind = chance.choices(("whole", "stream", "left"), (45, 40, 15))[0]
        question, tokens = chance.choice(QUESTIONS), chance.randint(1, 24)
        leave = Leave(chance.random() / 10, begun=chance.random() < 0.5) if kind == "left" else None  # noqa: PLR2004 - a half
        began = time.monotonic()
        first = ""
        while time.monotonic() - began < PATIENCE_SECONDS:
            body = {
                "model": self._model,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": kind != "whole",
            }
            pause, sent = 0.2, time.monotonic()
            try:
                answer = await asker.ask(body, leave)
            except NoAnswer as error:
                failure = str(error)
                self._note_failure(failure, kept=failure != "silence")
            else:
                if answer is None:
                    self.account.left += 1
                    return
                if answer.status == OK:
                    asked = question, tokens
                    stream = kind == "stream"
                    self._note_answer(answer, asked, began, sent, first=first, stream=stream)
                    return
                failure = f"{answer.status} {answer.code}"
                self._note_failure(failure, kept=False)
                if answer.code == NOT_SERVED:
                    with contextlib.suppress(NoAnswer):
                        self._model = (await asker.models())[0]
                elif not (answer.status in AGAIN or answer.status >= SERVER_ERROR):
                    self.account.lost.append(f"{failure} in {self._fault or 'no fault'}")
                    return
                pause = answer.retry_after or pause
            first = first or failure
            await asyncio.sleep(min(pause, 8.0))
        self.account.lost.append(f"no answer after {first} in {self._fault or 'no fault'}")

    def _note_failure(self, failure: str, *, kept: bool) -> None:
        """Count it; while nothing is wrong, only a refusal that asks to wait may come."""
        account = self.account
        account.failures[failure] += 1
        calm = not self._fault and time.monotonic() - self._fault_ended > AFTERMATH_SECONDS
        loud = kept or failure == "silence" or failure.startswith(("500", "502", "504"))
        if calm and loud:
            account.unexplained.append(failure)

    def _note_answer(
        self,
        answer: Answer,
        asked: tuple[str, int],
        began: float,
        sent: float,
        *,
        first: str,
        stream: bool,
    ) -> None:
        account, now = self.account, time.monotonic()
        account.answered += 1
        account.streams += stream
        if first:
            account.saved[first] += 1
        known = self._texts.setdefault(asked, answer.text)
        account.other += known != answer.text
        where = self._fault or "no fault"
        if now - began > account.slowest:
            account.slowest, account.slowest_in = now - began, where
        if now - account.last_answer > account.stall:
            account.stall, account.stall_in = now - account.last_answer, where
        account.last_answer = now
        account.newest = max(account.newest, sent)


def report(soak: Soak, faults: Faults, left: list[str]) -> bool:
    """Print the table; return whether nothing was wrong."""
    account = soak.account
    failed = sum(account.failures.values())
    rows = [
        ("requests answered", f"{account.answered:,}, {account.streams:,} of them streams"),
        ("left by the client itself", f"{account.left:,}"),
        ("refusals and failures on the way", f"{failed:,}: {words_of(account.failures)}"),
        ("requests that a retry saved", f"{account.saved.total():,}"),
        ("lost", f"{len(account.lost)} {words_of(collections.Counter(account.lost))}"),
        ("failures while nothing was wrong", f"{len(account.unexplained)} "
         f"{words_of(collections.Counter(account.unexplained))}"),
        ("answers other than before", str(account.other)),
        ("longest time without any answer", f"{account.stall:.1f} s ({account.stall_in})"),
        ("slowest request", f"{account.slowest:.1f} s ({account.slowest_in})"),
        ("faults", words_of(soak.happened)),
        ("not tried, for want of", "; ".join(faults.missing) or "nothing"),
    ]  # fmt: skip
    print("| | |\n|---|---|")
    for name, words in rows:
        print(f"| {name} | {words} |")
    print(f"\n| the companion holds | {' | '.join(MAY_GROW)} |\n|---|{'---|' * len(MAY_GROW)}")
    for name, held in soak.samples:
        print(f"| {name} | {' | '.join(str(held[each]) for each in MAY_GROW)} |")
    wrong = [*faults.wrong, *soak.grown(), *left]
    wrong += [f"lost: {each}" for each in account.lost]
    wrong += [f"while nothing was wrong: {each}" for each in account.unexplained]
    if account.other:
        wrong.append(f"{account.other} answers differ from the first to the same question")
    print()
    for each in wrong:
        print(f"WRONG: {each}")
    if not wrong:
        print("Nothing was lost and nothing has grown.")
    return not wrong


def words_of(counts: collections.Counter[str]) -> str:
    """Return the counts as a sentence's part."""
    return ", ".join(f"{number} {name}" for name, number in counts.most_common())


def soak_in(at: World, seconds: float, clients: int, chance: random.Random) -> bool:
    """Soak one companion in this world; return whether nothing was wrong."""
    clock = Clock(at.folder)
    tools = ("gnome-keyring-daemon", "dbus-daemon")
    keyring = Keyring(at.folder) if all(map(shutil.which, tools)) else None
    keychain = {"name": "memory"} if keyring is None else {"name": "linux"}
    with contextlib.ExitStack() as stack:
        if keyring is not None:
            stack.callback(keyring.close)
            at.environment = dict(keyring.environment)
        disk_is_small = stack.enter_context(small_disk(at.state))
        at.configure(
            runtime={"name": "llamacpp", "binary": "embedded", "context_length": 512, "threads": 1},
            gateway={"max_in_flight": 4, "queue_bound": 16},
            keychain=keychain,
        )
        held = at.folder / "held.json"
        companion = Companion(
            at, program=PROGRAM, environment={**clock.environment, "SOAK_HELD": str(held)}
        )
        left: list[str] = []
        try:
            faults = Faults(at, companion, chance, clock, keyring, disk_is_small=disk_is_small)
            faults.short = seconds < LONG_RUN_SECONDS
            soak = Soak(companion, faults, clients, held)
            run_event_loop(soak.run(seconds, chance))
        finally:
            left = companion.close()
        return report(soak, faults, left)


def main() -> int:
    """Run as told; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seconds", nargs="?", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.clients} clients, {options.seconds:.0f} s", flush=True)
    with world() as at:
        chance = random.Random(options.seed)  # noqa: S311 - a mix, no secret
        return 0 if soak_in(at, options.seconds, options.clients, chance) else 1


if __name__ == "__main__":
    sys.exit(main())
