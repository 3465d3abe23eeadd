"""Attacker: a stand-alone program that is asked for its flags (`--help`) before it is a runtime.

It gets what a runtime gets: the chosen tier and a keeper, and no more memory than an answer needs.
"""

from __future__ import annotations

import os
import shlex
import sys
import tracemalloc
from pathlib import Path

import psutil
import pytest
from isolation_parts import evidence

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.runtime.isolation import confinement
from companion_core.runtime.start import program_help
from companion_core.runtime.start.program_help import read_help

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform != "linux", reason="the tiers of Linux"),
]

TIERS = [Tier.BUBBLEWRAP, Tier.LANDLOCK, Tier.NONE]


@pytest.fixture
def ask(tmp_path, require_tier, monkeypatch):
    monkeypatch.setattr(program_help, "_KNOWN", {})
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)

    def asked(tier: Tier, script: str) -> str:
        require_tier(tier)
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        binary = evidence(str(program), embedded=False)
        return read_help(LiveEgress(), binary, "0" * 64, ("--help",), tier=tier, folder=folder)

    return asked


@pytest.mark.parametrize("tier", TIERS)
def test_it_reads_no_more_than_a_runtime(ask, tier: Tier, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("private")
    text = ask(tier, f"echo --flag; cat {shlex.quote(str(diary))} 2>&1; exit 0")
    assert "--flag" in text
    assert ("private" in text) is (tier is Tier.NONE)


@pytest.mark.parametrize("own_namespaces", [True, False])
@pytest.mark.parametrize("tier", TIERS)
def test_nothing_that_it_starts_is_left(ask, tier: Tier, own_namespaces: bool, monkeypatch) -> None:
    monkeypatch.setattr(confinement, "OWN_NAMESPACES", own_namespaces)
    seconds = f"36000.{os.getpid()}"

    def left() -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline"])
        return [each for each in every if seconds in (each.info["cmdline"] or ())]

    text = ask(tier, f"setsid sleep {seconds} >/dev/null 2>&1 &\necho --flag")
    found = left()
    for each in found:
        each.kill()
    assert found == []
    assert text == "--flag\n"


@pytest.mark.parametrize("tier", TIERS)
def test_an_endless_answer_is_not_kept(ask, tier: Tier) -> None:
    tracemalloc.start()
    try:
        text = ask(tier, "head -c 100000000 /dev/zero")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text == ""
    assert most < 4 * 2**20


@pytest.mark.parametrize("tier", TIERS)
def test_one_that_fails_or_never_ends_says_nothing(ask, tier: Tier, monkeypatch) -> None:
    monkeypatch.setattr(program_help, "_SECONDS", 0.3)
    assert ask(tier, "echo --flag; exit 3") == ""
    program_help._KNOWN.clear()
    assert ask(tier, "echo --flag; sleep 3600") == ""
