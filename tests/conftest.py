"""What every test may use."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import leak_watch
import pytest

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.runtime.isolation import probe_isolation


def pytest_configure(config: pytest.Config) -> None:
    """Search what each test writes for the secrets that it made."""
    leak_watch.install(config)


@pytest.fixture(scope="session", autouse=True)
def _hang_ups_arrive() -> None:
    """Let children get hang-ups, also where the tests themselves run under nohup."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _short_run_folder() -> Iterator[None]:
    """Give sockets a short folder, which the session removes at its end."""
    with tempfile.TemporaryDirectory(prefix="run-") as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", name)
        yield


@pytest.fixture(scope="session")
def require_tier(require_real: Callable[[str, bool], None]) -> Callable[[Tier], None]:
    """Skip, naming the tier of isolation that does not work here; none always does."""
    working: set[Tier] = set()

    def require(tier: Tier) -> None:
        if not working:
            states = probe_isolation(LiveEgress())
            working.update({Tier.NONE}, (state.tier for state in states if state.works))
        require_real(tier.value, tier in working)

    return require


@pytest.fixture
def machine() -> Iterator[Any]:
    """A folder with a model, a fake runtime's program and a supervisor; all of it goes again."""
    import runtime_parts  # noqa: PLC0415 - a test that starts nothing does without it

    with runtime_parts.machine() as made:
        yield made


@pytest.fixture(params=["asyncio", "uvloop"])
def each_event_loop(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    require_real: Callable[[str, bool], None],
) -> None:
    """Run a test's `asyncio.run` on the standard loop and on the optional one."""
    if request.param == "asyncio":
        return
    require_real("uvloop", importlib.util.find_spec("uvloop") is not None)
    import uvloop  # noqa: PLC0415 - a real part that may be missing

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)

    monkeypatch.setattr(asyncio, "run", run)


@pytest.fixture
def install_distribution(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Write a distribution as an installer leaves it; return the folder for the import path.

    Nothing is built and nothing is imported. RECORD lists every file of `files`, and those
    of `unlisted` are written beside them. Imported modules leave with the test.
    """
    before = set(sys.modules)

    def install(
        name: str,
        files: Mapping[str, str],
        entry_points: Mapping[str, str],
        *,
        group: str = "companion.runtime.v1",
        version: str = "0.1.0",
        unlisted: Mapping[str, str] = MappingProxyType({}),
        extra: Mapping[str, str] = MappingProxyType({}),
        folder: str = "site",
    ) -> Path:
        site = tmp_path / folder
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        declared = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
        metadata = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/entry_points.txt": f"[{group}]\n{declared}",
        } | {f"{info}/{path}": text for path, text in extra.items()}
        listed = {**files, **metadata}
        if f"{info}/RECORD" not in metadata:
            rows = "".join(f"{path},,\n" for path in [*listed, f"{info}/RECORD"])
            metadata[f"{info}/RECORD"] = rows
        for path, text in {**files, **metadata, **unlisted}.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text, encoding="utf-8")
        # Python would not notice a second write within one tick of the file system's clock.
        importlib.invalidate_caches()
        return site

    yield install
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
