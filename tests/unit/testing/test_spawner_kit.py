"""The kit fails a spawner that does not conform: one broken spawner for each rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.errors import Reason
from companion_core.providers import CannotPlan, SpawnPlan, SpawnRequest, UnixChannel
from companion_core.testing import FakeSpawner, SpawnerAbilities, check_spawner
from companion_core.testing.spawner_kit import SPAWNER_RULES

pytestmark = pytest.mark.unit


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
    (2, type("Finder", (FakeSpawner,), {"locate": leave})()),
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
    *((11, listening(*arguments)) for arguments in ADDRESSES),
]


@pytest.mark.parametrize(("rule", "spawner"), SPAWNERS)
def test_a_spawner_that_breaks_a_rule_is_named(rule: int, spawner: Any):
    assert_breaks(rule, SPAWNER_RULES, "spawner", lambda: check_spawner(spawner, KIND))


def test_a_declared_ability_is_required():
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
