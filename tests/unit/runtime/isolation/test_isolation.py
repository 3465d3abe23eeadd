"""The commands and profiles of the tiers, and how they are probed; run for real elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from companion_core.decisions.isolation import Tier
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import SpawnPlan, TcpChannel, UnixChannel
from companion_core.runtime.isolation import (
    SandboxPolicy,
    bubblewrap,
    confine,
    confinement,
    probe_isolation,
    probing,
    sandbox_exec,
    sandbox_policy,
)
from companion_core.runtime.isolation import policy as reach_module
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.runtime.standalone import locks

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]

REACH = SandboxPolicy(
    read=("/usr", "/usr/local/it", '/o"dd\\path'),
    write=("/run/me", "/data"),
    devices=("/dev/nvidia0",),
    models=(("/proc/self/fd/7", 7),),
    port=None,
)
UNIX = UnixChannel(path="/run/me/backend.sock")


def evidence(path: str, *, embedded: bool) -> ProvedBinary:
    made = object.__new__(ProvedBinary)
    object.__setattr__(made, "path", path)
    object.__setattr__(made, "embedded", embedded)
    return made


def test_bubblewrap_binds_from_the_outside_in() -> None:
    argv = bubblewrap.wrap("/usr/bin/bwrap", ("/it", "--flag"), REACH, folder="/run/me")
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


def test_the_profile_of_macos_denies_by_default_and_quotes_what_it_allows() -> None:
    profile = sandbox_exec.profile(REACH)
    assert profile.startswith("(version 1)\n(deny default)\n")
    assert '(allow file-read* file-map-executable (subpath "/usr"))' in profile
    assert '(allow file-read* file-write* (subpath "/data"))' in profile
    assert '(subpath "/o\\"dd\\\\path")' in profile
    assert '(allow network-bind (subpath "/run/me"))' in profile
    assert "localhost" not in profile
    assert "network-outbound" not in profile
    tcp = SandboxPolicy(read=(), write=("/run/me",), devices=(), models=(), port=4711)
    assert 'network-inbound (local tcp "localhost:4711")' in sandbox_exec.profile(tcp)
    assert "iokit" not in sandbox_exec.profile(tcp, metal=False)
    assert sandbox_exec.wrap(("/it",), tcp)[::3] == ("/usr/bin/sandbox-exec", "/it")


def test_the_profile_names_what_links_lead_to(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    reach = SandboxPolicy(
        read=(), write=(str(tmp_path / "link"),), devices=(), models=(), port=None
    )
    profile = sandbox_exec.profile(reach)
    for name in ("link", "real"):
        assert f'(allow file-read* file-write* (subpath "{tmp_path / name}"))' in profile
        assert f'(allow network-bind (subpath "{tmp_path / name}"))' in profile


def test_each_tier_makes_its_own_command(monkeypatch, tmp_path) -> None:
    env = {"HOME": "/run/me"}
    plain = confine(Tier.NONE, ("/it",), env, REACH, folder=tmp_path)
    assert (plain.argv, plain.env, plain.policy, plain.programs) == (("/it",), env, None, 0)
    locked = confine(Tier.LANDLOCK, ("/it",), env, REACH, folder=tmp_path)
    assert locked.argv == ("/it",)
    assert locked.policy == REACH.policy()
    assert "/proc/self/fd/7" in locked.policy["read"]
    assert "/proc" not in locked.policy["read"]
    wrapped = confine(Tier.SANDBOX_EXEC, ("/it",), env, REACH, folder=tmp_path)
    assert wrapped.argv[0] == sandbox_exec.PROGRAM
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    inside = confine(Tier.BUBBLEWRAP, ("/it",), env, REACH, folder=tmp_path, helpers=1)
    assert inside.env == {**env, "PWD": str(tmp_path)}
    assert inside.programs == 2
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: None)
    with pytest.raises(EnvironmentUnavailable) as caught:
        confine(Tier.BUBBLEWRAP, ("/it",), env, REACH, folder=tmp_path)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE


def test_a_program_reaches_itself_and_the_libraries_beside_it(tmp_path) -> None:
    for name in ("server", "libone.so", "libtwo.so.1", "secret.txt"):
        (tmp_path / name).touch()
    (tmp_path / "extra").mkdir()
    plan = SpawnPlan(
        argv=(str(tmp_path / "server"),), served_model="m", read_paths=(str(tmp_path / "extra"),)
    )
    binary = evidence(str(tmp_path / "server"), embedded=False)
    reach = sandbox_policy(
        plan, binary, UNIX, write=(Path("/run/me"),), models=(("/proc/self/fd/7", 7),)
    )
    own = sorted(Path(path).name for path in reach.read if path.startswith(str(tmp_path)))
    assert own == ["extra", "libone.so", "libtwo.so.1", "server"]
    assert reach.port is None
    assert reach.devices == ()
    tcp = TcpChannel(host="127.0.0.1", port=4711)
    assert sandbox_policy(plan, binary, tcp, write=(), models=()).port == 4711


def test_the_embedded_interpreter_reaches_its_own_folders(monkeypatch, tmp_path) -> None:
    for name in ("env", "base"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    plan = SpawnPlan(argv=(sys.executable, "-I", "-m", "it"), served_model="m", gpu=True)
    binary = evidence(sys.executable, embedded=True)
    reach = sandbox_policy(plan, binary, UNIX, write=(), models=())
    assert {str(tmp_path / "env"), str(tmp_path / "base")} <= set(reach.read)


def test_what_lies_below_another_path_is_left_out(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    outer, inner = str(tmp_path / "a"), str(tmp_path / "a" / "b")
    assert reach_module._existing((inner, outer, outer, str(tmp_path / "none"))) == (outer,)


class Programs:
    """A doorway whose programs end as told."""

    def __init__(self, ending: object) -> None:
        self.ending = ending
        self.started: list[tuple[str, ...]] = []

    def start_process(self, argv, **_):
        self.started.append(tuple(argv))
        if isinstance(self.ending, OSError):
            raise self.ending
        return Program(self.ending)


class Program:
    def __init__(self, ending: object) -> None:
        self.ending = ending
        self.killed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.killed == (self.ending == "hangs")

    def wait(self, _seconds):
        if self.ending == "hangs":
            raise subprocess.TimeoutExpired("it", 5)
        return self.ending

    def kill(self):
        self.killed = True


@pytest.mark.parametrize(
    ("ending", "works"), [(0, True), (1, False), ("hangs", False), (OSError(1, "no"), False)]
)
def test_a_tier_works_where_its_program_was_seen_working(monkeypatch, ending, works) -> None:
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    egress = Programs(ending)
    state = probe_isolation(egress, "linux")[0]
    assert (state.tier, state.works) == (Tier.BUBBLEWRAP, works)
    assert {"--unshare-all", "--ro-bind-fd"} <= set(egress.started[0])
    assert probe_isolation(egress, "darwin")[0].works is works
    assert probe_isolation(egress, "plan9") == ()
    assert not probe_isolation(egress, "win32")[0].works


def test_a_bubblewrap_that_cannot_mount_a_model_is_told_apart(monkeypatch) -> None:
    class Old(Programs):
        def start_process(self, argv, **options):
            self.ending = 1 if "--ro-bind-fd" in argv else 0
            return super().start_process(argv, **options)

    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    state = probe_isolation(Old(0), "linux")[0]
    assert not state.works
    assert "--ro-bind-fd" in state.detail


def test_a_linked_model_is_read_where_all_else_is_written(tmp_path) -> None:
    link = tmp_path / "model"
    plan = SpawnPlan(argv=("/it",), served_model="m", model_link=str(link))
    binary = evidence("/it", embedded=False)
    without = sandbox_policy(plan, binary, UNIX, write=(tmp_path,), models=())
    assert str(link) not in without.read  # the backend is to make it
    link.touch()
    reach = sandbox_policy(plan, binary, UNIX, write=(tmp_path,), models=())
    argv = bubblewrap.wrap("/usr/bin/bwrap", ("/it",), reach, folder="/")
    assert argv.index(str(tmp_path)) < argv.index(str(link))
    assert argv[argv.index(str(link)) - 1] == "--ro-bind"


def test_what_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: None)
    monkeypatch.setattr(probing.locks, "landlock_version", lambda: 0)
    first, second = probe_isolation(RefusingEgress(), "linux")
    assert "not installed" in first.detail
    assert "no Landlock" in second.detail
    monkeypatch.setattr(probing.locks, "landlock_version", lambda: 3)
    monkeypatch.setattr(probing.locks, "seccomp_works", lambda: False)
    assert "seccomp" in probe_isolation(RefusingEgress(), "linux")[1].detail
    monkeypatch.setattr(probing.locks, "seccomp_works", lambda: True)
    assert probe_isolation(RefusingEgress(), "linux")[1].works


@pytest.mark.skipif(sys.platform != "linux", reason="reads owners as Linux has them")
def test_a_bubblewrap_that_others_could_replace_is_none(monkeypatch, tmp_path) -> None:
    program = tmp_path / "bwrap"
    program.touch()
    monkeypatch.setattr(bubblewrap, "_PLACES", (str(program),))
    assert bubblewrap.find_bubblewrap() == str(program)
    tmp_path.chmod(0o777)
    assert bubblewrap.find_bubblewrap() is None
    tmp_path.chmod(0o700)
    monkeypatch.setattr(bubblewrap, "_PLACES", ())
    assert bubblewrap.find_bubblewrap() is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("port", [None, 4711])
def test_the_filter_decides_as_its_rules_say(monkeypatch, machine, port) -> None:
    """The classic-BPF program, run by a small machine of our own."""
    monkeypatch.setattr(locks.platform, "machine", lambda: machine)
    program, calls = locks._program(port), locks._CALLS[machine]
    family = locks._AF_UNIX if port is None else locks._AF_INET
    own = locks._MACHINES[machine]

    def run(number: int, *arguments: int, audit: int = own) -> int:
        data = {0: number, 4: audit, 16: (*arguments, 0, 0)[0], 24: (*arguments, 0, 0)[1]}
        at = accumulator = 0
        while True:
            operation, yes, no, value = program[at]
            at += 1
            if operation == locks._RETURN:
                return value
            if operation == locks._LOAD:
                accumulator = data[value]
            elif operation == locks._AND:
                accumulator &= value
            elif operation == locks._EQUAL:
                at += yes if accumulator == value else no
            else:
                at += yes if accumulator >= value else no

    assert run(0, audit=0x1234) == locks._KILL
    assert run(calls["socket"], family, 1) == locks._ALLOW
    assert run(calls["socket"], family, 1 | 0o2000000) == locks._ALLOW  # close on exec
    assert run(calls["socket"], family, 2) == locks._DENY
    assert run(calls["socket"], 16, 1) == locks._DENY  # netlink
    other = locks._AF_INET if port is None else locks._AF_UNIX
    assert run(calls["socket"], other, 1) == locks._DENY
    if port is not None:
        assert run(calls["socket"], locks._AF_INET6, 1) == locks._ALLOW
    for name in set(calls) - {"socket"}:
        assert run(calls[name], 1, 1) == locks._DENY
    assert run(1, 1, 1) == locks._ALLOW
    if machine == "x86_64":
        assert run(locks._X32_BIT | calls["ptrace"]) == locks._DENY
