"""A conformance kit must fail what does not conform: one broken provider for each rule."""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason
from companion_core.models.https_downloader import HttpsDownloader
from companion_core.providers import (
    CannotPlan,
    DownloadFailed,
    DownloadRequest,
    HealthResponse,
    ProbeTarget,
    Redirect,
    ResourceObservation,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    UnixChannel,
)
from companion_core.runtime.resources import probe
from companion_core.testing import (
    FakeHealthChecker,
    FakeProbe,
    FakeSpawner,
    SpawnerAbilities,
    check_downloader,
    check_health_checker,
    check_probe,
    check_spawner,
    rulebook,
)
from companion_core.testing.downloader_kit import DOWNLOADER_RULES
from companion_core.testing.health_kit import HEALTH_RULES
from companion_core.testing.probe_kit import PROBE_RULES
from companion_core.testing.spawner_kit import SPAWNER_RULES

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulebook, "CALL_SECONDS", 20.0)


def assert_breaks(rule: int, rules: dict[int, str], seam: str, check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match=rf"^{seam} rule {rule} \(") as caught:
        check()
    assert rules[rule] in str(caught.value)
    assert "seen" in str(caught.value)
    assert "expected" in str(caught.value)


# --- spawner ---

KIND = SpawnerAbilities(chat_template=False)


class Templated(FakeSpawner):
    """Hands the chat template on."""

    def plan(self, request: Any) -> Any:
        plan = super().plan(request)
        return replace(plan, argv=(*plan.argv, str(request.chat_template)))


def spoil(**changes: Any) -> FakeSpawner:
    return FakeSpawner(alter=lambda plan, _request: replace(plan, **changes))


class Fickle(FakeSpawner):
    count = 0

    def plan(self, request: Any) -> Any:
        self.count += 1
        plan = super().plan(request)
        return replace(plan, argv=(*plan.argv, str(self.count)))


class Writing(FakeSpawner):
    def plan(self, request: Any) -> Any:
        Path(request.private_dir, "notes").write_text("x")
        return super().plan(request)


