"""Each bad input, against the real path: its exit code, reason and advice, and nothing left."""

import base64
import datetime as dt
import json
import shutil

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from companion_core.decisions.manifest import PAYLOAD_TYPE
from companion_core.decisions.signatures import key_id, pre_authentication_encoding
from companion_core.demo.run import MODEL_FILE
from companion_core.errors import REASONS, Reason
from companion_core.testing.model_host import Misbehaviour

pytestmark = pytest.mark.data_integrity


def expect_refusal(world, reason: Reason, code: int) -> None:
    """Bring it up; see the refusal in text and JSON, no runtime and nothing to run later."""
    up = world.companion("up", "--detach", "--json")
    assert up.returncode == code, up.stderr
    assert up.stderr.splitlines()[-1] == f"companion: {reason.value}: {REASONS[reason].advice}"
    assert json.loads(up.stdout) == {
        "ok": False,
        "reason": reason.value,
        "advice": REASONS[reason].advice,
    }
    assert world.wait_until_alone() == []
    assert world.stored_models() == []
    assert world.companion("status").returncode == 5


def reseal(raw: bytes, **changes) -> bytes:
    """Change an envelope without its key."""
    return json.dumps({**json.loads(raw), **changes}).encode()


def test_a_wrong_signature(world):
    raw = world.publish()
    signature = json.loads(raw)["signatures"][0]
    wrong = base64.b64encode(bytes(64)).decode()
    changed = reseal(raw, signatures=[{**signature, "signature": wrong}])
    world.manifest_host.content = {"/manifest.json": changed}
    world.configure()
    expect_refusal(world, Reason.MANIFEST_SIGNATURE_INVALID, 3)


def test_a_changed_payload(world):
    raw = world.publish()
    payload = base64.b64decode(json.loads(raw)["payload"])
    changed = payload.replace(b'"tiny"', b'"Tiny"')
    assert changed != payload
    world.manifest_host.content = {
        "/manifest.json": reseal(raw, payload=base64.b64encode(changed).decode())
    }
    world.configure()
    expect_refusal(world, Reason.MANIFEST_SIGNATURE_INVALID, 3)


def test_an_expired_manifest(world):
    world.publish()
    world.sign(now=dt.datetime.now(dt.UTC) - dt.timedelta(days=3))
    world.configure()
    expect_refusal(world, Reason.MANIFEST_EXPIRED, 3)


def test_an_older_manifest_than_the_one_seen(world):
    old = world.publish()
    world.sign()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    for file in world.stored_models():
        file.unlink()
    world.manifest_host.content = {"/manifest.json": old}
    expect_refusal(world, Reason.MANIFEST_ROLLED_BACK, 3)


def test_no_manifest_there(world):
    world.configure()
    expect_refusal(world, Reason.MANIFEST_UNAVAILABLE, 4)


def test_a_model_that_is_not_in_the_manifest(world):
    world.publish()
    world.configure(model={"id": "huge"})
    expect_refusal(world, Reason.MODEL_NOT_IN_MANIFEST, 3)


def test_a_digest_that_does_not_match(world):
    other = bytes(reversed(world.content))
    world.publish()
    world.model_host.content = {f"/{MODEL_FILE.name}": other}
    world.configure()
    expect_refusal(world, Reason.DIGEST_MISMATCH, 3)


@pytest.mark.parametrize("bit", [0, 4_000_001, -1])
def test_a_flip_of_one_bit(world, bit):
    world.publish()
    world.model_host.misbehave = Misbehaviour(flip_bit=bit % (8 * len(world.content)))
    world.configure()
    expect_refusal(world, Reason.DIGEST_MISMATCH, 3)


def test_a_size_that_does_not_match(world):
    world.publish(content=world.content + b"x")
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


@pytest.mark.parametrize("unannounced", [True, False], ids=["unannounced", "announced"])
def test_a_longer_stream(world, unannounced):
    world.publish()
    world.model_host.misbehave = Misbehaviour(extra=1, unannounced=unannounced)
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


def test_a_shorter_stream(world):
    world.publish()
    world.model_host.content = {f"/{MODEL_FILE.name}": world.content[:-1]}
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


