from __future__ import annotations

from dataclasses import replace

import pytest

from companion_core.decisions.runtime_readback import (
    Listener,
    LoopbackChannel,
    check_environment,
    check_listeners,
    check_peer,
)
from companion_core.decisions.verdict import refuse
from companion_core.errors import Reason
from companion_core.providers import TcpChannel, UnixChannel

pytestmark = pytest.mark.unit

PLANNED = frozenset({"PATH", "HOME"})
UNIX = UnixChannel(path="/run/x.sock")
TCP = TcpChannel(host="127.0.0.1", port=4711)
OWN = Listener("tcp", "127.0.0.1", 4711)


@pytest.mark.parametrize(
    ("runtime", "descendants", "ok"),
    [
        (PLANNED, [], True),
        (PLANNED, [PLANNED], True),
        (PLANNED, [PLANNED | {"DECLARED"}], True),
        (PLANNED, [frozenset()], True),
        (PLANNED | {"EXTRA"}, [], False),
        (PLANNED | {"DECLARED"}, [], False),
        (PLANNED - {"HOME"}, [], False),
        (frozenset(), [], False),
        (None, [], False),
        (PLANNED, [PLANNED | {"EXTRA"}], False),
        (PLANNED, [PLANNED, None], False),
    ],
)
def test_names_are_exactly_the_planned_ones(runtime, descendants, ok) -> None:
    verdict = check_environment(
        runtime, descendants, planned=PLANNED, child_names=frozenset({"DECLARED"})
    )
    assert verdict.ok is ok
    assert verdict.reason is (Reason.OK if ok else Reason.RUNTIME_ENVIRONMENT)


NAMED = Listener("unix", "@name", 0)
DRIVERS = Listener("unix", "@cuda-uvmfd-4026531836-7", 0)
RUNNER = Listener("tcp", "127.0.0.1", 50000)


@pytest.mark.parametrize(
    ("listeners", "channel", "open_backend", "reason"),
    [
        (set(), UNIX, False, Reason.OK),
        ({OWN}, UNIX, False, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN}, UNIX, True, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN}, TCP, False, Reason.OK),
        (set(), TCP, False, Reason.HEALTH_FAILED),
        ({Listener("udp", "127.0.0.1", 4711)}, TCP, False, Reason.RUNTIME_LISTENS_WIDE),
        ({Listener("tcp", "0.0.0.0", 4711)}, TCP, True, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, RUNNER}, TCP, False, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, RUNNER}, TCP, True, Reason.OK),
        ({OWN, Listener("tcp", "::1", 50000)}, TCP, True, Reason.OK),
        ({OWN, Listener("tcp", "::", 50000)}, TCP, True, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, Listener("tcp", "192.168.1.2", 1)}, TCP, True, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, Listener("tcp", "?", 1)}, TCP, True, Reason.RUNTIME_LISTENS_WIDE),
        ({RUNNER}, TCP, True, Reason.HEALTH_FAILED),
        (None, UNIX, True, Reason.RUNTIME_LISTENS_WIDE),
        ({NAMED}, UNIX, False, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, NAMED}, TCP, False, Reason.RUNTIME_LISTENS_WIDE),
        ({OWN, NAMED}, TCP, True, Reason.RUNTIME_LISTENS_WIDE),
        ({DRIVERS}, UNIX, False, Reason.OK),
        ({OWN, DRIVERS}, TCP, False, Reason.OK),
        ({DRIVERS}, TCP, False, Reason.HEALTH_FAILED),
        ({replace(DRIVERS, protocol="tcp")}, UNIX, False, Reason.RUNTIME_LISTENS_WIDE),
    ],
)
def test_the_tree_listens_on_its_channel_alone(listeners, channel, open_backend, reason) -> None:
    seen = None if listeners is None else frozenset(listeners)
    verdict = check_listeners(seen, channel, allow_open_backend=open_backend)
    assert verdict.reason is reason
    assert verdict.ok is (reason is Reason.OK)
    assert isinstance(verdict, LoopbackChannel) is verdict.ok
    if isinstance(verdict, LoopbackChannel):
        assert verdict.channel is channel


@pytest.mark.parametrize("own_network", [True, False])
@pytest.mark.parametrize("other_network", [True, False])
@pytest.mark.parametrize("open_backend", [True, False])
def test_the_channel_is_in_the_network_that_the_runtime_was_given(
    own_network, other_network, open_backend
) -> None:
    seen = frozenset({replace(OWN, other_network=other_network)})
    verdict = check_listeners(seen, TCP, allow_open_backend=open_backend, own_network=own_network)
    assert verdict.ok is (own_network is other_network)
    if not verdict.ok:
        refused = Reason.HEALTH_FAILED if open_backend else Reason.RUNTIME_LISTENS_WIDE
        assert verdict.reason is refused


def test_a_socket_in_another_network_listens_wide_as_any_other() -> None:
    wide = Listener("tcp", "0.0.0.0", 1, other_network=True)
    for own_network in (True, False):
        seen = frozenset({replace(OWN, other_network=own_network), wide})
        verdict = check_listeners(seen, TCP, allow_open_backend=True, own_network=own_network)
        assert verdict.reason is Reason.RUNTIME_LISTENS_WIDE


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "localhost", ""])
def test_a_channel_beyond_loopback_is_none(host: str) -> None:
    own = frozenset({Listener("tcp", host, 4711)})
    channel = TcpChannel(host=host, port=4711)
    verdict = check_listeners(own, channel, allow_open_backend=True)
    assert verdict is refuse(Reason.RUNTIME_LISTENS_WIDE)


def test_only_the_rule_makes_the_proof() -> None:
    with pytest.raises(TypeError):
        LoopbackChannel(ok=True, reason=Reason.OK, channel=UNIX)


@pytest.mark.parametrize(
    ("pid", "tree", "ended", "ok"),
    [
        (7, (3, 7), False, True),
        (7, (3, 7), True, False),
        (8, (3, 7), False, False),
        (7, (), False, False),
        (0, (0, 7), False, False),
        (-1, (-1, 7), False, False),
    ],
)
def test_whoever_answers_lives_and_is_of_the_tree(pid, tree, ended, ok) -> None:
    verdict = check_peer(pid, frozenset(tree), ended=ended)
    assert verdict.ok is ok
    assert verdict.reason is (Reason.OK if ok else Reason.BACKEND_FOREIGN)
