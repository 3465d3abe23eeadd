"""The profile of the sandbox-exec tier."""

from __future__ import annotations

import sys

import pytest
from isolation_parts import POLICY

from companion_core.runtime.isolation import SandboxPolicy, sandbox_exec

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


def test_the_profile_of_macos_denies_by_default_and_quotes_what_it_allows() -> None:
    profile = sandbox_exec.profile(POLICY)
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
    policy = SandboxPolicy(
        read=(), write=(str(tmp_path / "link"),), devices=(), models=(), port=None
    )
    profile = sandbox_exec.profile(policy)
    for name in ("link", "real"):
        assert f'(allow file-read* file-write* (subpath "{tmp_path / name}"))' in profile
        assert f'(allow network-bind (subpath "{tmp_path / name}"))' in profile
