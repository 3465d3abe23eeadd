from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.signatures import (
    key_id,
    parse_public_key,
    pre_authentication_encoding,
    signature_is_valid,
    trusted_signers,
)

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parents[2] / "vectors" / "wycheproof" / "ed25519_test.json"
P = 2**255 - 19

# RFC 8032 section 7.1, tests 1 and 3.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]

# The y coordinates of the points of order 1, 2, 4 and 8, little-endian.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]


def text(raw: bytes) -> str:
    return "ed25519:" + base64.b64encode(raw).decode()


def test_wycheproof() -> None:
    document = json.loads(VECTORS.read_text(encoding="utf-8"))
    seen, wrong = 0, []
    for group in document["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            seen += 1
            valid = signature_is_valid(key, bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
            if valid is not (case["result"] == "valid"):
                wrong.append(case["tcId"])
    assert (seen, wrong) == (document["numberOfTests"], [])


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_rfc_8032(key: str, message: str, signature: str) -> None:
    raw, signed = bytes.fromhex(key), bytes.fromhex(signature)
    assert parse_public_key(text(raw)) == raw
    assert signature_is_valid(raw, signed, bytes.fromhex(message))
    assert not signature_is_valid(raw, signed, bytes.fromhex(message) + b"\0")


@pytest.mark.parametrize("encoded", SMALL_ORDER)
@pytest.mark.parametrize("sign", [0, 0x80])
def test_points_of_small_order_are_no_keys(encoded: str, sign: int) -> None:
    raw = bytearray.fromhex(encoded)
    raw[31] |= sign
    assert parse_public_key(text(bytes(raw))) is None


def test_why_small_order_matters() -> None:
    """Under the neutral element, one signature fits every message: the loader must refuse it."""
    neutral = bytes.fromhex(SMALL_ORDER[0])
    forged = neutral + bytes(32)
    assert signature_is_valid(neutral, forged, b"any message")
    assert signature_is_valid(neutral, forged, b"any other message")


@given(st.integers(0, 18))
def test_non_canonical_encodings_are_no_keys(excess: int) -> None:
    assert parse_public_key(text((P + excess).to_bytes(32, "little"))) is None


@given(st.text() | st.none() | st.binary() | st.integers())
def test_the_key_parser_is_total(value: object) -> None:
    parse_public_key(value)
    parse_public_key(f"ed25519:{value}")


@pytest.mark.parametrize(
    "key", ["", "ed25519:", "ed25519:AA==", "rsa:" + "A" * 43 + "=", text(bytes(33)), None]
)
def test_what_is_no_key(key: object) -> None:
    assert parse_public_key(key) is None


def test_pre_authentication_encoding() -> None:
    # The example of the DSSE v1 protocol document.
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_verification_is_total(key: bytes, signature: bytes, message: bytes) -> None:
    assert not signature_is_valid(key[:31], signature, message)
    assert not signature_is_valid(key, signature[:63], message)


def test_no_trusted_key_is_no_trust() -> None:
    key, _, signature = (bytes.fromhex(part) for part in RFC_8032[0])
    pair = (key_id(key), signature)
    assert trusted_signers([pair, pair], [key], b"") == (key_id(key),)
    assert trusted_signers([pair], [], b"") == ()
    assert trusted_signers([], [key], b"") == ()
    assert trusted_signers([("0" * 64, signature)], [key], b"") == ()
    assert trusted_signers([(key_id(key), bytes(64))], [key], b"") == ()
