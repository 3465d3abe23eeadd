"""What the machine has, with doubles for what this one lacks."""

from __future__ import annotations

import pytest
from doctor_parts import make_config, make_situation

from companion_core.decisions.isolation import Tier
from companion_core.doctor import machine
from companion_core.doctor.checks import run_checks
from companion_core.doctor.findings import Status
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason
from companion_core.providers import ProbeFailed
from companion_core.runtime.isolation import CeilingState, TierState

pytestmark = pytest.mark.unit


def test_an_old_python_is_refused(tmp_path):
    assert machine.check_python(make_situation(tmp_path), oldest=(99, 0)).status is Status.FAIL


@pytest.mark.parametrize(
    ("system", "status"),
    [("linux", Status.OK), ("darwin", Status.OK), ("win32", Status.OK), ("sunos5", Status.FAIL)],
)
def test_an_unsupported_system_is_told(tmp_path, system, status):
    assert machine.check_platform(make_situation(tmp_path), system).status is status


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path):
    missing = [("no-such-package", "no_such_package")]
    found = machine.check_packages(make_situation(tmp_path), packages=missing)
    assert (found.status, found.fix) == (Status.FAIL, "pip install no-such-package")


def test_an_optional_package_is_never_a_failure(tmp_path):
    found = machine.check_extra(make_situation(tmp_path), module="no_such_package", extra="fast")
    assert (found.status, found.reason) == (Status.SKIP, Reason.NOT_APPLICABLE)
    assert "companion-core[fast]" in found.fix


def test_memory_is_compared_with_the_ceiling(tmp_path):
    situation = make_situation(tmp_path)
    assert machine.check_memory(situation).status is Status.OK
    situation.config = make_config(limits={"max_ram_bytes": 5_000_000_000})
    assert "5.0 GB" in machine.check_memory(situation).detail


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_ceilings_are_enforced_or_the_row_says_why_not(tmp_path, platform):
    situation = make_situation(tmp_path)
    held = CeilingState(hard=True, detail="a group")
    assert machine.check_ceilings(situation, probe=lambda _name: held).status is Status.OK
    observed = CeilingState(hard=False, detail="other programs run here")
    found = machine.check_ceilings(situation, platform, probe=lambda _name: observed)
    assert found.status is Status.SKIP
    assert found.detail == "observed, not enforced: other programs run here"
    assert ("Delegate=yes" in found.fix) == (platform == "linux")


def test_video_memory_is_asked_for_where_there_is_a_driver(tmp_path):
    situation = make_situation(tmp_path)

    def fail() -> int:
        raise ProbeFailed

    found = machine.check_gpu(situation, driver=lambda: False)
    assert found.reason is Reason.NOT_APPLICABLE
    found = machine.check_gpu(situation, driver=lambda: True, free=lambda: 8 * 10**9)
    assert "8.0 GB" in found.detail
    found = machine.check_gpu(situation, driver=lambda: True, free=fail)
    assert found.reason is Reason.PROBE_FAILED


def test_proxies_are_named_and_never_shown(tmp_path):
    environ = {"https_proxy": "http://person:planted-secret@proxy.example", "NO_PROXY": "x"}
    found = machine.check_proxies(make_situation(tmp_path, environ=environ))
    assert found.detail.startswith("HTTPS_PROXY, NO_PROXY")
    assert "planted-secret" not in found.detail
    assert "example" not in found.detail


def test_an_authority_that_cannot_be_read_is_told(tmp_path):
    situation = make_situation(tmp_path)
    situation.config = make_config(network={"extra_ca_file": str(tmp_path / "none.pem")})
    [row] = [
        row for row in run_checks(machine.checks()[-2:-1], situation) if row.id == "certificates"
    ]
    assert row.reason is Reason.CONFIGURATION_INVALID


TIERS = {
    "bubblewrap": TierState(Tier.BUBBLEWRAP, works=True, detail="no network"),
    "landlock": TierState(Tier.LANDLOCK, works=True, detail="Landlock version 7"),
    "none": TierState(Tier.BUBBLEWRAP, works=False, detail="bubblewrap is not installed"),
    "job": TierState(Tier.JOB_OBJECT, works=True, detail="a job of its own"),
    "forbidden": TierState(Tier.BUBBLEWRAP, works=False, detail="no user namespaces"),
}


def isolation(tmp_path, *tiers, policy="best"):
    situation = make_situation(tmp_path)
    situation.config = make_config(runtime={"isolation": policy})
    rows = machine.check_isolation(
        situation, "linux", probe=lambda _: tuple(TIERS[tier] for tier in tiers)
    )
    return {row.id.removeprefix("isolation."): row for row in rows}


def test_each_tier_is_told_with_what_it_promises(tmp_path):
    rows = isolation(tmp_path, "bubblewrap", "landlock", "job")
    for tier in ("bubblewrap", "landlock"):
        assert "signals no process" in rows[tier].finding.detail
    assert "signals no process" not in rows["job-object"].finding.detail
    assert "reaches no network" in rows["landlock"].finding.detail
    assert rows["chosen"].finding.detail.startswith("bubblewrap")


def test_a_tier_that_is_missing_is_told_with_its_command(tmp_path):
    rows = isolation(tmp_path, "none", "landlock")
    assert (rows["bubblewrap"].status, rows["bubblewrap"].finding.fix) == (
        Status.SKIP,
        "apt-get install bubblewrap",
    )
    assert rows["chosen"].finding.detail.startswith("landlock")
    assert isolation(tmp_path, "forbidden")["bubblewrap"].finding.fix == ""


def test_less_than_the_required_tier_fails(tmp_path):
    rows = isolation(tmp_path, "none", "landlock", policy="required")
    assert (rows["chosen"].status, rows["chosen"].reason) == (
        Status.FAIL,
        Reason.ISOLATION_UNAVAILABLE,
    )


def test_a_machine_without_any_tier_is_told(tmp_path):
    chosen = isolation(tmp_path, "none")["chosen"]
    assert (chosen.status, chosen.reason) == (Status.SKIP, Reason.ISOLATION_UNAVAILABLE)
    assert "nothing confines" in chosen.finding.detail


def test_a_shut_doorway_shows_no_tier_and_breaks_nothing(tmp_path):
    situation = make_situation(tmp_path, egress=RefusingEgress())
    rows = run_checks(machine.checks()[-1:], situation)
    assert all(row.reason is not Reason.INTERNAL_FAULT for row in rows)
