"""Rules for this file: a request body is one JSON object with each key once (RFC 8259).

It is parsed, never scanned as text, and written anew for the backend: the model's name is
replaced and the fields that the runtime's plugin named are gone. No I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Final, NoReturn

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason

__all__ = ["encode_body", "is_json", "parse_body"]

_MALFORMED = refuse(Reason.MALFORMED_BODY)
_NOT_SERVED = refuse(Reason.MODEL_NOT_SERVED)

# A web page can send text/plain or a form without asking first; JSON it cannot.
_JSON_TYPE = re.compile(r'application/json(?:[ \t]*;[ \t]*charset="?utf-8"?)?', re.IGNORECASE)


def is_json(content_type: str | None) -> bool:
    """Tell whether a Content-Type names JSON in UTF-8."""
    if content_type == "application/json":
        return True
    return content_type is not None and _JSON_TYPE.fullmatch(content_type) is not None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_constant=_no_constant)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def parse_body(raw: bytes | bytearray, model_id: str) -> dict[str, Any] | Verdict:
    """Return the fields of a request for `model_id`, or `malformed_body` or `model_not_served`."""
    try:
        fields = _DECODER.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return _MALFORMED
    if not isinstance(fields, dict):
        return _MALFORMED
    model = fields.get("model")
    if not isinstance(model, str) or model != model_id:
        return _NOT_SERVED
    return fields


def encode_body(
    fields: dict[str, Any], *, served_model: str, drop_fields: Collection[str]
) -> bytes | Verdict:
    """Return the body for the backend; `malformed_body` when it cannot be written as JSON."""
    kept = {name: value for name, value in fields.items() if name not in drop_fields}
    kept["model"] = served_model
    try:
        return _ENCODER.encode(kept).encode("ascii")
    except (ValueError, RecursionError):
        return _MALFORMED  # a number such as 1e999 has no JSON form