class Impure(FakeSpawner):
    """Does something beside its plan."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def plan(self, request: Any) -> Any:
        with suppress(OSError):
            self.act()
        return super().plan(request)


NOWHERE = "/nonexistent/folder/file"
ACTS = (
    lambda: Path(NOWHERE).write_text("x"),
    lambda: os.open(NOWHERE, os.O_RDWR),
    lambda: os.open(NOWHERE, os.O_RDONLY | os.O_CREAT),
    lambda: os.open(NOWHERE, os.O_WRONLY | os.O_APPEND),
    lambda: Path(NOWHERE).mkdir(),
    lambda: Path(NOWHERE).unlink(),
    lambda: Path(NOWHERE).rename("/nonexistent/other"),
    lambda: Path(NOWHERE).chmod(0o600),
    lambda: Path(NOWHERE).symlink_to("/nonexistent/other"),
    lambda: os.utime(NOWHERE),
    lambda: os.truncate(NOWHERE, 0),
    lambda: subprocess.Popen([NOWHERE]),
    lambda: os.system("true"),  # noqa: S605 - what a plan must not do
    lambda: os.kill(os.getpid(), 0),
    lambda: socket.create_connection(("127.0.0.1", 9), timeout=0.1),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: os.putenv("LAMP", "1"),
)
if sys.version_info >= (3, 12):  # no earlier Python tells of a thread
    ACTS += (lambda: threading.Thread(target=Path(NOWHERE).exists).start(),)


def listening(*arguments: str) -> FakeSpawner:
    """Return a spawner that names the channel with these arguments on TCP."""

    def alter(plan: SpawnPlan, request: SpawnRequest) -> SpawnPlan:
        if isinstance(request.channel, UnixChannel):
            return plan
        port = str(request.channel.port)
        told = tuple(text.replace("PORT", port) for text in arguments)
        return replace(plan, argv=(*plan.argv[:2], *told))

    return FakeSpawner(alter=alter)


ADDRESSES = (
    ("--host", "0.0.0.0", "--port", "PORT"),
    ("--listen=0.0.0.0:PORT",),
    ("0.0.0.0:PORT",),
    ("[::]:PORT",),
    ("--host=::", "PORT"),
    ("*:PORT",),
    (":PORT",),
    ("--listen=:PORT",),
    ("http://192.168.1.2:PORT",),
    ("localhost:PORT",),
    ("--host", "127.0.0.2", "--port", "PORT"),
    ("--port", "PORT"),  # the program's default decides
    ("127.0.0.1:PORT", "--metrics", "0.0.0.0:9090"),
    ('{"host": "0.0.0.0", "port": PORT}', "127.0.0.1:PORT"),
)


class Declining(FakeSpawner):
    reason = Reason.PLAN_REFUSED

    def plan(self, request: Any) -> Any:
        raise CannotPlan(self.reason)


class Picky(FakeSpawner):
    def plan(self, request: Any) -> Any:
        if "known" in request.options:
            request.options["known"] + 1
        return super().plan(request)


class Mutating(FakeSpawner):
    def plan(self, request: Any) -> Any:
        request.options["more"] = 1
        return super().plan(request)


class OneFile(FakeSpawner):
    def plan(self, request: Any) -> Any:
        (_,) = request.model_files
        return super().plan(request)


class Later(FakeSpawner):
    async def plan(self, request: Any) -> Any:
        return super().plan(request)


def leave(*_: object) -> None:
    raise SystemExit(0)


SPAWNERS = [
    (1, object()),
    (1, FakeSpawner(channels=frozenset())),
    (1, FakeSpawner(formats={"gguf"})),
    (1, Later()),
    (2, FakeSpawner(program="relative")),
    (2, type("Finder", (FakeSpawner,), {"locate": lambda self: ["/bin/x"]})()),
    (2, type("Finder", (FakeSpawner,), {"locate": lambda self: None})()),
    (3, FakeSpawner(alter=lambda plan, _: None)),
    (3, FakeSpawner(alter=lambda plan, _: 1 / 0)),
    (3, FakeSpawner(alter=leave)),
    (3, type("Odd", (Declining,), {"reason": Reason.OK})()),
    (3, Mutating()),
    (4, spoil(argv=("/bin/sh", "-c", "runtime"))),
    (4, spoil(env={"LD_PRELOAD": "/x.so"})),
    (4, spoil(model_link="/etc/passwd")),
    (4, spoil(start_deadline_seconds=0)),
    (5, Declining()),
    (6, Fickle()),
    (6, Writing()),
    (7, Picky()),
    (9, OneFile()),
    (10, FakeSpawner(env_names=frozenset({"FAKE_RUNTIME_KEY", "API_TOKEN"}))),
    (10, FakeSpawner(env_names=frozenset({"FAKE_RUNTIME_KEY", "PYTHONPATH"}))),
]


SPAWNERS += [(6, Impure(act)) for act in ACTS]
SPAWNERS += [(11, listening(*arguments)) for arguments in ADDRESSES]


@pytest.mark.parametrize(("rule", "spawner"), SPAWNERS)
def test_a_spawner_that_breaks_a_rule_is_named(rule: int, spawner: Any):
    assert_breaks(rule, SPAWNER_RULES, "spawner", lambda: check_spawner(spawner, KIND))


def test_what_is_declared_is_asked_for():
    assert_breaks(8, SPAWNER_RULES, "spawner", lambda: check_spawner(FakeSpawner()))
    keyless = FakeSpawner(
        env_names=frozenset(), alter=lambda plan, _request: replace(plan, backend_key_env=None)
    )
    assert_breaks(4, SPAWNER_RULES, "spawner", lambda: check_spawner(keyless, KIND))
    check_spawner(keyless, replace(KIND, open_backend=True))
    both = replace(KIND, forms=frozenset({"embedded"}))
    assert_breaks(5, SPAWNER_RULES, "spawner", lambda: check_spawner(FakeSpawner(), both))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "127.0.0.1", "--port", "PORT"),
        ("--host=127.0.0.1", "--port=PORT"),
        ("http://127.0.0.1:PORT", "--version", "1.2.3"),
        ('{"host": "127.0.0.1", "port": PORT}', "127.0.0.1:PORT"),
    ],
)
def test_the_channels_own_address_is_accepted_in_any_form(arguments: tuple[str, ...]):
    check_spawner(listening(*arguments), KIND)


def test_what_is_read_or_imported_by_a_plan_is_no_effect(tmp_path: Path):
    (tmp_path / "companion_lazy.py").write_text("x = 1\n")

    def act() -> None:
        Path("/dev/null").read_bytes()
        sys.path.insert(0, str(tmp_path))
        try:
            importlib.import_module("companion_lazy")
        finally:
            sys.path.remove(str(tmp_path))
            sys.modules.pop("companion_lazy", None)

    check_spawner(Impure(act), KIND)


def script(folder: Path, interpreter: Path | str) -> str:
    program = folder / "lamp"
    program.write_text(f"#!{interpreter}\n")
    program.chmod(0o755)
    return str(program)


def test_the_interpreter_of_a_script_must_be_readable(tmp_path: Path):
    interpreter = tmp_path / "venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("stands for an interpreter outside the system's folders")
    program = script(tmp_path, f"{interpreter} -I")
    hidden = FakeSpawner(program=program, alter=lambda plan, _: replace(plan, read_paths=()))
    assert_breaks(12, SPAWNER_RULES, "spawner", lambda: check_spawner(hidden, KIND))
    folders = (str(tmp_path / "venv"),)
    shown = FakeSpawner(program=program, alter=lambda plan, _: replace(plan, read_paths=folders))
    assert check_spawner(shown, KIND) == ()
    for line, found in (
        ("/bin/sh", True),
        ("/usr/bin/env sh", True),
        ("/usr/bin/env -S sh -e", True),
        ("/usr/bin/env nothing-of-this-name", False),
        ("", False),
    ):
        script(tmp_path, line)
        if found:
            check_spawner(hidden, KIND)
        else:
            assert_breaks(12, SPAWNER_RULES, "spawner", lambda: check_spawner(hidden, KIND))


def test_what_could_not_be_tried_is_said():
    (untried,) = check_spawner(FakeSpawner(), KIND)
    assert untried.what.startswith("rule 12: locate finds no program")
    assert untried.reason is Reason.OK


def test_spawners_that_conform_pass():
    check_spawner(Templated())
    check_spawner(FakeSpawner(), KIND)


def test_every_rule_of_a_spawner_can_be_broken():
    assert {rule for rule, _ in SPAWNERS} | {8, 12} == set(SPAWNER_RULES)


# --- health ---


class Moody(FakeHealthChecker):
    count = 0

    def judge(self, response: HealthResponse) -> bool:
        self.count += 1
        return response.status == 200 and self.count % 2 == 0


HEALTHY = HealthResponse(status=200, body=b"serving", served_model="tiny")
CHECKERS = [
    (1, FakeHealthChecker(path="health")),
    (1, FakeHealthChecker(path="/health?x=1 2")),
    (2, FakeHealthChecker(answer=1)),
    (2, FakeHealthChecker(answer=ValueError("odd"))),
    (2, FakeHealthChecker(answer=SystemExit(0))),
    (3, FakeHealthChecker(answer=True)),
    (4, Moody()),
    (5, FakeHealthChecker(answer=False)),
]


@pytest.mark.parametrize(("rule", "checker"), CHECKERS)
def test_a_health_checker_that_breaks_a_rule_is_named(rule: int, checker: Any):
    assert_breaks(rule, HEALTH_RULES, "health", lambda: check_health_checker(checker, HEALTHY))


def test_a_health_checker_that_conforms_passes():
    check_health_checker(FakeHealthChecker(), HEALTHY)
    assert {rule for rule, _ in CHECKERS} == set(HEALTH_RULES)


# --- probe ---


def observation(**changes: Any) -> ResourceObservation:
    return replace(ResourceObservation(ram_bytes=1, vram_bytes=0, cpu_percent=0.0), **changes)


class Counting(FakeProbe):
    """Believes in processes that are not there."""

    def observe(self, target: ProbeTarget) -> ResourceObservation:
        if target.pids == self.imagined:
            return observation()
        return probe.companion_probe().observe(target)


PROBES = [
    (1, object()),
    (2, FakeProbe(observation=None)),
    (2, FakeProbe(observation={"ram_bytes": 1})),
    (2, FakeProbe(observation=observation(cpu_percent=101))),
    (2, FakeProbe(observation=observation(vram_bytes=-1))),
    (2, FakeProbe(observation=observation(ram_bytes=float("nan")))),
    (3, FakeProbe(observation=observation(ram_bytes=0))),
    (4, FakeProbe()),
    (5, type("Ghosts", (Counting,), {"imagined": (2**22 + 1,)})()),
    (6, type("Ghosts", (Counting,), {"imagined": ()})()),
]


@pytest.mark.parametrize(("rule", "broken"), PROBES)
def test_a_probe_that_breaks_a_rule_is_named(rule: int, broken: Any):
    assert_breaks(rule, PROBE_RULES, "probe", lambda: check_probe(broken))


def test_the_cores_probe_conforms():
    check_probe(probe.companion_probe())
    assert {rule for rule, _ in PROBES} == set(PROBE_RULES)


# --- downloader ---


def real(ca_file: Path | None) -> HttpsDownloader:
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    return HttpsDownloader(LiveEgress(), lambda: context)


class Wrapped:
    """The real downloader with one fault; `fault` sees the request and the answer."""

    def __init__(self, ca_file: Path, **faults: Any) -> None:
        self.inner, self.faults = real(ca_file), faults

    def open(self, request: DownloadRequest) -> Any:
        if "request" in self.faults:
            request = self.faults["request"](request)
        try:
            body = self.inner.open(request)
        except Exception as error:
            if "error" not in self.faults:
                raise
            return self.faults["error"](self.inner, request, error)
        return self.faults["body"](body) if "body" in self.faults else body


class Body:
    def __init__(self, inner: Any, *, flip: bool = False, once: bool = False) -> None:
        self.inner, self.flip, self.once, self.closed = inner, flip, once, False
        self.validator = inner.validator

    def readinto(self, buffer: Any) -> int:
        count = self.inner.readinto(buffer)
        if self.flip and count:
            buffer[0] ^= 1
        return count

    def close(self) -> None:
        if self.once and self.closed:
            raise ValueError("closed twice")
        self.closed = True
        self.inner.close()


def follow(inner: Any, request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, Redirect):
        return inner.open(DownloadRequest(url=error.url))
    raise error


def leak(_inner: Any, _request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, DownloadFailed):
        raise OSError("raw") from error
    raise error


def odd_reason(_inner: Any, _request: DownloadRequest, error: Exception) -> Any:
    if isinstance(error, DownloadFailed):
        raise DownloadFailed(Reason.OK, retryable=False) from error
    raise error


def trusting(_ca_file: Path) -> HttpsDownloader:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HttpsDownloader(LiveEgress(), lambda: context)


class Decoding(Wrapped):
    """Hands coded bytes on."""

    def open(self, request: DownloadRequest) -> Any:
        from companion_core.models import https_downloader as module  # noqa: PLC0415 - patched

        judge = module._judge

        def lenient(answer: Any, url: Any, asked: DownloadRequest) -> Any:
            header = answer.header
            proxy = SimpleNamespace(
                status=answer.status,
                length=answer.length,
                close=answer.close,
                readinto=answer.readinto,
                header=lambda name: None if name == "Content-Encoding" else header(name),
            )
            return judge(proxy, url, asked)

        module._judge = lenient
        try:
            return self.inner.open(request)
        finally:
            module._judge = judge


class Padding(Body):
    """Makes up what is missing at the end."""

    padded = False

    def readinto(self, buffer: Any) -> int:
        try:
            count = super().readinto(buffer)
        except DownloadFailed:
            count = 0
        if count == 0 and not self.padded:
            self.padded = True
            buffer[:4] = b"junk"
            return 4
        return count


class PaddingShort(Padding):
    """Only where the server broke off, not after a whole body."""

    def readinto(self, buffer: Any) -> int:
        try:
            return Body.readinto(self, buffer)
        except DownloadFailed:
            if self.padded:
                return 0
            self.padded = True
            buffer[:4] = b"junk"
            return 4


DOWNLOADERS = [
    (1, lambda _ca: object()),
    (2, lambda ca: Wrapped(ca, body=lambda body: Body(body, flip=True))),
    (3, lambda ca: Wrapped(ca, error=follow)),
    (4, lambda ca: Wrapped(ca, error=leak)),
    (4, lambda ca: Wrapped(ca, error=odd_reason)),
    (5, lambda ca: Wrapped(ca, request=lambda asked: replace(asked, offset=0, validator=None))),
    (7, lambda ca: Wrapped(ca, body=PaddingShort)),
    (8, Decoding),
    (9, trusting),
    (10, lambda ca: Wrapped(ca, body=lambda body: Body(body, once=True))),
]


@pytest.mark.parametrize(("rule", "make"), DOWNLOADERS)
def test_a_downloader_that_breaks_a_rule_is_named(rule: int, make: Any):
    assert_breaks(rule, DOWNLOADER_RULES, "downloader", lambda: check_downloader(make))


def test_a_downloader_that_takes_any_range_is_named(monkeypatch: pytest.MonkeyPatch):
    from companion_core.models import https_downloader as module  # noqa: PLC0415 - patched

    monkeypatch.setattr(module, "_resumes", lambda answer, offset: True)
    assert_breaks(6, DOWNLOADER_RULES, "downloader", lambda: check_downloader(real))


def test_the_cores_downloader_conforms():
    check_downloader(real)
    assert {rule for rule, _ in DOWNLOADERS} | {6} == set(DOWNLOADER_RULES)


def test_a_call_that_hangs_breaks_the_rule_it_hangs_in(monkeypatch: pytest.MonkeyPatch):
    import threading  # noqa: PLC0415 - this test only

    monkeypatch.setattr(rulebook, "CALL_SECONDS", 0.2)
    never = threading.Event()

    class Hanging(FakeSpawner):
        def locate(self) -> list[RuntimeBinary]:
            never.wait(30)
            return []

    try:
        assert_breaks(2, SPAWNER_RULES, "spawner", lambda: check_spawner(Hanging(), KIND))
    finally:
        never.set()


def test_the_kit_needs_no_pytest():
    import subprocess  # noqa: PLC0415 - this test only
    import sys  # noqa: PLC0415 - as above

    code = "import sys, companion_core.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
