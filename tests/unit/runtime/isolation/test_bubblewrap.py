"""The command of the bubblewrap tier, and which bubblewrap is taken."""

from __future__ import annotations

import sys

import pytest
from isolation_parts import POLICY, UNIX, evidence

from companion_core.providers import SpawnPlan
from companion_core.runtime.isolation import bubblewrap, sandbox_policy

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


def test_bubblewrap_binds_from_the_outside_in() -> None:
    argv = bubblewrap.wrap("/usr/bin/bwrap", ("/it", "--flag"), POLICY, folder="/run/me")
    assert argv[0] == "/usr/bin/bwrap"
    assert argv[argv.index("--chdir") + 1] == "/run/me"
    assert argv[argv.index("--") :] == ("--", "/it", "--flag")
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(argv)
    kinds = {"--ro-bind", "--dev-bind", "--bind", "--ro-bind-fd"}
    binds = [(part, argv[at + 1], argv[at + 2]) for at, part in enumerate(argv) if part in kinds]
    assert binds == [
        ("--ro-bind", "/usr", "/usr"),
        ("--bind", "/data", "/data"),
        ("--bind", "/run/me", "/run/me"),
        ("--ro-bind", '/o"dd\\path', '/o"dd\\path'),
        ("--dev-bind", "/dev/nvidia0", "/dev/nvidia0"),
        ("--ro-bind", "/usr/local/it", "/usr/local/it"),
        ("--ro-bind-fd", "7", "/proc/self/fd/7"),
    ]


def test_a_linked_model_is_read_where_all_else_is_written(tmp_path) -> None:
    link = tmp_path / "model"
    plan = SpawnPlan(argv=("/it",), served_model="m", model_link=str(link))
    binary = evidence("/it", embedded=False)
    without = sandbox_policy(plan, binary, UNIX, write=(tmp_path,), models=())
    assert str(link) not in without.read  # the backend is to make it
    link.touch()
    policy = sandbox_policy(plan, binary, UNIX, write=(tmp_path,), models=())
    argv = bubblewrap.wrap("/usr/bin/bwrap", ("/it",), policy, folder="/")
    assert argv.index(str(tmp_path)) < argv.index(str(link))
    assert argv[argv.index(str(link)) - 1] == "--ro-bind"


@pytest.mark.skipif(sys.platform != "linux", reason="reads owners as Linux has them")
def test_a_bubblewrap_that_others_could_replace_is_not_taken(tmp_path) -> None:
    program = tmp_path / "bwrap"
    program.touch()
    places = (str(program),)
    assert bubblewrap.find_bubblewrap(places) == str(program)
    tmp_path.chmod(0o777)
    assert bubblewrap.find_bubblewrap(places) is None
    tmp_path.chmod(0o700)
    assert bubblewrap.find_bubblewrap(()) is None
