from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.spawn_plan import (
    PlanFacts,
    base_environment,
    check_env_name,
    check_plan,
    parse_pid,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.providers import (
    OPENAI_ROUTES,
    BackendRequest,
    Dialect,
    Expected,
    Route,
    SpawnPlan,
    TcpChannel,
    UnixChannel,
)

pytestmark = pytest.mark.unit

SOCKET = UnixChannel(path="/run/c/1/backend.sock")
PORT = TcpChannel(host="127.0.0.1", port=4711)
MODEL = "/proc/self/fd/7"
FACTS = PlanFacts(
    binary="/opt/server",
    embedded=False,
    embedded_modules=frozenset({"plugin.embedded"}),
    env_names=frozenset({"SERVER_MODE", "LLAMA_API_KEY", "HOME", "LD_PRELOAD", "MY_TOKEN"}),
    base_names=frozenset({"PATH", "HOME"}),
    model_path=MODEL,
    channel=SOCKET,
    data_dir="/data",
)
PLAN = SpawnPlan(
    argv=("/opt/server", "-m", MODEL, "--host", SOCKET.path),
    served_model="tiny",
)


def refused(plan: object, facts: PlanFacts = FACTS) -> Reason:
    verdict = check_plan(plan, facts)
    assert isinstance(verdict, Verdict), "the plan passed"
    assert not verdict.ok
    return verdict.reason


def test_a_sound_plan_is_rebuilt_equal_and_anew() -> None:
    plan = replace(
        PLAN,
        env={"SERVER_MODE": "fast"},
        backend_key_env="LLAMA_API_KEY",
        prepare=(
            BackendRequest(
                method="POST",
                path="/load?now=1",
                json="{}",
                expect=(Expected(member="parameters", line="n 1", unlike="x"),),
            ),
        ),
        dialect=Dialect(
            rename_fields=(("max_completion_tokens", "max_tokens"),),
            too_long=("{tokens} of {limit}",),
            cuts_at=512,
        ),
        model_copies=("/data/blobs/x",),
        ready_text="listening",
        start_deadline_seconds=5,
        routes=OPENAI_ROUTES[:2],
        drop_fields=("lora",),
        read_paths=("/usr/lib",),
        gpu=True,
        placement_texts=("{placed} of {all} layers",),
    )
    rebuilt = check_plan(plan, FACTS)
    assert isinstance(rebuilt, SpawnPlan)
    assert rebuilt == plan
    assert rebuilt is not plan
    assert rebuilt.env is not plan.env
    assert rebuilt.prepare[0] is not plan.prepare[0]
    assert rebuilt.prepare[0].expect[0] is not plan.prepare[0].expect[0]
    assert rebuilt.dialect is not plan.dialect


def test_a_folder_whose_name_only_begins_like_the_persons_may_be_read() -> None:
    paths = ("/data2", "/dataX", "/dat")
    rebuilt = check_plan(replace(PLAN, read_paths=paths), FACTS)
    assert isinstance(rebuilt, SpawnPlan)
    assert rebuilt.read_paths == paths


def test_later_changes_of_the_plugin_do_not_reach_the_rebuilt_plan() -> None:
    env = {"SERVER_MODE": "fast"}
    rebuilt = check_plan(replace(PLAN, env=MappingProxyType(env)), FACTS)
    env["LD_PRELOAD"] = "/tmp/x.so"
    assert isinstance(rebuilt, SpawnPlan)
    assert dict(rebuilt.env) == {"SERVER_MODE": "fast"}


class Text(str):
    __slots__ = ()


class Lying(dict):
    def keys(self):
        raise SystemError("surprise")


class PlanInDisguise(SpawnPlan):
    pass


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ()},
        {"placement_texts": ["{placed} layers"]},
        {"placement_texts": ("layers",)},
        {"placement_texts": ("{placed} and {placed}",)},
        {"placement_texts": (Text("{placed} layers"),)},
        {"argv": ["/opt/server", MODEL, SOCKET.path]},
        {"argv": ("/bin/sh", MODEL, SOCKET.path)},
        {"argv": ("server", MODEL, SOCKET.path)},
        {"argv": (Text("/opt/server"), MODEL, SOCKET.path)},
        {"argv": ("/opt/server", MODEL, SOCKET.path, "nul\0")},
        {"argv": ("/opt/server", MODEL, SOCKET.path, "\ud800")},
        {"argv": ("/opt/server", MODEL, SOCKET.path, "x" * 200_000)},
        {"argv": ("/opt/server", MODEL, SOCKET.path, *["x"] * 300)},
        {"argv": ("/opt/server", MODEL, SOCKET.path, *["x" * 100_000] * 3)},
        {"argv": ("/opt/server", SOCKET.path)},
        {"argv": ("/opt/server", "/proc/self/fd/71", SOCKET.path)},
        {"argv": ("/opt/server", "/proc/self/fd/7/../8", SOCKET.path)},
        {"argv": ("/opt/server", MODEL)},
        {"argv": ("/opt/server", MODEL, SOCKET.path + "2")},
        {"env": {"UNDECLARED": "1"}},
        {"env": {"HOME": "/root"}},
        {"env": {"LD_PRELOAD": "/tmp/x.so"}},
        {"env": {"MY_TOKEN": "1"}},
        {"env": {"LLAMA_API_KEY": "chosen by the plugin"}},
        {"env": {"SERVER_MODE": 1}},
        {"env": {"SERVER_MODE": "nul\0"}},
        {"env": (("SERVER_MODE", "1"),)},
        {"env": Lying()},
        {"env": MappingProxyType(Lying())},
        {"served_model": ""},
        {"served_model": "a\nb"},
        {"served_model": None},
        {"backend_key_env": "UNDECLARED_KEY"},
        {"backend_key_env": "HOME"},
        {"backend_key_env": "LD_PRELOAD"},
        {"backend_key_env": "SERVER_MODE", "env": {"SERVER_MODE": "x"}},
        {"backend_key_env": 1},
        {"prepare": (BackendRequest(method="DELETE", path="/"),)},
        {"prepare": (BackendRequest(method="GET", path="http://example.org/"),)},
        {"prepare": (BackendRequest(method="GET", path="/a\r\nHost: b"),)},
        {"prepare": (BackendRequest(method="POST", path="/", json="{}", send_model=True),)},
        {"prepare": (BackendRequest(method="GET", path="/", expect_status=()),)},
        {"prepare": (BackendRequest(method="GET", path="/", expect_status=(True,)),)},
        {"prepare": (BackendRequest(method="GET", path="/"),) * 17},
        {"prepare": ("GET /",)},
        {"model_link": "/data/../etc/passwd"},
        {"model_link": "/database/x"},
        {"model_link": "/data"},
        {"model_link": "blobs/x"},
        {"model_link": "/data//x"},
        {"model_link": 1},
        {"store": 1},
        {"model_copies": ("/etc/passwd",)},
        {"ready_text": ""},
        {"ready_text": 1},
        {"start_deadline_seconds": 0},
        {"start_deadline_seconds": float("nan")},
        {"start_deadline_seconds": float("inf")},
        {"start_deadline_seconds": True},
        {"start_deadline_seconds": "120"},
        {"routes": ()},
        {"routes": (Route(method="POST", path="/api/pull"),)},
        {"routes": (Route(method="GET", path="/v1/completions"),)},
        {"routes": OPENAI_ROUTES[:1] * 2},
        {"routes": ("POST /v1/completions",)},
        {"routes": (Route(method="POST", path=["/v1/completions"]),)},
        {"drop_fields": ("",)},
        {"drop_fields": "lora"},
        {"drop_fields": ("x",) * 65},
        {"read_paths": ("relative",)},
        {"read_paths": ("/",)},
        {"read_paths": ("/data",)},
        {"read_paths": ("/usr/../data",)},
        {"gpu": 1},
        *(
            {"prepare": (BackendRequest(method="GET", path="/", expect=expect),)}
            for expect in (
                ["x"],
                ("x",),
                (Expected(member="a"),),
                (Expected(member="", line="x"),),
                (Expected(member="a", line=1),),
                (Expected(member="a", unlike="\0"),),
                (Expected(member="a", line="x", reason=Reason.OK),),
                (Expected(member="a", line="x", reason="spawn_failed"),),
                (Expected(member="a", line="x"),) * 65,
            )
        ),
        {"dialect": None},
        *(
            {"dialect": Dialect(**part)}
            for part in (
                {"rename_fields": [("a", "b")]},
                {"rename_fields": (("a", "b", "c"),)},
                {"rename_fields": (["a", "b"],)},
                {"rename_fields": (("a", ""),)},
                {"rename_fields": (("a", "b"), ("A", "c"))},
                {"rename_fields": (("a", "b"), ("B", "c"))},
                {"rename_fields": (("a", "Model"),)},
                {"rename_fields": (("model", "a"),)},
                {"rename_fields": (("a", "b"),) * 65},
                {"too_long": "{tokens} of {limit}"},
                {"too_long": ("{tokens}",)},
                {"too_long": ("{tokens} {tokens} of {limit}",)},
                {"too_long": (1,)},
                {"cuts_at": 0},
                {"cuts_at": True},
                {"cuts_at": 1.5},
            )
        ),
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_field_is_held_to_its_rule(change: dict[str, Any]) -> None:
    assert refused(replace(PLAN, **change)) is Reason.PLAN_REFUSED
    verdict = check_plan(replace(PLAN, **change), FACTS)
    assert isinstance(verdict, Verdict)
    assert next(iter(change)) in verdict.about, "the plugin's author is told where to look"


