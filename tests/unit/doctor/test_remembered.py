"""The way back from a clock that was wrong and from a damaged record: a person opens it."""

import json
from functools import partial

import pytest
from doctor_parts import make_config, make_situation

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.doctor import remembered
from companion_core.doctor.findings import Status
from companion_core.errors import CompanionError, Reason
from companion_core.testing.publisher import TEST_NOW, FakePublisher, manifest_document

pytestmark = pytest.mark.unit

DAY = 86_400
PUBLISHER = FakePublisher()
KEYS = [PUBLISHER.public_key]
URL = "https://manifests.example.org/manifest.json"


def judge(situation, now=TEST_NOW, **changes):
    document = manifest_document("https://models.example.org/m/tiny.gguf", b"model", **changes)
    memory = ManifestMemory.of(situation.paths)
    return memory.judge(URL, PUBLISHER.envelope(document), trusted_keys=KEYS, wall_now=now)


def refusal(situation, **options):
    with pytest.raises(CompanionError) as caught:
        judge(situation, **options)
    return caught.value.reason


def clock(situation, now=TEST_NOW):
    return remembered.check_clock(situation, clock=lambda: now)


@pytest.fixture
def situation(tmp_path):
    """Of a person who is never asked."""
    made = make_situation(tmp_path, repair=True)
    made.config = make_config(manifest={"url": URL, "trusted_keys": KEYS})
    made.paths.prepare()
    made.confirm = partial(pytest.fail, "asked")
    return made


def asks(situation, answer):
    questions = []

    def confirm(question):
        questions.append(question)
        return answer

    situation.confirm = confirm
    return questions


@pytest.mark.parametrize(("behind", "status"), [(0, Status.OK), (3600, Status.FAIL)])
def test_a_clock_that_was_set_back_is_told(situation, behind, status):
    memory = situation.paths.manifest_memory
    memory.write_text(json.dumps({"latest_time": 10**9, "seen": {}}))
    memory.chmod(0o600)
    situation.repair = False
    found = clock(situation, now=10.0**9 - behind)
    assert found.status is status
    if behind:
        assert found.reason is Reason.CLOCK_SET_BACK
        assert found.fix == "companion doctor --repair"


def test_the_person_who_confirms_the_time_is_let_out(situation):
    assert refusal(situation, now=TEST_NOW + 20 * DAY) is Reason.MANIFEST_EXPIRED
    assert refusal(situation) is Reason.MANIFEST_EXPIRED
    questions = asks(situation, answer=True)
    assert clock(situation).status is Status.REPAIRED
    assert "2026-02-04 00:00 UTC" in questions[0]
    assert judge(situation).version == 1
    assert clock(situation).status is Status.OK


def test_nothing_changes_for_a_person_who_does_not_confirm_it(situation):
    refusal(situation, now=TEST_NOW + 20 * DAY)
    asks(situation, answer=False)
    found = clock(situation)
    assert found.status is Status.FAIL
    assert found.fix == "companion doctor --repair --yes"
    assert refusal(situation) is Reason.MANIFEST_EXPIRED


def test_no_confirmation_goes_behind_what_was_signed(situation):
    judge(situation, issued="2026-01-14T00:00:00Z")
    asks(situation, answer=True)
    found = clock(situation, now=TEST_NOW - 10 * DAY)
    assert (found.status, found.reason) == (Status.FAIL, Reason.CLOCK_SET_BACK)
    memory = ManifestMemory.of(situation.paths)
    assert memory.latest_time(0.0) == TEST_NOW - DAY


def test_no_confirmation_brings_an_old_version_back(situation):
    judge(situation, version=3, now=TEST_NOW + 2 * DAY)
    asks(situation, answer=True)
    assert clock(situation).status is Status.REPAIRED
    assert refusal(situation, version=2) is Reason.MANIFEST_ROLLED_BACK


def test_a_damaged_record_is_made_anew_from_what_is_stored(situation):
    judge(situation, version=3)
    situation.paths.manifest_memory.write_bytes(b"{")
    assert refusal(situation, version=3) is Reason.MANIFEST_MEMORY_DAMAGED
    situation.repair = False
    found = remembered.check_memory(situation)
    assert (found.reason, found.fix) == (
        Reason.MANIFEST_MEMORY_DAMAGED,
        "companion doctor --repair",
    )
    assert str(situation.paths.manifest_memory) in found.detail
    situation.repair = True
    asks(situation, answer=False)
    assert remembered.check_memory(situation).status is Status.FAIL
    asks(situation, answer=True)
    found = remembered.check_memory(situation, clock=lambda: TEST_NOW)
    assert found.status is Status.REPAIRED
    assert remembered.check_memory(situation).status is Status.OK
    assert refusal(situation, version=2) is Reason.MANIFEST_ROLLED_BACK
    assert judge(situation, version=3).version == 3


def test_a_damaged_file_of_an_earlier_release_is_named_and_set_aside(situation):
    earlier = situation.paths.folder / "manifest-memory.json"
    earlier.write_bytes(b"[]")
    assert refusal(situation) is Reason.MANIFEST_MEMORY_DAMAGED
    asks(situation, answer=True)
    found = remembered.check_memory(situation, clock=lambda: TEST_NOW)
    assert str(earlier) in found.detail
    assert not earlier.exists()
    assert earlier.with_name("manifest-memory.json.damaged").read_bytes() == b"[]"
    assert judge(situation).version == 1
