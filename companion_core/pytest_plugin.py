"""The conformance kit and the simulators as fixtures; pytest loads them if the core is installed.

Each fixture imports what it needs on use, so a test run without them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from companion_core.testing import FakeKeychain, ModelHost

__all__ = [
    "check_installed_plugin",
    "fake_keychain",
    "fake_runtime",
    "model_host",
]


@pytest.fixture
def fake_keychain() -> Iterator[FakeKeychain]:
    """A keychain with the faults of real ones; calls that block in it end with the test."""
    from companion_core.testing import FakeKeychain  # noqa: PLC0415 - loaded on use

    keychain = FakeKeychain()
    yield keychain
    keychain.release()


@pytest.fixture
def fake_runtime(tmp_path: Path) -> Path:
    """The program of a runtime without a model; its arguments say how it misbehaves."""
    from companion_core.testing import write_fake_runtime  # noqa: PLC0415 - loaded on use

    return write_fake_runtime(tmp_path / "fake-runtime")


@pytest.fixture
def model_host(tmp_path: Path) -> Iterator[ModelHost]:
    """A TLS host on loopback that misbehaves as told; its authority is in `tmp_path / "tls"`."""
    from companion_core.testing import ModelHost  # noqa: PLC0415 - loaded on use
    from companion_core.testing.certificate_authority import (  # noqa: PLC0415 - loaded on use
        CertificateAuthority,
    )

    folder = tmp_path / "tls"
    folder.mkdir()
    authority = CertificateAuthority(folder)
    with ModelHost(authority.server_context("127.0.0.1"), {}) as host:
        yield host


@pytest.fixture
def check_installed_plugin() -> Callable[[str], tuple[str, ...]]:
    """A function that loads an installed plugin as the host does and runs the whole kit on it.

    It trusts the code as it is installed now, for this test alone. It returns the roles that
    were checked, and raises `AssertionError` for a plugin that does not register.
    """
    from companion_core.testing.plugin_kit import check_installed  # noqa: PLC0415 - loaded on use

    return check_installed
