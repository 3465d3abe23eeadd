"""The shut doorway."""

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from companion_core.egress.interface import EgressRefused
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import Reason
from companion_core.providers import UnixChannel

pytestmark = pytest.mark.security


def test_the_shut_doorway_refuses_everything():
    egress = RefusingEgress()
    me = ProcessIdentity(os.getpid(), 0, "")
    context = ssl.create_default_context()
    calls = [
        lambda: egress.start_process(["/bin/true"], env={}),
        lambda: egress.replace_process(["/bin/true"], {}),
        lambda: egress.identify(1),
        lambda: egress.send_signal(me, 0),
        lambda: egress.connect_https("h", 443, context=context, timeout=1),
        lambda: egress.connect_loopback(1, timeout=1),
        lambda: egress.connect_control(Path("/x")),
        lambda: asyncio.run(egress.connect_backend(asyncio.Protocol, UnixChannel(path="/x"))),
        lambda: asyncio.run(egress.reach_backend(UnixChannel(path="/x"))),
    ]
    for call in calls:
        with pytest.raises(EgressRefused) as caught:
            call()
        assert caught.value.reason is Reason.EGRESS_REFUSED
