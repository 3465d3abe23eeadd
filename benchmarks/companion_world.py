"""A publisher, its hosts and one person's machine, on which a real companion serves.

The companion is the command line in a process of its own, with two models in its manifest. Its
environment is one of its own too, in which any of the runtimes can be installed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from companion_core.authority import publisher
from companion_core.demo.run import MODEL_FILE
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import ModelHost
from companion_core.testing.tls_host import TlsHost

__all__ = ["MODELS", "ROOT", "Companion", "World", "world"]

ROOT: Final = Path(__file__).resolve().parents[1]
# Both of one content, but for zeros after the second one's end, which runtimes ignore.
MODELS: Final = ("tiny", "other")
_MANIFEST_PATH: Final = "/manifest.json"
_PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--quiet")
_COMMAND_SECONDS: Final = 120.0
# The most that the configuration allows; what is looked for is not a limit of these.
_PER_MINUTE: Final = 1_000_000


class World:
    """One publisher, its hosts, one person's machine.

    Attributes:
        folder: holds everything, the environment and the state too.
        state: the companion's state folder.
        model_host: serves the models.
        environment: variables that each command gets besides this program's.
    """

    def __init__(
        self, folder: Path, model_host: ModelHost, manifest_host: TlsHost, ca_file: Path
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.model_host = model_host
        self.environment: dict[str, str] = {}
        self._manifest_host = manifest_host
        self._ca_file = ca_file
        self._python = Path(sys.executable)
        self._public_key = self._publish()

    def _publish(self) -> str:
        draft, key_file = self.folder / "publisher", self.folder / "publisher.key"
        public_key = publisher.init_draft(draft, key_file)
        content = MODEL_FILE.read_bytes()
        for number, name in enumerate(MODELS):
            signed = content + bytes(64 * number)
            self.model_host.content = {**self.model_host.content, f"/{name}.gguf": signed}
            publisher.add_file(
                draft,
                publisher.measure(io.BytesIO(signed).readinto),
                model_id=name,
                url=self.model_host.url(f"/{name}.gguf"),
                model_format="gguf",
            )
        signed_draft = publisher.sign_draft(
            draft, key_file, lifetime=dt.timedelta(days=30), now=dt.datetime.now(dt.UTC)
        )
        self._manifest_host.content = {_MANIFEST_PATH: signed_draft.path.read_bytes()}
        return public_key

    def make_environment(self, trees: Sequence[Path]) -> None:
        """Install plugins into an environment of their own; it shares the core's dependencies."""
        home = self.folder / "venv"
        venv.create(home, with_pip=False)
        self._python = home / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = home / "lib" / version / "site-packages"
        shared = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (site / "shared.pth").write_text("\n".join(dict.fromkeys(shared)) + "\n")
        wheels = self.folder / "wheels"
        build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir"]
        _run_pip(*build, wheels, *trees)
        install = ["--python", str(self._python), "install", "--no-deps", "--no-index"]
        _run_pip(*install, *wheels.glob("*.whl"))

    def configure(self, **sections: Mapping[str, Any]) -> None:
        """Write the configuration; a section is added to what every companion here has."""
        document: dict[str, dict[str, Any]] = {
            "manifest": {
                "url": self._manifest_host.url(_MANIFEST_PATH),
                "trusted_keys": [self._public_key],
            },
            "model": {"id": MODELS[0]},
            "runtime": {"threads": 1},
            "keychain": {"name": "memory"},
            "gateway": {"requests_per_minute": _PER_MINUTE, "port": free_port()},
            "network": {"extra_ca_file": str(self._ca_file)},
        }
        lines = []
        for name in dict.fromkeys([*document, *sections]):
            table = {**document.get(name, {}), **sections.get(name, {})}
            lines += [
                f"[{name}]",
                *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
            ]
        (self.folder / "companion.toml").write_text("\n".join(lines) + "\n")

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line of one command."""
        root = ["--config", str(self.folder / "companion.toml"), "--state-dir", str(self.state)]
        return [str(self._python), "-m", "companion_core", *root, *arguments]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            self.argv(*arguments),
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
            env={**os.environ, **self.environment},
        )

    def processes(self) -> list[psutil.Process]:
        """Return every living process that names the state folder, or works in it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if str(self.state) in " ".join([*process.cmdline(), process.cwd()]):
                    found.append(process)
        return found


class Companion:
    """A companion that serves, in the foreground of a process of its own.

    Args:
        world: where it serves.
        program: the source of a program that runs the command line, in place of the usual one.
        environment: variables that it alone gets.

    Attributes:
        process: itself.
        token: of the session.
        port: of the gateway.
    """

    def __init__(
        self, world: World, *, program: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self._world = world
        argv = world.argv("up", "--json")
        if program:
            argv[1:3] = ["-c", program]
        self._errors = (world.folder / "companion.stderr").open("w+")
        self.process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **world.environment, **(environment or {})},
        )
        if self.process.stdout is None or not self.process.stdout.readline():
            self.process.wait()
            raise SystemExit(f"the companion does not serve: {self.errors()}")
        self.token = world.command("token").stdout.strip()
        self.port = int(self.status()["gateway"]["url"].rpartition(":")[2].partition("/")[0])

    def status(self) -> dict[str, Any]:
        """Return what `companion status --json` prints; nothing where it fails."""
        done = self._world.command("status", "--json")
        document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return document

    @property
    def runtime_pid(self) -> int | None:
        """The runtime's process id, from the companion's own record; None without one."""
        runtime = self.status().get("runtime")
        return None if not runtime else int(runtime["pid"])

    def answers_by_reason(self) -> dict[str, int]:
        """Return how many answers `companion metrics` counted, by reason."""
        counts: dict[str, int] = {}
        for line in self._world.command("metrics").stdout.splitlines():
            if line.startswith("companion_request_seconds_count"):
                reason = line.partition('reason="')[2].partition('"')[0]
                counts[reason] = counts.get(reason, 0) + int(line.rpartition(" ")[2])
        return counts

    def runtime_log(self) -> str:
        """Return everything that the runtime said."""
        logs = sorted(self._world.state.rglob("runtime*.log*"))
        return "".join(log.read_text(errors="replace") for log in logs)

    def errors(self) -> str:
        """Return what the companion wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> list[str]:
        """Take it down; return what is left of it, in words."""
        left = []
        if self.process.poll() is None and self._world.command("down").returncode != 0:
            left.append("`companion down` failed")
        try:
            self.process.wait(_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            left.append("the companion did not end")
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 10
        while (living := self._world.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in living:
            with contextlib.suppress(psutil.Error):
                left.append(f"a process was left: {process.name()}")
                process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()
        return left


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Make the world in a folder with a short name; on leaving, nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="world-"))
    try:
        authority = CertificateAuthority(folder)
        with (
            ModelHost(authority.server_context("127.0.0.1"), {}) as model_host,
            TlsHost(authority.server_context("localhost"), {}, name="localhost") as manifest_host,
        ):
            yield World(folder, model_host, manifest_host, authority.ca_file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_pip(*arguments: str | Path) -> None:
    command: list[str | Path] = [sys.executable, *_PIP, *arguments]
    subprocess.run(command, check=True, timeout=_COMMAND_SECONDS)


def free_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