@pytest.mark.parametrize(
    "plan",
    [
        None,
        {},
        "plan",
        SpawnPlan,
        PlanInDisguise(**{field.name: getattr(PLAN, field.name) for field in fields(PLAN)}),
    ],
)
def test_what_is_no_plan_is_refused(plan: object) -> None:
    assert refused(plan) is Reason.PLAN_REFUSED


@pytest.mark.parametrize(
    "parts", [("-m", MODEL), ("--model", MODEL), (f"--model={MODEL}",), (f"-m={MODEL}",)]
)
def test_the_model_is_named_in_the_usual_forms(parts: tuple[str, ...]) -> None:
    argv = ("/opt/server", *parts, f"--host={SOCKET.path}")
    assert isinstance(check_plan(replace(PLAN, argv=argv), FACTS), SpawnPlan)


def test_a_linked_model_need_not_be_named() -> None:
    plan = replace(PLAN, argv=("/opt/server", SOCKET.path), model_link="/data/blobs/x")
    assert isinstance(check_plan(plan, FACTS), SpawnPlan)


@pytest.mark.parametrize(
    ("argv", "passes"),
    [
        (("/py", "-I", "-m", "plugin.embedded", MODEL, SOCKET.path), True),
        (("/py", "-m", "plugin.embedded", MODEL, SOCKET.path), False),
        (("/py", "-I", "-m", "plugin.other", MODEL, SOCKET.path), False),
        (("/py", "-I", "-m", "http.server", MODEL, SOCKET.path), False),
        (("/py", "-I", "-c", "plugin.embedded", MODEL, SOCKET.path), False),
        (("/py", "-I", "-m"), False),
    ],
)
def test_embedded_is_a_module_of_the_plugin_and_nothing_else(argv, passes) -> None:
    facts = replace(FACTS, binary="/py", embedded=True)
    assert isinstance(check_plan(replace(PLAN, argv=argv), facts), SpawnPlan) is passes


