"""Rules for this file: a request body is one JSON object with each key once (RFC 8259).

It is parsed, never scanned as text, and written anew for the backend: the model's name is
replaced and the fields that the runtime's plugin named are gone. A body of more than `LARGE_BODY`
is read in slices (`sliced_body`), to the same result. No I/O.
"""

from __future__ import annotations

import json
import json.encoder
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NoReturn

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.http.sliced_body import (
    LARGE_BODY,
    MAX_DEPTH,
    TooManyItems,
    WrittenTexts,
    read_in_slices,
)

__all__ = [
    "LARGE_BODY",
    "encode_body",
    "is_json",
    "parse_body",
    "parse_large_body",
    "rename_fields",
]

_MALFORMED = refuse(Reason.MALFORMED_BODY)
_NOT_SERVED = refuse(Reason.MODEL_NOT_SERVED)
_TOO_LARGE = refuse(Reason.BODY_TOO_LARGE)

# A web page can send text/plain or a form without asking first; JSON it cannot.
_JSON_TYPE = re.compile(
    r'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.IGNORECASE
)


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


_SPACE: Final = " \t\r\n"  # RFC 8259 section 2
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_constant=_no_constant)
# What `_DECODER.raw_decode` calls; it raises StopIteration where no value begins.
_scan: Final[Callable[[str, int], tuple[Any, int]]] = vars(_DECODER)["scan_once"]
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def _make_encoder(
    write: Callable[[str], str] = json.encoder.encode_basestring_ascii,
) -> Callable[[dict[str, Any], int], Iterable[str]]:
    """Return what `_ENCODER.iterencode` calls, made once where CPython makes it per call.

    That takes a third of its time.
    """
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda fields, _level: _ENCODER.iterencode(fields)
    return make(None, _ENCODER.default, write, None, ":", ",", False, False, False)  # type: ignore[no-any-return]  # noqa: FBT003 - it takes no keywords


_encode: Final = _make_encoder()


# The names that OpenAI's clients send most: no two of them differ in case alone, so a request
# that has no other names has each of them in one spelling.
_USUAL_NAMES: Final = frozenset(
    {
        *("frequency_penalty", "input", "logit_bias", "logprobs", "max_completion_tokens"),
        *("max_tokens", "messages", "model", "n", "parallel_tool_calls", "presence_penalty"),
        *("prompt", "response_format", "seed", "stop", "stream", "stream_options", "temperature"),
        *("tool_choice", "tools", "top_logprobs", "top_p", "user"),
    }
)


def parse_body(
    raw: bytes | bytearray, model_id: str, aliases: AbstractSet[str] = frozenset()
) -> dict[str, Any] | Verdict:
    """Return the fields of a request for `model_id`, or `malformed_body` or `model_not_served`.

    A request that names the model by an alias is one for `model_id` from here on.

    Some backends (Go's encoding/json) match the names of fields whatever their case, so two
    names that differ in case alone are one field given twice.
    """
    try:
        text = raw.decode().strip(_SPACE)
        fields, end = _scan(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return _MALFORMED
    if end != len(text) or type(fields) is not dict:
        return _MALFORMED
    if len(raw) > 2 * MAX_DEPTH and _too_deep(raw, fields):
        return _MALFORMED
    return _judge(fields, model_id, aliases)


def parse_large_body(
    raw: bytes | bytearray, model_id: str, aliases: AbstractSet[str] = frozenset()
) -> Generator[None, None, dict[str, Any] | Verdict]:
    """Do what `parse_body` does, in slices: yields between them, and returns the same.

    The answer may also be `body_too_large`: for more items than a request has.
    """
    try:
        text = raw.decode()
        yield
        fields = yield from read_in_slices(text.strip(_SPACE), _scan)
    except TooManyItems:
        return _TOO_LARGE
    except (ValueError, RecursionError):
        return _MALFORMED
    return _judge(fields, model_id, aliases)


def _too_deep(raw: bytes | bytearray, fields: dict[str, Any]) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _judge(
    fields: dict[str, Any], model_id: str, aliases: AbstractSet[str]
) -> dict[str, Any] | Verdict:
    if not _USUAL_NAMES.issuperset(fields) and _two_spellings(fields):
        return _MALFORMED
    model = fields.get("model")
    if model == model_id and type(model) is str:
        return fields
    if type(model) is not str or model not in aliases:
        return _NOT_SERVED
    fields["model"] = model_id
    return fields


def _two_spellings(fields: dict[str, Any]) -> bool:
    names = "".join(fields)
    if names.isascii() and names.islower():
        return False
    return len(set(map(str.casefold, fields))) != len(fields)


def rename_fields(fields: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give fields the names that the backend reads; a field that has that name already gives way.

    Args:
        fields: from `parse_body`; changed in place.
        names: from a casefolded name to the backend's; names are compared whatever their case.
    """
    for name in [name for name in fields if name.casefold() in names]:
        read = names[name.casefold()]
        value = fields.pop(name)
        if value is not None:  # to OpenAI's clients that is a field that was not given
            for other in [other for other in fields if other.casefold() == read.casefold()]:
                del fields[other]
            fields[read] = value


def encode_body(
    fields: dict[str, Any], served_model: str, drop_fields: AbstractSet[str]
) -> bytes | Verdict:
    """Return the body for the backend; `malformed_body` when it cannot be written as JSON.

    Args:
        fields: from `parse_body`; changed in place.
        served_model: what the backend calls the model.
        drop_fields: names to leave out, casefolded; they are compared whatever their case.
    """
    if drop_fields and not drop_fields.isdisjoint(map(str.casefold, fields)):
        for name in [name for name in fields if name.casefold() in drop_fields]:
            del fields[name]
    fields["model"] = served_model
    try:
        encode = _make_encoder(fields.write) if type(fields) is WrittenTexts else _encode
        return "".join(encode(fields, 0)).encode("ascii")
    except (ValueError, RecursionError):
        return _MALFORMED  # a number such as 1e999 has no JSON form
