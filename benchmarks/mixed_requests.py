"""Mixed requests through a real companion to each real backend, and every 502 counted.

    python benchmarks/mixed_requests.py BACKEND=REQUESTS ... [--clients N] [--seed N]

BACKEND is `llamacpp`, `ollama` (COMPANION_TEST_OLLAMA names the program), `llama-server`
(COMPANION_TEST_LLAMA_SERVER), or a Python server, which is what `companion plugins new runtime`
writes: `python` as it is, `python-idle` which closes an idle connection after a few milliseconds,
`python-closes` which closes after each answer without saying so, and `python-breaks` which hangs up
on some requests after it has read them, and records which. Only the last one may cause a 502, and
only for a request that it has recorded.

Half of the requests ask for a whole answer, a third for a stream, and in the others the client
leaves: at once, a moment later, or after the first byte. A 502, a cut-off answer or a silence is
the backend's own if that has recorded it, or if the runtime had to be replaced around that time.
The exit code is 1 if any other came, if an answer was another request's, or if something of the
companion was left.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asking import OK, Asker, Leave, NoAnswer
from companion_world import MODELS, ROOT, Companion, World, world

from companion_core.cli.foreground import run_event_loop

BAD_GATEWAY: Final = 502
# A refused client asks again as long as that.
PATIENCE_SECONDS: Final = 120.0
COLUMNS: Final = (
    "backend",
    "requests",
    "whole",
    "streams",
    "cancelled by the client",
    "502",
    "of them the backend's",
    "silent or cut off",
    "runtime replaced",
    "a second",
    "slowest, s",
)
# How often it is looked which runtime serves.
WATCH_SECONDS: Final = 3.0
# A client hears of a hang after so long; the watchdog needs longer to be sure of one.
SILENCE_SECONDS: Final = 60.0
REPLACING_SECONDS: Final = 180.0
# How often a client connects anew, and pauses, between two requests.
RECONNECTS: Final = 0.05
PAUSES: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 0.1

# How the Python servers differ from what the template writes: lines of their handler.
MANNERS: Final = {
    "python": "",
    "python-idle": "    timeout = 0.02\n",
    "python-closes": """
    def do_POST(self) -> None:
        super().do_POST()
        self.close_connection = True
""",
    "python-breaks": """
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = int(json.loads(body)["messages"][-1]["content"].split()[-1])
        if number % 50 == 0:
            print("hung up on", number, flush=True)
            self.close_connection = True
            return
        self.rfile = io.BytesIO(body)
        super().do_POST()
        self.rfile = self.connection.makefile("rb", -1)
""",
}


@dataclass
class Count:
    """What became of the requests.

    Attributes:
        wrong: an answer that is not to this request, by its number.
        bad_gateways: the numbers of the requests that were answered with 502.
        failed_at: when a request failed, its number, and how.
        replaced_at: when the runtime was seen to be another than before.
    """

    whole: int = 0
    streams: int = 0
    cancelled: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[int] = field(default_factory=list)
    bad_gateways: list[int] = field(default_factory=list)
    failed_at: list[tuple[float, int, str]] = field(default_factory=list)
    replaced_at: list[float] = field(default_factory=list)
    gave_up: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


class Mix:
    """Clients that send so many mixed requests together.

    Args:
        companion: where they ask.
        requests: how many.
        clients: at once.
        chance: decides what each request is.
        repeats: the backend repeats what it was told, so an answer shows whose it is.
    """

    def __init__(
        self,
        companion: Companion,
        requests: int,
        clients: int,
        chance: random.Random,
        *,
        repeats: bool,
    ) -> None:
        self.count = Count()
        self._companion = companion
        self._left = iter(range(1, requests + 1))
        self._clients = clients
        self._chance = chance
        self._repeats = repeats

    async def run(self) -> Count:
        """Send them all."""
        begun = time.monotonic()
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._be_client() for _ in range(self._clients)))
        self.count.seconds = time.monotonic() - begun
        await asyncio.sleep(WATCH_SECONDS)
        watching.cancel()
        return self.count

    async def _watch(self) -> None:
        before = await asyncio.to_thread(lambda: self._companion.runtime_pid)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = await asyncio.to_thread(lambda: self._companion.runtime_pid)
            if now != before:
                before = now
                self.count.replaced_at.append(time.monotonic())

    async def _be_client(self) -> None:
        asker = Asker(self._companion.port, self._companion.token, silence=SILENCE_SECONDS)
        for number in self._left:
            await self._settle(asker, number)
            if self._chance.random() < RECONNECTS:
                await asker.close()
            if self._chance.random() < PAUSES:  # the backend's connections may become idle
                await asyncio.sleep(self._chance.random() * LONGEST_PAUSE_SECONDS)
        await asker.close()

    async def _settle(self, asker: Asker, number: int) -> None:
        """Ask until there is an answer, as a client with retries does."""
        count, chance = self.count, self._chance
        kind = chance.choices(("whole", "stream", "cancelled"), (50, 34, 16))[0]
        stream = kind == "stream" or (kind == "cancelled" and chance.random() < 0.5)  # noqa: PLR2004 - a half
        body: dict[str, Any] = {
            "model": MODELS[0],
            "messages": [{"role": "user", "content": f"Repeat {number}"}],
            "max_tokens": chance.randint(1, 4),
            "stream": stream,
        }
        leave = None
        if kind == "cancelled":
            leave = chance.choice(
                (Leave(0), Leave(chance.random() / 50), Leave(chance.random() / 200, begun=True))
            )
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE_SECONDS:
            try:
                answer = await asker.ask(body, leave)
            except NoAnswer as error:
                count.failed_at.append((time.monotonic(), number, str(error)))
                return
            if answer is None:
                count.cancelled += 1
                return
            if answer.status == OK:
                count.whole += not stream
                count.streams += stream
                count.slowest = max(count.slowest, time.monotonic() - begun)
                if self._repeats and answer.text != f"You said: Repeat {number}":
                    count.wrong.append(number)
                return
            count.refused[f"{answer.status} {answer.code}"] += 1
            if answer.status == BAD_GATEWAY:
                count.bad_gateways.append(number)
                count.failed_at.append((time.monotonic(), number, "502"))
                return
            await asyncio.sleep(answer.retry_after or 0.1)
        count.gave_up += 1


def write_python_server(folder: Path, name: str) -> Path:
    """Write the template's plugin with the manners of `name`; return its tree."""
    short = name.replace("-", "_")
    command = [sys.executable, "-m", "companion_core", "plugins", "new", "runtime", name]
    subprocess.run([*command, "--into", str(folder)], check=True, stdout=subprocess.DEVNULL)
    tree = folder / f"companion-runtime-{name}"
    (server,) = tree.rglob("server.py")
    source = server.read_text()
    if MANNERS[name]:
        source = source.replace("import json\n", "import io\nimport json\n")
        manners = f"class Mannered(Handler):\n{MANNERS[name]}\n\nclass UnixServer("
        source = source.replace("class UnixServer(", manners)
        source = source.replace('"Bound", (Handler,)', '"Bound", (Mannered,)')
        if "Mannered(Handler)" not in source or "(Mannered,)" not in source:
            raise SystemExit(f"the template of {short} has changed: {server}")
    server.write_text(source)
    return tree