def test_an_http_address_in_the_manifest(world):
    """A publisher's own tool refuses it; a hand-made manifest is refused by the reader."""
    world.publish()
    draft = world.draft / "draft.json"
    draft.write_text(draft.read_text().replace("https://", "http://"))
    sign_by_hand(world)
    world.configure()
    up = world.companion("up", "--detach", "--json")
    assert up.returncode == 3, up.stderr
    assert json.loads(up.stdout)["reason"] in {"scheme_not_allowed", "manifest_malformed"}
    assert world.stored_models() == []
    assert world.wait_until_alone() == []


def test_an_http_manifest_address_is_wrong_configuration(world):
    world.configure(manifest={"url": "http://localhost/manifest.json"})
    assert world.companion("up", "--detach").returncode == 2


def test_a_model_host_that_is_the_manifest_host(world):
    url = world.model_host.url(f"/{MODEL_FILE.name}").replace("127.0.0.1", "localhost")
    world.publish(url=url)
    world.configure()
    expect_refusal(world, Reason.MANIFEST_UNTRUSTED, 3)


def test_a_missing_runtime(world):
    world.publish()
    world.configure(runtime={"binary": "/nonexistent/llama-server"})
    up = world.companion("up", "--detach")
    assert up.returncode == 4, up.stderr
    assert "companion: runtime_not_found: " in up.stderr.splitlines()[-1]
    assert world.wait_until_alone() == []


def test_a_runtime_that_others_may_write(world, tmp_path):
    program = tmp_path / "llama-server"
    shutil.copy("/bin/true", program)
    program.chmod(0o777)
    world.publish()
    world.configure(runtime={"binary": str(program)})
    up = world.companion("up", "--detach")
    assert up.returncode == 3, up.stderr
    assert "companion: runtime_unsafe: " in up.stderr.splitlines()[-1]
    assert world.wait_until_alone() == []


def test_a_runtime_whose_digest_nobody_recorded_or_that_changed(world, tmp_path):
    program = tmp_path / "llama-server"
    shutil.copy("/bin/true", program)
    program.chmod(0o755)
    world.publish()
    for recorded in ({}, {"binary_sha256": "0" * 64}):
        world.configure(runtime={"binary": str(program), **recorded})
        up = world.companion("up", "--detach")
        assert up.returncode == 3, up.stderr
        assert "companion: runtime_changed: " in up.stderr.splitlines()[-1]


def test_a_keychain_that_is_absent(world):
    world.publish()
    world.configure(keychain={"name": "linux"})
    without_bus = {"PATH": "/usr/bin:/bin", "HOME": str(world.folder)}
    up = world.companion("up", "--detach", "--json", env=without_bus)
    assert up.returncode == 4, up.stderr
    assert json.loads(up.stdout)["reason"] == "keychain_absent"
    assert world.stored_models() == []
    assert world.wait_until_alone() == []


def test_a_stored_model_that_was_changed_is_never_started(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    stored = max(world.stored_models(), key=lambda path: path.stat().st_size)
    assert stored.read_bytes() == world.content
    stored.chmod(0o600)
    changed = bytearray(world.content)
    changed[500_000] ^= 1
    stored.write_bytes(changed)
    world.model_host.content = {}
    up = world.companion("up", "--detach")
    assert up.returncode in {3, 4}, up.stderr
    assert world.stored_models() == []
    assert world.wait_until_alone() == []


def sign_by_hand(world) -> None:
    """Sign the draft as it is, without the checks of the publisher's tool."""
    draft = json.loads((world.draft / "draft.json").read_text())
    now = dt.datetime.now(dt.UTC)
    payload = json.dumps(
        {
            "schema": 1,
            "version": draft["version"] + 1,
            "issued": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "expires": (now + dt.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "allowed_sources": draft["allowed_sources"],
            "models": draft["models"],
        }
    ).encode()
    key = load_pem_private_key(world.key_file.read_bytes(), password=None)
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    envelope = {
        "payload_type": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {
                "key_id": key_id(key.public_key().public_bytes_raw()),
                "signature": base64.b64encode(signature).decode(),
            }
        ],
    }
    world.manifest_host.content = {"/manifest.json": json.dumps(envelope).encode()}
