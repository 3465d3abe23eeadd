"""The kit starts a runtime as the core does; each fault of the runtime is named by its rule."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.testing import FakeHealthChecker, FakeSpawner, check_runtime
from companion_core.testing import write_fake_runtime as write_runtime

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


def edit(program: Path, before: str, after: str) -> None:
    text = program.read_text()
    assert before in text
    program.write_text(text.replace(before, after))


@pytest.fixture
def spawner(tmp_path: Path) -> Callable[..., FakeSpawner]:
    program = write_runtime(tmp_path / "runtime")

    def make(*behaviour: str, **changes: Any) -> FakeSpawner:
        return FakeSpawner(
            behaviour,
            alter=lambda plan, _request: replace(plan, **changes),
            program=str(program),
        )

    return make


def test_a_runtime_that_conforms_is_started_on_each_channel(
    spawner: Callable[..., FakeSpawner], tmp_path: Path
):
    edit(tmp_path / "runtime", ', os.environ.get(KEY_ENV, "")', "")
    assert check_runtime(spawner(), FakeHealthChecker()) == ()


@pytest.mark.parametrize(
    ("behaviour", "changes", "reason"),
    [
        ((), {"ready_text": "words that it never says"}, "start_timeout"),
        (("exit",), {}, "runtime_exited"),
        (("wide",), {}, "runtime_listens_wide"),
        (("never",), {}, "start_timeout"),
    ],
)
def test_a_start_that_fails_is_named(
    spawner: Callable[..., FakeSpawner],
    behaviour: tuple[str, ...],
    changes: dict[str, Any],
    reason: str,
):
    with pytest.raises(AssertionError, match=rf"^runtime rule 1 \(.*seen {reason}"):
        check_runtime(spawner(*behaviour, **changes), FakeHealthChecker(), seconds=3)


def test_a_plugin_is_not_blamed_where_its_runtime_reaches_a_limit(
    spawner: Callable[..., FakeSpawner], tmp_path: Path
):
    said = "OSError: [Errno 11] Resource temporarily unavailable"
    edit(tmp_path / "runtime", "sys.exit(3)", f"sys.exit({said!r})")
    with pytest.raises(EnvironmentUnavailable) as caught:
        check_runtime(spawner("exit"), FakeHealthChecker(), seconds=3)
    assert caught.value.reason is Reason.LIMIT_REACHED
    first, *rest = caught.value.detail.splitlines()
    assert first == "processes and threads (ulimit -u)"
    assert any(said in line for line in rest), "the runtime's own words stay"


def test_a_health_checker_that_never_agrees_is_named(spawner: Callable[..., FakeSpawner]):
    with pytest.raises(AssertionError, match=r"^runtime rule 1 \("):
        check_runtime(spawner(), FakeHealthChecker(answer=False), seconds=3)


def test_what_it_was_asked_is_not_in_its_output(
    spawner: Callable[..., FakeSpawner], tmp_path: Path
):
    asked = "head, body = read_request(client)"
    edit(tmp_path / "runtime", asked, f"{asked}\n            print(body.decode(), flush=True)")
    edit(tmp_path / "runtime", ', os.environ.get(KEY_ENV, "")', "")
    with pytest.raises(AssertionError, match=r"^runtime rule 3 \(.*what it was asked"):
        check_runtime(spawner(), FakeHealthChecker())


def test_a_key_in_the_output_is_named(spawner: Callable[..., FakeSpawner]):
    made = spawner()
    made.channels = frozenset({"tcp"})
    with pytest.raises(AssertionError, match=r"^runtime rule 3 \(.*its key"):
        check_runtime(made, FakeHealthChecker())


def test_what_cannot_be_started_is_said(spawner: Callable[..., FakeSpawner]):
    (untried,) = check_runtime(FakeSpawner(), FakeHealthChecker())
    assert untried.what == "the start: locate finds no program on this machine"
    other = spawner()
    other.formats = frozenset({"mlx"})
    (untried,) = check_runtime(other, FakeHealthChecker())
    assert untried.what == "the start: no model of the format mlx was given"


def test_the_embedded_llama_cpp_conforms(
    require_real: Callable[[str, bool], None], monkeypatch: pytest.MonkeyPatch
):
    require_real("xllamacpp", importlib.util.find_spec("xllamacpp") is not None)
    # Another test may have imported it; the check must not.
    monkeypatch.delitem(sys.modules, "companion_runtime_llamacpp.embedded", raising=False)
    from companion_runtime_llamacpp import plugin  # noqa: PLC0415 - a real part that may be missing

    modules = frozenset({"companion_runtime_llamacpp.embedded"})
    assert check_runtime(plugin.companion_spawn(), plugin.companion_health(), modules=modules) == ()
    assert "companion_runtime_llamacpp.embedded" not in sys.modules
