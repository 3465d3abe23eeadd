import tomllib

import pytest

from companion_core.config.edit import add_keys
from companion_core.config.proposal import Found, FoundKeychain, FoundProgram, new_file, propose
from companion_core.config.reader import parse_config
from companion_core.config.sections import Config
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

EMBEDDED = FoundProgram(plugin="llamacpp", path="embedded", label="llama.cpp, embedded 1")
SERVER = FoundProgram(
    plugin="llamacpp", path="/usr/bin/llama-server", label="llama-server", sha256="a" * 64
)
OLLAMA = FoundProgram(plugin="ollama", path="/usr/bin/ollama", label="Ollama", sha256="b" * 64)
LINUX = FoundKeychain(plugin="linux", reason=Reason.OK)
ABSENT = FoundKeychain(plugin="linux", reason=Reason.KEYCHAIN_ABSENT)


def found(*programs, keychain=LINUX, recorded=None):
    return Found(
        programs=programs, keychain=keychain, key_file="/state/own/key.pem", recorded=recorded
    )


def keys(config, what):
    return {f"{key.section}.{key.name}": key.value for key in propose(config, what).keys}


def test_the_embedded_program_is_chosen_before_others_and_needs_no_digest():
    assert keys(Config(), found(OLLAMA, SERVER, EMBEDDED)) == {
        "runtime.name": "llamacpp",
        "runtime.binary": "embedded",
        "keychain.name": "linux",
    }


def test_a_program_is_recorded_with_its_digest():
    assert keys(Config(), found(SERVER)) == {
        "runtime.name": "llamacpp",
        "runtime.binary": "/usr/bin/llama-server",
        "runtime.binary_sha256": "a" * 64,
        "keychain.name": "linux",
    }


def test_what_the_person_chose_is_completed_and_not_changed():
    ollama = parse_config({"runtime": {"name": "ollama"}, "keychain": {"name": "linux"}})
    assert keys(ollama, found(EMBEDDED, OLLAMA)) == {
        "runtime.binary": "/usr/bin/ollama",
        "runtime.binary_sha256": "b" * 64,
    }
    built = parse_config({"runtime": {"name": "llamacpp", "binary": "/opt/x"}})
    assert keys(built, found(EMBEDDED, SERVER, recorded="c" * 64)) == {
        "runtime.binary_sha256": "c" * 64,
        "keychain.name": "linux",
    }


def test_an_upgraded_program_is_told_and_its_digest_is_not_replaced():
    recorded = {"binary": "/opt/x", "binary_sha256": "c" * 64, "name": "llamacpp"}
    config = parse_config({"runtime": recorded, "keychain": {"name": "linux"}})
    proposal = propose(config, found(recorded="d" * 64))
    assert proposal.keys == ()
    (note,) = proposal.notes
    assert "/opt/x" in note
    assert "companion init --accept-runtime" in note
    assert propose(config, found(recorded="c" * 64)).notes == ()


@pytest.mark.parametrize("reason", [Reason.KEYCHAIN_ABSENT, Reason.PROVIDER_MISSING])
def test_without_a_keychain_the_key_gets_a_file(reason):
    proposal = propose(Config(), found(keychain=FoundKeychain(plugin="", reason=reason)))
    assert {key.name: key.value for key in proposal.keys} == {
        "name": "memory",
        "key_file": "/state/own/key.pem",
    }
    assert "models.key_file" in proposal.notes[0]


def test_a_keychain_that_is_locked_is_named_all_the_same_and_the_way_on_is_told():
    locked = found(keychain=FoundKeychain(plugin="linux", reason=Reason.KEYCHAIN_LOCKED))
    assert keys(Config(), locked) == {"keychain.name": "linux"}
    assert "unlock it" in propose(Config(), locked).notes[0]


def test_a_keychain_that_was_named_is_never_replaced_by_memory():
    named = parse_config({"keychain": {"name": "linux"}})
    assert keys(named, found(keychain=ABSENT)) == {}
    assert "companion init" in propose(named, found(keychain=ABSENT)).notes[0]
    memory = parse_config({"keychain": {"name": "memory"}})
    assert keys(memory, found(keychain=ABSENT)) == {"models.key_file": "/state/own/key.pem"}
    assert propose(memory, found(keychain=ABSENT)).notes == ()


@pytest.mark.parametrize("publisher", [False, True])
@pytest.mark.parametrize("keychain", [LINUX, ABSENT])
def test_a_new_file_says_what_was_proposed_and_the_rest_of_it_is_comments(publisher, keychain):
    what = found(EMBEDDED, OLLAMA, keychain=keychain)
    text = add_keys(new_file(Config(), what, publisher=publisher), propose(Config(), what).keys)
    document = tomllib.loads(text)
    config = parse_config(document, text=text)
    assert (config.runtime.name, config.runtime.binary) == ("llamacpp", "embedded")
    assert '# binary = "/usr/bin/ollama"' in text
    assert ("# [manifest]" in text) is not publisher
    assert keys(config, what) == {}  # run again, it has nothing to add