def prepare(at: World, name: str) -> None:
    """Install the backend's plugin, trust it and configure it."""
    runtime: dict[str, Any] = {"threads": 1}
    if name in MANNERS:
        tree = write_python_server(at.folder, name)
        at.make_environment([tree])
        runtime |= {"name": name}
    elif name == "ollama":
        program = os.environ.get("COMPANION_TEST_OLLAMA") or shutil.which("ollama") or ""
        at.make_environment([ROOT / "plugins" / "runtime_ollama"])
        runtime |= {"name": "ollama", "context_length": 256, **chosen(program, name)}
    elif name == "llama-server":
        program = os.environ.get("COMPANION_TEST_LLAMA_SERVER") or ""
        runtime |= {"name": "llamacpp", "context_length": 512, **chosen(program, name)}
    elif name == "llamacpp":
        runtime |= {"name": "llamacpp", "binary": "embedded", "context_length": 512}
    else:
        raise SystemExit(f"no backend has the name {name}")
    at.configure(runtime=runtime, gateway={"max_in_flight": 4, "queue_bound": 64})
    if name in MANNERS:
        done = at.command("plugins", "trust", name, "--yes")
        if done.returncode != 0:
            raise SystemExit(done.stderr)


def chosen(program: str, name: str) -> dict[str, str]:
    """Return the configuration's two lines for a program."""
    if not os.access(program, os.X_OK):
        raise SystemExit(f"{name}: its program is not here")
    with Path(program).open("rb") as file:
        return {"binary": program, "binary_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def drive(name: str, requests: int, clients: int, seed: int) -> bool:
    """Run one backend, print its row and what was wrong; return whether nothing was."""
    with world() as at:
        prepare(at, name)
        companion = Companion(at)
        try:
            chance = random.Random(seed)  # noqa: S311 - a mix, no secret
            mix = Mix(companion, requests, clients, chance, repeats=name in MANNERS)
            count = run_event_loop(mix.run())
            recorded = set(map(int, re.findall(r"hung up on (\d+)", companion.runtime_log())))
            counted = companion.answers_by_reason()
        finally:
            left = companion.close()
    others = [
        how
        for at_time, number, how in count.failed_at
        if number not in recorded and not was_replaced(count, at_time)
    ]
    caused = len(count.bad_gateways) - others.count("502")
    wrong = [
        f"{many} requests failed ({how}) that the backend did not fail"
        for how, many in collections.Counter(others).items()
    ]
    if count.wrong:
        wrong.append(f"{len(count.wrong)} answers of another request")
    if count.gave_up:
        wrong.append(f"{count.gave_up} requests were refused for {PATIENCE_SECONDS:.0f} s")
    wrong += left
    answered = count.whole + count.streams
    silent = sum(how != "502" for _, _, how in count.failed_at)
    print(
        f"| {name} | {requests:,} | {count.whole:,} | {count.streams:,} | {count.cancelled:,} "
        f"| {len(count.bad_gateways):,} | {caused:,} | {silent} "
        f"| {len(count.replaced_at)} | {requests / count.seconds:,.0f} "
        f"| {count.slowest:.2f} |",
        flush=True,
    )
    note = dict(count.refused) | {
        f"metrics: {reason}": number for reason, number in counted.items()
    }
    print(f"  {name}: {answered:,} answered; {note}", file=sys.stderr, flush=True)
    for each in wrong:
        print(f"  {name}: {each}", file=sys.stderr, flush=True)
    return not wrong


def was_replaced(count: Count, failed_at: float) -> bool:
    """Return whether the runtime was replaced around that time."""
    return any(
        -SILENCE_SECONDS <= replaced - failed_at <= REPLACING_SECONDS
        for replaced in count.replaced_at
    )


def main() -> int:
    """Run as told; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("backends", nargs="+", metavar="BACKEND=REQUESTS")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.clients} clients", flush=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    good = True
    for each in options.backends:
        name, _, requests = each.partition("=")
        good &= drive(name, int(requests), options.clients, options.seed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
