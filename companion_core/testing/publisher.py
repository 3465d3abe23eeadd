"""A publisher for tests: signs any document, valid or not, with a key of its own.

`companion_core.authority.publisher` refuses to sign what a reader would refuse; this one does not.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from companion_core.decisions.manifest import pre_authentication_encoding
from companion_core.decisions.manifest_kind import PAYLOAD_TYPE, ManifestKind
from companion_core.decisions.signatures import KEY_PREFIX, key_id

__all__ = ["TEST_NOW", "FakePublisher", "manifest_document"]

# A moment inside the life of `manifest_document`, in seconds since the epoch.
TEST_NOW = dt.datetime(2026, 1, 15, tzinfo=dt.UTC).timestamp()


def manifest_document(url: str, data: bytes, **changes: Any) -> dict[str, Any]:
    """Return a valid payload for one model with one file, with top-level fields changed."""
    document = {
        "schema": 1,
        "version": 1,
        "issued": "2026-01-01T00:00:00Z",
        "expires": "2026-01-31T00:00:00Z",
        "allowed_sources": [url.rpartition("/")[0] + "/"],
        "models": [
            {
                "id": "tiny",
                "format": "gguf",
                "licence": "Apache-2.0",
                "chat_template": None,
                "files": [
                    {
                        "name": "tiny.gguf",
                        "size": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "urls": [url],
                    }
                ],
            }
        ],
    }
    return {**copy.deepcopy(document), **changes}


class FakePublisher:
    """Holds a key and signs with it.

    Attributes:
        public_key: as `manifest.trusted_keys` has it.
    """

    def __init__(self, seed: bytes = bytes(range(32))) -> None:
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self._raw = self._key.public_key().public_bytes_raw()
        self.public_key = KEY_PREFIX + base64.b64encode(self._raw).decode("ascii")

    def signature(self, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> dict[str, str]:
        """Return an envelope's entry for `payload`."""
        signed = self._key.sign(pre_authentication_encoding(payload_type, payload))
        return {
            "key_id": key_id(self._raw),
            "signature": base64.b64encode(signed).decode("ascii"),
        }

    def envelope(
        self,
        document: dict[str, Any] | bytes,
        kind: ManifestKind = ManifestKind.PUBLISHER,
        **changes: Any,
    ) -> bytes:
        """Return the signed envelope of a document, with fields of the envelope changed."""
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        fields = {
            "payload_type": kind.payload_type,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [self.signature(payload, kind.payload_type)],
        }
        return json.dumps({**fields, **changes}).encode()
