"""A small world for the whole path: a publisher, two TLS hosts, and the real command line."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.util
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import real_runtimes
from download_parts import DATA, PATH
from elsewhere import Elsewhere
from runtime_parts import verified_model, within
from swap_world import publish

from companion_core.authority import publisher
from companion_core.config.reader import parse_config
from companion_core.demo.run import MODEL_FILE
from companion_core.egress.live import LiveEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.models.store import ModelStore, VerifiedModel
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import ModelHost
from companion_core.testing.tls_host import TlsHost

MODEL_PATH = f"/{MODEL_FILE.name}"
MANIFEST_PATH = "/manifest.json"
DEADLINE_SECONDS = 60


class World:
    """One publisher, its hosts, one person's machine."""

    def __init__(self, folder: Path, model_host: ModelHost, manifest_host: TlsHost, ca_file: Path):
        self.folder = folder
        self.model_host = model_host
        self.manifest_host = manifest_host
        self.ca_file = ca_file
        self.state = folder / "state"
        self.config_file = folder / "companion.toml"
        self.draft = folder / "publisher"
        self.key_file = folder / "publisher.key"
        self.public_key = publisher.init_draft(self.draft, self.key_file)
        self.content = MODEL_FILE.read_bytes()
        model_host.content = {MODEL_PATH: self.content}

    # --- the publisher ---

    def publish(self, *, url: str | None = None, content: bytes | None = None, days: int = 1):
        """Sign for the model and put the manifest on its host."""
        measured = publisher.measure(io.BytesIO(content or self.content).readinto)
        publisher.add_file(
            self.draft,
            measured,
            model_id="tiny",
            url=url or self.model_host.url(MODEL_PATH),
            model_format="gguf",
        )
        return self.sign(days=days)

    def sign(self, *, days: int = 1, now: dt.datetime | None = None) -> bytes:
        signed = publisher.sign_draft(
            self.draft,
            self.key_file,
            lifetime=dt.timedelta(days=days),
            now=now or dt.datetime.now(dt.UTC),
        )
        raw = signed.path.read_bytes()
        self.manifest_host.content = {MANIFEST_PATH: raw}
        return raw

    # --- the person ---

    def document(self, **sections):
        base = {
            "manifest": {
                "url": self.manifest_host.url(MANIFEST_PATH),
                "trusted_keys": [self.public_key],
            },
            "model": {"id": "tiny"},
            "runtime": {"threads": 1},
            "keychain": {"name": "memory"},
            "network": {"extra_ca_file": str(self.ca_file)},
        }
        return {
            name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}
        }

    def config(self, **sections):
        return parse_config(self.document(**sections))

    def configure(self, **sections) -> Path:
        lines = []
        for name, table in self.document(**sections).items():
            lines += [
                f"[{name}]",
                *(f"{key} = {json.dumps(value)}" for key, value in table.items()),
            ]
        self.config_file.write_text("\n".join(lines) + "\n")
        return self.config_file

    def argv(self, *arguments: str) -> list[str]:
        root = ("--config", str(self.config_file), "--state-dir", str(self.state))
        return [sys.executable, "-m", "companion_core", *root, *arguments]

    def companion(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            **options,
        )

    def status(self) -> dict:
        return json.loads(self.companion("status", "--json").stdout)

    def stored_models(self) -> list[Path]:
        models = self.state / "models"
        return [p for p in models.rglob("*") if p.is_file() and p.stat().st_size > 0]

    def processes(self) -> list[psutil.Process]:
        """Every process that was started for this world's state folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                named = " ".join(process.cmdline())
                with contextlib.suppress(
                    OSError
                ):  # a folder too deep for the system to name is another test's
                    named += process.cwd()
                if str(self.state) in named:
                    found.append(process)
        return found

    def wait_until_alone(self, seconds: float = 30) -> list[psutil.Process]:
        left: list[psutil.Process] = []

        def alone() -> bool:
            left[:] = self.processes()
            return not left

        within(alone, seconds)
        return left


@pytest.fixture
def world(require_real):
    require_real("xllamacpp", importlib.util.find_spec("xllamacpp") is not None)
    # Short, so that sockets fit below it and every process names it.
    folder = Path(tempfile.mkdtemp(prefix="world-"))
    authority = CertificateAuthority(folder)
    with (
        ModelHost(authority.server_context("127.0.0.1", "localhost"), {}) as model_host,
        TlsHost(authority.server_context("localhost"), {}, name="localhost") as manifest_host,
    ):
        world = World(folder, model_host, manifest_host, authority.ca_file)
        try:
            yield world
        finally:
            if world.state.exists():
                world.companion("down", "--now")
            for process in world.wait_until_alone(1):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            shutil.rmtree(folder)


@pytest.fixture
def elsewhere(tmp_path: Path, world, require_real: Callable[[str, bool], None]) -> Elsewhere:
    for part in ("pip", "hatchling"):
        require_real(part, importlib.util.find_spec(part) is not None)
    return Elsewhere(tmp_path, world)


@pytest.fixture(scope="session")
def ollama_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin as a person installs it; the tests' environment has the rest."""
    site = tmp_path_factory.mktemp("ollama-site")
    source = real_runtimes.ROOT / "plugins" / "runtime_ollama"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*command, *options, str(source)], check=True, timeout=100)
    return site


@pytest.fixture(params=real_runtimes.NAMES)
def person(request, world, require_real, monkeypatch):
    """A world whose companion is configured for one of the runtimes."""
    require_real(
        real_runtimes.missing(request.param) or "", not real_runtimes.missing(request.param)
    )
    world.publish()
    if request.param == "Ollama":
        for part in ("pip", "hatchling"):
            require_real(part, importlib.util.find_spec(part) is not None)
        monkeypatch.setenv("PYTHONPATH", str(request.getfixturevalue("ollama_site")))
        program = real_runtimes.ollama_program()
        with Path(program).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        chosen = {"name": "ollama", "binary": program, "binary_sha256": digest}
        world.configure(runtime={**chosen, "context_length": 256})
    else:
        world.configure(runtime={"name": "llamacpp", "binary": "embedded"})
    return world


@pytest.fixture
def two(world):
    """A world whose companion serves the first of two models."""
    world.publish()
    publish(world)
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    return world


@pytest.fixture
def model() -> Iterator[VerifiedModel]:
    """The demo's model, proved."""
    made = verified_model(MODEL_FILE)
    yield made
    made.close()


# --- downloads from a host of a test's own authority ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def context(authority: CertificateAuthority) -> ssl.SSLContext:
    return build_tls_context(authority.ca_file)


@pytest.fixture
def host(authority: CertificateAuthority) -> Iterator[ModelHost]:
    with ModelHost(authority.server_context(), {PATH: DATA}) as host:
        yield host


@pytest.fixture
def downloader(context: ssl.SSLContext) -> HttpsDownloader:
    return HttpsDownloader(LiveEgress(), lambda: context, idle_seconds=30)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", sleep=lambda _seconds: None)