def test_a_tcp_backend_needs_a_key_or_the_persons_word() -> None:
    facts = replace(FACTS, channel=PORT)
    plan = replace(PLAN, argv=("/opt/server", MODEL, "--port", "4711"))
    assert refused(plan, facts) is Reason.BACKEND_OPEN
    assert isinstance(check_plan(replace(plan, backend_key_env="LLAMA_API_KEY"), facts), SpawnPlan)
    assert isinstance(check_plan(plan, replace(facts, allow_open_backend=True)), SpawnPlan)


def test_the_port_is_the_cores_choice() -> None:
    facts = replace(FACTS, channel=PORT, allow_open_backend=True)
    other = replace(PLAN, argv=("/opt/server", MODEL, "--port", "14711"))
    assert refused(other, facts) is Reason.PLAN_REFUSED
    address = replace(PLAN, argv=("/opt/server", MODEL), env={"SERVER_MODE": "127.0.0.1:4711"})
    assert isinstance(check_plan(address, facts), SpawnPlan)


@given(
    st.builds(
        SpawnPlan,
        **{
            field.name: st.one_of(
                st.none(),
                st.integers(),
                st.text(),
                st.tuples(),
                st.tuples(st.text()),
                st.dictionaries(st.text(), st.text()),
                st.just(getattr(PLAN, field.name)),
            )
            for field in fields(SpawnPlan)
        },
    )
)
def test_no_plan_makes_it_raise(plan: SpawnPlan) -> None:
    assert isinstance(check_plan(plan, FACTS), SpawnPlan | Verdict)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("OLLAMA_MODELS", True),
        ("OLLAMA_KEEP_ALIVE", True),
        ("TOKENIZERS_PARALLELISM", True),
        ("LD_PRELOAD", False),
        ("ld_preload", False),
        ("DYLD_INSERT_LIBRARIES", False),
        ("PYTHONPATH", False),
        ("HF_TOKEN", False),
        ("OPENAI_API_KEY", False),
        ("OPENAI_APIKEY", False),
        ("DB_PASSWORD", False),
        ("BASH_ENV", False),
        ("", False),
        ("1X", False),
        ("A=B", False),
        ("A B", False),
        ("Ä", False),
        ("A\n", False),
        (None, False),
    ],
)
def test_names_that_no_plugin_may_set(name: object, allowed: bool) -> None:
    assert check_env_name(name).ok is allowed


