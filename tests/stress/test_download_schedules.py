"""Whatever a host does, and whenever the process is killed: no wrong byte gets a model's name.

`make test-download-schedules` runs hundreds; `COMPANION_TEST_SCHEDULES` says how many.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_schedules import DATA, PATHS, Schedules

from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.evil_host import EvilHost

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked"),
]

EACH = 12
COUNT = int(os.environ.get("COMPANION_TEST_SCHEDULES", EACH))


@pytest.fixture
def schedules(tmp_path: Path) -> Iterator[Schedules]:
    authority = CertificateAuthority(tmp_path)
    content = dict.fromkeys(PATHS, DATA)
    with (
        EvilHost(authority.server_context(), content) as host,
        contextlib.closing(Schedules(tmp_path, host, authority.ca_file)) as schedules,
    ):
        yield schedules


@pytest.mark.parametrize("first", range(0, COUNT, EACH))
def test_nothing_unverified_has_a_name(schedules: Schedules, first: int) -> None:
    ended: Counter[str] = Counter()
    for seed in range(first, first + EACH):
        try:
            ended += schedules.run(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    # Else they would prove nothing.
    assert ended["killed"] >= EACH // 4, ended
    assert ended["ok"] >= EACH, ended
    assert len(ended) >= 3, ended
