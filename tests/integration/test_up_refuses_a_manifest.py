"""A manifest that is wrong, old or missing: what `companion up` says, and that nothing is left."""

from __future__ import annotations

import base64
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from refused_up import expect_refusal

from companion_core.decisions.manifest import PAYLOAD_TYPE
from companion_core.decisions.signatures import key_id, pre_authentication_encoding
from companion_core.demo.run import MODEL_FILE
from companion_core.errors import Reason

pytestmark = pytest.mark.data_integrity


def reseal(raw: bytes, **changes) -> bytes:
    """Change an envelope without its key."""
    return json.dumps({**json.loads(raw), **changes}).encode()


def test_a_wrong_signature_is_refused(world):
    raw = world.publish()
    signature = json.loads(raw)["signatures"][0]
    wrong = base64.b64encode(bytes(64)).decode()
    changed = reseal(raw, signatures=[{**signature, "signature": wrong}])
    world.manifest_host.content = {"/manifest.json": changed}
    world.configure()
    expect_refusal(world, Reason.MANIFEST_SIGNATURE_INVALID, 3)


def test_a_changed_payload_is_refused(world):
    raw = world.publish()
    payload = base64.b64decode(json.loads(raw)["payload"])
    changed = payload.replace(b'"tiny"', b'"Tiny"')
    assert changed != payload
    world.manifest_host.content = {
        "/manifest.json": reseal(raw, payload=base64.b64encode(changed).decode())
    }
    world.configure()
    expect_refusal(world, Reason.MANIFEST_SIGNATURE_INVALID, 3)


def test_an_expired_manifest_is_refused(world):
    world.publish()
    world.sign(now=dt.datetime.now(dt.UTC) - dt.timedelta(days=3))
    world.configure()
    expect_refusal(world, Reason.MANIFEST_EXPIRED, 3)


def test_an_older_manifest_than_the_one_seen_is_refused(world):
    old = world.publish()
    world.sign()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    for file in world.stored_models():
        file.unlink()
    world.manifest_host.content = {"/manifest.json": old}
    expect_refusal(world, Reason.MANIFEST_ROLLED_BACK, 3)


def test_a_second_instance_is_not_led_back(world):
    old = world.publish()
    world.sign()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    world.manifest_host.content = {"/manifest.json": old}
    up = world.companion("--instance", "second", "up", "--detach", "--json")
    assert json.loads(up.stdout)["reason"] == Reason.MANIFEST_ROLLED_BACK


def test_a_missing_manifest_is_told(world):
    world.configure()
    expect_refusal(world, Reason.MANIFEST_UNAVAILABLE, 4)


def test_a_model_that_is_not_in_the_manifest_is_refused(world):
    world.publish()
    world.configure(model={"id": "huge"})
    expect_refusal(world, Reason.MODEL_NOT_IN_MANIFEST, 3)


def test_an_http_address_in_the_manifest_is_refused(world):
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


def test_a_model_host_that_is_the_manifest_host_is_refused(world):
    url = world.model_host.url(f"/{MODEL_FILE.name}").replace("127.0.0.1", "localhost")
    world.publish(url=url)
    world.configure()
    expect_refusal(world, Reason.MANIFEST_UNTRUSTED, 3)


def sign_by_hand(world) -> None:
    """Sign the draft without the checks of the publisher's tool."""
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