class TestBaseEnvironment:
    INHERITED: Mapping[str, str] = {
        "Path": r"D:\tools",
        "PATH": "/home/me/bin",
        "HOME": "/home/me",
        "OPENAI_API_KEY": "k",
        "LLAMA_ARG_TOOLS": "all",
        "LD_PRELOAD": "/tmp/x.so",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HSA_OVERRIDE_GFX_VERSION": "10.3.0; rm",
        "SystemRoot": r"C:\WINDOWS",
    }

    def test_it_is_built_from_nothing(self) -> None:
        base = base_environment("linux", private_dir="/run/1", inherited=self.INHERITED)
        assert base == {
            "PATH": "/usr/bin:/bin",
            "HOME": "/run/1",
            "TMPDIR": "/run/1",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": "0,1",
        }

    def test_windows_names_are_found_whatever_their_case(self) -> None:
        # covers: spawn_supervision/windows-env
        base = base_environment("win32", private_dir=r"C:\run", inherited=self.INHERITED)
        assert base["SYSTEMROOT"] == r"C:\WINDOWS"
        assert base["PATH"] == r"C:\WINDOWS\System32;C:\WINDOWS"
        assert set(base) == {
            "SYSTEMROOT",
            "PATH",
            "TEMP",
            "TMP",
            "USERPROFILE",
            "PYTHONUNBUFFERED",
            "CUDA_VISIBLE_DEVICES",
        }


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "7", None, float("nan"), []])
def test_what_is_no_pid(value: object) -> None:
    assert isinstance(parse_pid(value), Verdict)


def test_a_pid() -> None:
    assert parse_pid(4194304) == 4194304


WINDOWS = replace(
    FACTS, binary="C:\\Apps\\server.exe", data_dir="C:\\Users\\me\\data", windows=True
)
WINDOWS_PLAN = replace(PLAN, argv=(WINDOWS.binary, *PLAN.argv[1:]))


@pytest.mark.parametrize(
    "change",
    [
        {"model_link": "C:\\Users\\me\\data\\blobs\\x", "store": "C:\\Users\\me\\data/blobs"},
        {"model_copies": ("c:/users/ME/data/blobs/x",), "read_paths": ("D:\\Libraries",)},
    ],
)
def test_paths_of_windows_are_taken_as_it_has_them(change) -> None:
    assert isinstance(check_plan(replace(WINDOWS_PLAN, **change), WINDOWS), SpawnPlan)
    assert isinstance(check_plan(replace(WINDOWS_PLAN, **change), FACTS), Verdict)


@pytest.mark.parametrize(
    "change",
    [
        {"model_link": "C:\\Users\\me\\data\\..\\x"},
        {"model_link": "C:\\Users\\me\\database\\x"},
        {"model_link": "C:\\Users\\me\\data"},
        {"model_link": "D:\\Users\\me\\data\\x"},
        {"model_link": "C:data\\x"},
        {"model_link": "\\Users\\me\\data\\x"},
        {"store": "C:\\Users\\me\\data\\\\x"},
        {"model_copies": ("/data/x",)},
        {"read_paths": ("c:\\users",)},
        {"read_paths": ("C:/",)},
        {"read_paths": ("libraries",)},
    ],
)
def test_paths_of_windows_that_lead_elsewhere(change) -> None:
    assert refused(replace(WINDOWS_PLAN, **change), WINDOWS) is Reason.PLAN_REFUSED


@pytest.mark.parametrize("binary", ["server.exe", "C:server.exe", "\\server.exe", "/opt/server"])
def test_a_program_of_windows_has_its_drive(binary) -> None:
    plan = replace(WINDOWS_PLAN, argv=(binary, *PLAN.argv[1:]))
    assert refused(plan, replace(WINDOWS, binary=binary)) is Reason.PLAN_REFUSED
