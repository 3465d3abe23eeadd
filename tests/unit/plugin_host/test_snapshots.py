from __future__ import annotations

import pytest

from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.snapshots import rebuild_binaries, snapshot_provider
from companion_core.providers import (
    Downloader,
    HealthChecker,
    Keychain,
    ResourceProbe,
    RuntimeBinary,
    Spawner,
)

pytestmark = pytest.mark.unit

NAMES = ["formats", "env_names", "child_env_names", "option_names"]


class Lamp:
    """Satisfies every seam at once, as one provider may."""

    channels = frozenset({"unix"})
    formats = frozenset({"gguf"})
    env_names = frozenset({"LAMP_HOME"})
    child_env_names = frozenset()
    option_names = frozenset({"flash_attention"})
    path = "/health"

    def locate(self):
        return ("located", self)

    def plan(self, request):
        return ("planned", request)

    def judge(self, response):
        return True

    def open(self, request):
        return None

    def observe(self, target):
        return None

    def status(self):
        return None

    def get(self, account):
        return None

    def set(self, account, secret):
        return None

    def delete(self, account):
        return None


PROTOCOLS = {
    Role.KEYCHAIN: Keychain,
    Role.SPAWN: Spawner,
    Role.DOWNLOAD: Downloader,
    Role.HEALTH: HealthChecker,
    Role.PROBE: ResourceProbe,
}


@pytest.mark.parametrize("role", Role)
def test_the_copy_satisfies_the_protocol(role: Role):
    assert isinstance(snapshot_provider(role, Lamp()), PROTOCOLS[role])


def test_methods_are_the_providers_own():
    lamp = Lamp()
    copy = snapshot_provider(Role.SPAWN, lamp)
    assert copy.locate() == ("located", lamp)
    assert copy.plan("request") == ("planned", "request")


def test_what_changes_later_does_not_reach_the_copy():
    lamp = Lamp()
    copy = snapshot_provider(Role.SPAWN, lamp)
    lamp.channels = frozenset({"anything"})
    lamp.plan = lambda request: "another"
    assert copy.channels == {"unix"}
    assert copy.plan(1) == ("planned", 1)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("nothing", [None, object(), 7, "provider", [], Lamp])
def test_an_object_that_is_no_provider_does_not_fit(role: Role, nothing: object):
    assert isinstance(snapshot_provider(role, nothing), str)


def with_attribute(name: str, value: object) -> Lamp:
    return type("Changed", (Lamp,), {name: value})()


class LooseSet(frozenset):
    def __le__(self, other):
        return True


class LooseText(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"unix"},
        ["unix"],
        "unix",
        frozenset(),
        frozenset({"udp"}),
        frozenset({"unix", "any"}),
        frozenset({b"unix"}),
        LooseSet({"udp"}),
        frozenset({LooseText("unix")}),
    ],
)
def test_channels_are_a_frozen_set_of_known_names(value: object):
    assert snapshot_provider(Role.SPAWN, with_attribute("channels", value)) == "channels"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    [
        None,
        set(),
        frozenset({1}),
        frozenset({""}),
        frozenset({"A=B"}),
        frozenset({"A\n"}),
        frozenset({"\x00"}),
        frozenset({"é"}),
        frozenset({"A" * 129}),
        frozenset(str(number) for number in range(257)),
        LooseSet(),
    ],
)
def test_names_are_frozen_sets_of_plain_names(name: str, value: object):
    assert snapshot_provider(Role.SPAWN, with_attribute(name, value)) == name


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "health",
        "/a b",
        "/a\r\nX: y",
        "/a\n",
        "/\x7f",
        "/é",
        b"/",
        LooseText("/a"),
        "/" * 300,
    ],
)
def test_a_health_path_is_a_plain_path(value: object):
    assert snapshot_provider(Role.HEALTH, with_attribute("path", value)) == "path"


async def coroutine(self, *args):
    return None


async def generator(self, *args):
    yield None


class AsynchronousCall:
    async def __call__(self, *args):
        return None


@pytest.mark.parametrize(
    "value", [None, 7, coroutine, generator, AsynchronousCall()], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize(
    ("role", "name"),
    [
        (Role.SPAWN, "plan"),
        (Role.SPAWN, "locate"),
        (Role.HEALTH, "judge"),
        (Role.DOWNLOAD, "open"),
        (Role.PROBE, "observe"),
        (Role.KEYCHAIN, "get"),
        (Role.KEYCHAIN, "delete"),
    ],
)
def test_methods_are_synchronous(role: Role, name: str, value: object):
    assert snapshot_provider(role, with_attribute(name, value)) == name


class Traps(list):
    def __iter__(self):
        raise SystemExit


class Text(str):
    __slots__ = ()

    def __eq__(self, other):
        raise SystemExit

    __hash__ = str.__hash__


LAMP = RuntimeBinary(path="/opt/lamp", label="Lamp", version="1", files=("/opt/lamp.so",))


def test_binaries_are_made_anew():
    embedded = RuntimeBinary(path="embedded", label="Lamp")
    for found in ([LAMP, embedded], (LAMP, embedded)):
        rebuilt = rebuild_binaries(found)
        assert rebuilt == (LAMP, embedded)
        assert all(ours is not theirs for ours, theirs in zip(rebuilt, found, strict=True))
    assert rebuild_binaries([]) == ()


@pytest.mark.parametrize(
    "found",
    [
        None,
        "embedded",
        {"path": "embedded"},
        Traps([LAMP]),
        [None],
        ["embedded"],
        [type("Fancy", (RuntimeBinary,), {})(path="embedded", label="Lamp")],
        [RuntimeBinary(path="lamp", label="Lamp")],
        [RuntimeBinary(path=Text("embedded"), label="Lamp")],
        [RuntimeBinary(path=7, label="Lamp")],
        [RuntimeBinary(path="embedded", label=None)],
        [RuntimeBinary(path="embedded", label="Lamp", version=1)],
        [RuntimeBinary(path="embedded", label="Lamp", files=["/x"])],
        [RuntimeBinary(path="embedded", label="Lamp", files=("x",))],
    ],
)
def test_what_is_no_list_of_binaries_is_refused(found):
    assert rebuild_binaries(found) is None
