"""Limits hold at their edges: the last value that passes, and the first that does not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from companion_core.decisions.admission import decide_arrival, record_completion
from companion_core.decisions.integrity import (
    MAX_SIZE,
    IntegrityAccumulator,
    ModelSpec,
    digests_equal,
    parse_model_spec,
    verify_model_bytes,
)
from companion_core.decisions.restart import Ending, decide_restart
from companion_core.decisions.source import SourceUrl, admit_source, check_source_url
from companion_core.decisions.spawn_plan import (
    MAX_UNIX_PATH,
    PlanFacts,
    base_environment,
    check_env_name,
    check_plan,
    parse_pid,
)
from companion_core.decisions.verdict import OK, Verdict
from companion_core.errors import Reason
from companion_core.providers import OPENAI_ROUTES, BackendRequest, SpawnPlan, UnixChannel

pytestmark = pytest.mark.unit


# --- admission ------------------------------------------------------------------------------


def test_every_arrival_is_judged_as_defined() -> None:
    for running, most, queued, bound in itertools.product(range(-1, 4), repeat=4):
        if not 0 <= running <= most or not 0 <= queued <= bound:
            expected = Reason.MALFORMED_ADMISSION_STATE
        elif running < most and queued == 0:
            expected = Reason.OK
        elif running < most or queued < bound:
            expected = Reason.AT_CAPACITY
        else:
            expected = Reason.QUEUE_FULL
        assert decide_arrival(running, most, queued, bound).reason is expected


def test_what_is_no_state_is_named_as_such() -> None:
    with pytest.raises(ValueError, match=r"^malformed_admission_state$"):
        record_completion(None)


# --- integrity ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("", "", False),
        ("a", "", False),
        ("", "a", False),
        (1, "1", False),
        ("1", 1, False),
        (None, None, False),
        ("\ud800", "\ud800", True),
        ("\ud800", "?", False),
        ("?", "\ud800", False),
        ("é", "é", True),
    ],
)
def test_digests_are_texts(a: object, b: object, equal: bool) -> None:
    assert digests_equal(a, b) is equal


def accumulator(size: int) -> IntegrityAccumulator:
    spec = parse_model_spec("0" * 64, size)
    assert isinstance(spec, ModelSpec)
    return IntegrityAccumulator(spec)


def test_what_comes_after_an_overflow_is_not_counted() -> None:
    check = accumulator(2)
    assert check.update(b"abc").reason is Reason.SIZE_MISMATCH
    assert check.update(b"d").reason is Reason.SIZE_MISMATCH
    assert check.update("no bytes").reason is Reason.SIZE_MISMATCH
    assert check.received_bytes == 3
    assert check.finalize().reason is Reason.SIZE_MISMATCH


def test_the_size_itself_is_no_overflow() -> None:
    check = accumulator(2)
    assert check.update(b"ab") is OK
    assert check.update(b"") is OK
    assert check.finalize().reason is Reason.DIGEST_MISMATCH


def test_a_view_is_counted_in_bytes() -> None:
    check = accumulator(8)
    assert check.update(memoryview(bytes(8)).cast("Q")) is OK
    assert check.received_bytes == 8


@pytest.mark.parametrize(("size", "ok"), [(0, False), (1, True), (2**53 - 1, True), (2**53, False)])
def test_sizes(size: int, ok: bool) -> None:
    assert isinstance(parse_model_spec("0" * 64, size), ModelSpec) is ok
    assert MAX_SIZE == 2**53 - 1


@pytest.mark.parametrize(
    ("data", "reason"), [(b"abc", Reason.SIZE_MISMATCH), ("ab", Reason.MALFORMED_SPEC)]
)
def test_a_whole_model_of_another_size_or_type(data: object, reason: Reason) -> None:
    url = "https://a.example/m"
    verdict = verify_model_bytes(data, sha256="0" * 64, size=2, source=url, allowed=[url])
    assert verdict.reason is reason


# --- sources --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTPS://A.Example", ("https://a.example/", "a.example", 443, "/")),
        ("https://a.example:443/m?q#f", ("https://a.example/m?q", "a.example", 443, "/m")),
        ("https://a.example:65535/m", ("https://a.example:65535/m", "a.example", 65535, "/m")),
        ("https://[0:0::1]:1/m", ("https://[::1]:1/m", "::1", 1, "/m")),
        ("https://1.2.3.4/m", ("https://1.2.3.4/m", "1.2.3.4", 443, "/m")),
    ],
)
def test_the_proof_of_a_source_says_what_was_admitted(url: str, parts: tuple[object, ...]) -> None:
    proof = admit_source(url, [url.partition("?")[0]])
    assert isinstance(proof, SourceUrl)
    assert (proof.text, proof.host, proof.port, proof.path) == parts


@pytest.mark.parametrize("url", [None, 5, "", b"https://a.example/"])
def test_what_is_no_address_is_malformed_whatever_is_allowed(url: object) -> None:
    assert check_source_url(url, []).reason is Reason.MALFORMED_SPEC


def test_a_port_beyond_the_last_is_malformed() -> None:
    url = "https://a.example:65536/"
    assert check_source_url(url, [url]).reason is Reason.MALFORMED_SPEC


# --- restarts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endings", "delay"),
    [
        ([0.0], 1.0),
        ([-600.0, 0.0], 5.0),
        ([-600.1, 0.0], 1.0),
        ([-3.0, -2.0, 0.0], 15.0),
        ([-3.0, -2.0, -1.0, 0.0], 60.0),
        ([-4.0, -3.0, -2.0, -1.0, 0.0], None),
        ([], 1.0),
        ([1.0], 1.0),
    ],
)
def test_how_long_until_the_next_start(endings: list[float], delay: float | None) -> None:
    ending = Ending(reason=Reason.RUNTIME_EXITED, exit_code=-9, ready=False)
    decision = decide_restart(ending, endings, 0.0)
    assert decision.delay == delay
    assert decision.reason is (Reason.CRASH_LOOP if delay is None else Reason.OK)


# --- plans ----------------------------------------------------------------------------------

MODEL, SOCKET = "/m", UnixChannel(path="/run/s")
NAMES = frozenset({"A", "B", "ENV", "KEY", "env", *(f"N{number}" for number in range(65))})
FACTS = PlanFacts(
    binary="/opt/server",
    embedded=False,
    embedded_modules=frozenset({"plugin"}),
    env_names=NAMES,
    base_names=frozenset(),
    model_path=MODEL,
    channel=SOCKET,
    data_dir="/data",
)
PLAN = SpawnPlan(argv=("/opt/server", MODEL, SOCKET.path), served_model="tiny")
KIB = 1024


def passes(facts: PlanFacts = FACTS, **changes: Any) -> bool:
    return isinstance(check_plan(replace(PLAN, **changes), facts), SpawnPlan)


def argv(*more: str) -> tuple[str, ...]:
    return (*PLAN.argv, *more)


def total(size: int) -> tuple[str, ...]:
    left = size - sum(map(len, PLAN.argv))
    return argv("x" * (128 * KIB), "x" * (left - 128 * KIB))


def request(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"method": "GET", "path": "/"} | changes
    return {"prepare": (BackendRequest(**values),)}


@pytest.mark.parametrize(
    ("last", "first_refused"),
    [
        ({"argv": argv(*["x"] * 253)}, {"argv": argv(*["x"] * 254)}),
        ({"argv": argv("x" * (128 * KIB))}, {"argv": argv("x" * (128 * KIB + 1))}),
        ({"argv": argv("é" * (64 * KIB))}, {"argv": argv("é" * (64 * KIB) + "x")}),
        ({"argv": total(256 * KIB)}, {"argv": total(256 * KIB + 1)}),
        ({"argv": argv(f"--a={MODEL}")}, {"argv": ("/opt/server", "--a=b=/m", SOCKET.path)}),
        (
            {"env": {f"N{number}": "" for number in range(64)}},
            {"env": {f"N{number}": "" for number in range(65)}},
        ),
        ({"served_model": "x" * 256}, {"served_model": "x" * 257}),
        ({"ready_text": "x" * 256}, {"ready_text": "x" * 257}),
        ({"read_paths": ("/x",) * 64}, {"read_paths": ("/x",) * 65}),
        ({"start_deadline_seconds": 0.5}, {"start_deadline_seconds": 0}),
        ({"start_deadline_seconds": 3600}, {"start_deadline_seconds": 3600.1}),
        ({"routes": OPENAI_ROUTES[:1]}, {"routes": ()}),
        ({"routes": OPENAI_ROUTES}, {"routes": (*OPENAI_ROUTES, OPENAI_ROUTES[0])}),
        (
            {"prepare": (BackendRequest(method="GET", path="/"),) * 16},
            {"prepare": (BackendRequest(method="GET", path="/"),) * 17},
        ),
        (request(expect_status=(200,) * 64), request(expect_status=(200,) * 65)),
        (request(expect_status=(100,)), request(expect_status=(99,))),
        (request(expect_status=(599,)), request(expect_status=(600,))),
        (request(expect_status=(200,)), request(expect_status=(200.0,))),
        (request(expect_last_line="x"), request(expect_last_line=1)),
        (request(expect_last_line=""), request(expect_last_line="\0")),
        (request(method="HEAD"), request(method="PATCH")),
        (request(method="PUT"), request(method="put")),
        (request(send_model=True), request(send_model=1)),
        (request(unless_stored=True), request(unless_stored=1)),
        ({"store": "/data/x"}, {"store": "/data/./x"}),
        ({"store": None}, {"store": "/data"}),
        ({"read_paths": ("/dataX",)}, {"read_paths": ("/data",)}),
        ({"backend_key_env": "KEY"}, {"backend_key_env": "ENV"}),
        ({"backend_key_env": "A"}, {"backend_key_env": "env"}),
        ({"model_link": "/data/x"}, {"model_link": "/data/./x"}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_limits_of_a_plan(last: dict[str, Any], first_refused: dict[str, Any]) -> None:
    assert passes(**last)
    assert not passes(**first_refused)


def test_a_plan_may_say_all_in_its_environment() -> None:
    env = {"A": MODEL, "B": SOCKET.path}
    assert passes(argv=("/opt/server",), env=env)
    facts = replace(FACTS, embedded=True)
    assert passes(facts, argv=("/opt/server", "-I", "-m", "plugin"), env=env)
    assert not passes(facts, argv=("/opt/server", "-I", "-m"), env=env)


def test_all_that_a_plan_says_is_in_the_rebuilt_one() -> None:
    prepare = (
        BackendRequest(method="POST", path="/a", json="{}", expect_status=(200, 404)),
        BackendRequest(method="PUT", path="/b", send_model=True, expect_last_line="done"),
        BackendRequest(method="POST", path="/c", json="{}", unless_stored=True),
    )
    plan = replace(
        PLAN, prepare=prepare, model_link="/data/l", model_copies=("/data/c",), store="/data/s"
    )
    rebuilt = check_plan(plan, FACTS)
    assert isinstance(rebuilt, SpawnPlan)
    assert rebuilt == plan
    assert not isinstance(rebuilt.env, dict), "and nobody changes it afterwards"


STEERING = "LD_X DYLD_X PYTHONX MALLOC_X BASH_X PERL5X RUBYX NODE_X ENV IFS SHELLOPTS GCONV_PATH"
SECRET = "KEY APIKEY TOKEN SECRET PASSWORD PASSWD CREDENTIALS COOKIE MY_TOKEN_FILE"


@pytest.mark.parametrize("name", f"{STEERING} GLIBC_TUNABLES LOCPATH {SECRET}".split())
def test_names_that_steer_or_hold_a_secret(name: str) -> None:
    assert not check_env_name(name).ok
    assert not check_env_name(name.lower()).ok


@pytest.mark.parametrize("name", ["ALD_X", "ENVX", "XENV", "KEYS", "KEYBOARD", "X_LD_Y"])
def test_names_that_only_look_so(name: str) -> None:
    assert check_env_name(name).ok


def test_the_first_pid_is_one() -> None:
    assert parse_pid(1) == 1
    zero = parse_pid(0)
    assert isinstance(zero, Verdict)
    assert zero.reason is Reason.SPAWN_FAILED


@pytest.mark.parametrize("name", ["", None, "LD_PRELOAD", "MY_TOKEN"])
def test_a_name_that_is_not_allowed_refuses_the_plan(name: object) -> None:
    assert check_env_name(name).reason is Reason.PLAN_REFUSED


def test_the_length_of_a_socket_path() -> None:
    assert dict(MAX_UNIX_PATH) == {"linux": 107, "darwin": 103}


ACCELERATORS = (
    "CUDA_VISIBLE_DEVICES GGML_VK_VISIBLE_DEVICES HIP_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION "
    "ROCR_VISIBLE_DEVICES"
)


def test_the_environment_of_windows_without_any_other() -> None:
    base = base_environment("win32", private_dir="P", inherited={})
    assert base == {
        "SYSTEMROOT": r"C:\Windows",
        "PATH": r"C:\Windows\System32;C:\Windows",
        "TEMP": "P",
        "TMP": "P",
        "USERPROFILE": "P",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_person_chooses_the_accelerators(platform: str) -> None:
    chosen = dict.fromkeys(ACCELERATORS.split(), "0")
    base = base_environment(platform, private_dir="P", inherited=chosen | {"OTHER": "0"})
    assert {name: value for name, value in base.items() if value == "0"} == chosen
