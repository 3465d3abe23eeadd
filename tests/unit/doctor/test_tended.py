"""Rows for what was written elsewhere: drift is mended on request, what is foreign is only told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doctor_parts import make_situation

from companion_core.doctor.checks import Tended
from companion_core.doctor.findings import Status
from companion_core.doctor.tended import check_clients, check_service
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

CHECKS = [
    ("connected", check_clients, (Reason.CLIENT_DRIFTED, Reason.CLIENT_FILE_FOREIGN)),
    ("services", check_service, (Reason.SERVICE_DRIFTED, Reason.SERVICE_FOREIGN)),
]


def one(state: str, mended: list[str], name: str = "llm") -> Tended:
    return Tended(name=name, state=state, detail="another port", mend=lambda: mended.append(name))


@pytest.mark.parametrize(("what", "check", "reasons"), CHECKS)
@pytest.mark.parametrize("repair", [False, True])
def test_each_state_is_told(
    tmp_path: Path, what: str, check: Any, reasons: tuple[Reason, Reason], repair: bool
) -> None:
    drifted, foreign = reasons
    mended: list[str] = []

    def find(*states: str) -> Any:
        found = [one(state, mended, f"{state}-{index}") for index, state in enumerate(states)]
        situation = make_situation(tmp_path, repair=repair, **{what: lambda: found})
        return check(situation)

    assert find().status is Status.SKIP
    assert find("ok").status is Status.OK
    drift = find("ok", "drift")
    assert (drift.status, drift.reason) == (
        Status.REPAIRED if repair else Status.FAIL,
        drifted,
    )
    assert "drift-1: another port" in drift.detail
    assert mended == (["drift-1"] if repair else [])
    mended.clear()
    strange = find("foreign", "drift")
    assert (strange.status, strange.reason) == (Status.FAIL, foreign)
    assert mended == (["drift-1"] if repair else [])
