"""Two state folders share no keychain account, also for instances of one name."""

from __future__ import annotations

import asyncio

import pytest
from doctor_parts import make_config

from companion_core.companion import Companion
from companion_core.config.paths import InstancePaths
from companion_core.egress.refusing import RefusingEgress
from companion_core.plugin_host import Chosen
from companion_core.serving.assembly import AuthorityProviders
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit


def test_neither_companion_overwrites_or_clears_the_others_token(tmp_path):
    keychain = FakeKeychain()
    authority = AuthorityProviders(keychain=Chosen(plugin="fake", provider=keychain))

    async def open_two() -> list[str]:
        companions = [
            Companion(make_config(), InstancePaths(tmp_path / name), RefusingEgress(), print)
            for name in ("one", "two")
        ]
        made = [await each._open_keychain(authority) for each in companions]
        tokens = [token.secret.reveal() for token in made]
        assert sorted(keychain.items.values()) == sorted(tokens)
        await companions[0]._undo.aclose()
        assert list(keychain.items.values()) == tokens[1:]
        await companions[1]._undo.aclose()
        return tokens

    assert len(set(asyncio.run(open_two()))) == 2
    assert keychain.items == {}


def test_a_scope_is_of_one_folder_and_one_name(tmp_path):
    paths = [
        InstancePaths(tmp_path / root, name) for root in ("a", "b") for name in ("default", "x")
    ]
    assert len({each.keychain_scope for each in paths}) == len(paths)
    assert paths[0].keychain_scope == InstancePaths(tmp_path / "a").keychain_scope
    assert str(tmp_path) not in paths[0].keychain_scope


def test_a_scope_does_not_depend_on_the_spelling_of_the_folder(tmp_path):
    paths = InstancePaths(tmp_path / "state")
    paths.prepare()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for spelling in ("link", "link/../state", "state/../link"):
        other = InstancePaths(tmp_path / spelling)
        assert other.keychain_scope == paths.keychain_scope
        assert other.run_folder_path() == paths.run_folder_path()
