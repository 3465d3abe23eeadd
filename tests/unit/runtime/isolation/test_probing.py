"""Which tiers are found to work, where programs and kernel are made up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from companion_core.decisions.isolation import Tier
from companion_core.egress.refusing import RefusingEgress
from companion_core.runtime.isolation import bubblewrap, probe_isolation, probing

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


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
