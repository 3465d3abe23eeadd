"""Rules: what the head of a GGUF file says, read as what it is: bytes of a stranger.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
A head may be cut off (a range request brings its beginning); what was read by then is told. Imports
no I/O; never raises on bad input.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

__all__ = ["HEAD_BYTES", "MAGIC", "GgufHead", "Scalar", "parse_gguf"]

MAGIC: Final = b"GGUF"
# What is worth reading: the largest vocabularies take some 10 MB.
HEAD_BYTES: Final = 32 * 2**20
MAX_HEAD_BYTES: Final = 256 * 2**20  # llama.cpp reads the whole head into memory too
_VERSIONS: Final = frozenset({2, 3})
_MAX_ENTRIES: Final = 65536
_MAX_KEY_BYTES: Final = 65535
_MAX_TEXT_BYTES: Final = 2**20  # a chat template has tens of KiB
_MAX_TENSORS: Final = 2**16  # the largest models have some thousand
_MAX_DIMENSIONS: Final = 4
_ALIGNMENTS: Final = frozenset(2**power for power in range(3, 17))  # 32 is the usual one
_MAX_NUMBERS: Final = 4096  # of an array that has one entry for each layer
_MAX_NUMBERS_KEPT: Final = 2**16  # of all arrays

Scalar: TypeAlias = int | float | bool | str

_STRING, _ARRAY = 8, 9
_SIMPLE: Final[Mapping[int, struct.Struct]] = MappingProxyType(
    {
        kind: struct.Struct("<" + code)
        for kind, code in enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])
    }
    | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
)
_U32, _U64 = _SIMPLE[4], _SIMPLE[10]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """What the head of a GGUF file says.

    Attributes:
        version: of the format.
        tensors: how many there are; 0 in the first part of some split models.
        fields: key and value of each entry that is one number, truth value or text.
        numbers: the arrays of whole numbers that have one entry for each layer, the first of them.
        lengths: how many elements each array has.
        data_ends: bytes from the file's start to the end of the last tensor, as far as its offset
            and shape tell; None if the head is cut off.
        complete: the head was there as a whole.
    """

    version: int
    tensors: int
    fields: Mapping[str, Scalar]
    numbers: Mapping[str, tuple[int, ...]]
    lengths: Mapping[str, int]
    data_ends: int | None
    complete: bool

    @property
    def architecture(self) -> str:
        """Such as "llama"; "clip" for a projector; empty if it is not told."""
        found = self.fields.get("general.architecture", "")
        return found if isinstance(found, str) else ""

    def number(self, key: str) -> int | None:
        """Return a whole number of the architecture's own, such as "context_length"."""
        value = self.fields.get(f"{self.architecture}.{key}")
        return value if type(value) is int and value >= 0 else None

    def text(self, key: str) -> str | None:
        """Return the text under a whole key, such as "tokenizer.chat_template"."""
        value = self.fields.get(key)
        return value if type(value) is str else None


class _CutOff(Exception):
    """The head ends before its end; what was read stands."""


class _Malformed(Exception):
    """It is no head of a GGUF file."""


def parse_gguf(data: object) -> GgufHead | None:
    """Return what the head says, or None if these are not the first bytes of a GGUF file.

    Args:
        data: bytes from the file's start; at least its first 24, better its first MiB.
    """
    if not isinstance(data, bytes | bytearray | memoryview) or bytes(data[:4]) != MAGIC:
        return None
    reader = _Reader(
        memoryview(data).cast("B") if isinstance(data, memoryview) else memoryview(data)
    )
    try:
        return _head(reader)
    except (_Malformed, _CutOff):
        return None


def _head(reader: _Reader) -> GgufHead:
    reader.skip(len(MAGIC))
    version = reader.whole(_U32)
    tensors, entries = reader.whole(_U64), reader.whole(_U64)
    if version not in _VERSIONS or tensors > _MAX_TENSORS or entries > _MAX_ENTRIES:
        raise _Malformed
    fields: dict[str, Scalar] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, int] = {}
    ends: int | None = None
    complete = False
    try:
        for _ in range(entries):
            _entry(reader, fields, numbers, lengths)
        ends = _tensors(reader, tensors, fields.get("general.alignment", 32))
        complete = True
    except _CutOff:
        pass
    return GgufHead(
        version=version,
        tensors=tensors,
        fields=MappingProxyType(fields),
        numbers=MappingProxyType(numbers),
        lengths=MappingProxyType(lengths),
        data_ends=ends,
        complete=complete,
    )


def _entry(
    reader: _Reader,
    fields: dict[str, Scalar],
    numbers: dict[str, tuple[int, ...]],
    lengths: dict[str, int],
) -> None:
    key = reader.text(_MAX_KEY_BYTES)
    if not key or key in fields or key in lengths:
        raise _Malformed
    kind = reader.whole(_U32)
    if kind == _STRING:
        fields[key] = reader.text(_MAX_TEXT_BYTES)
    elif kind == _ARRAY:
        element, length = reader.whole(_U32), reader.whole(_U64)
        lengths[key] = length
        if element == _STRING:
            reader.skip_texts(length)
        elif element in _SIMPLE:
            shape = _SIMPLE[element]
            if length <= _MAX_NUMBERS and shape.format[-1] in "BbHhIiQq" and reader.keeps(length):
                numbers[key] = tuple(reader.whole(shape) for _ in range(length))
            else:
                reader.skip(length * shape.size)
        else:
            raise _Malformed  # arrays of arrays are written by nobody
    elif kind in _SIMPLE:
        fields[key] = reader.value(_SIMPLE[kind])
    else:
        raise _Malformed


def _tensors(reader: _Reader, count: int, alignment: Scalar) -> int:
    """Return where the last tensor ends at least, from the file's start."""
    if type(alignment) is not int or alignment not in _ALIGNMENTS:
        raise _Malformed
    furthest = 0
    for _ in range(count):
        reader.text(_MAX_KEY_BYTES)
        dimensions = reader.whole(_U32)
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise _Malformed
        elements = 1
        for _ in range(dimensions):
            elements *= reader.whole(_U64)
        kind, offset = reader.whole(_U32), reader.whole(_U64)
        if not 0 < elements < 2**60 or offset >= 2**62 or offset % alignment:
            raise _Malformed
        furthest = max(furthest, offset + _least_bytes(kind, elements))
    start = -(-reader.position // alignment) * alignment
    return start + furthest if count else reader.position


def _least_bytes(kind: int, elements: int) -> int:
    """Return how many bytes a tensor has; 0 for a kind that is newer than this table."""
    block, size = _BLOCKS.get(kind, (1, 0))
    return -(-elements // block) * size


# For each kind of tensor: elements in a block, and bytes of a block (ggml.h, ggml-common.h).
_BLOCKS: Final[Mapping[int, tuple[int, int]]] = MappingProxyType(
    {
        0: (1, 4),  # F32
        1: (1, 2),  # F16
        2: (32, 18),  # Q4_0
        3: (32, 20),  # Q4_1
        6: (32, 22),  # Q5_0
        7: (32, 24),  # Q5_1
        8: (32, 34),  # Q8_0
        9: (32, 36),  # Q8_1
        10: (256, 84),  # Q2_K
        11: (256, 110),  # Q3_K
        12: (256, 144),  # Q4_K
        13: (256, 176),  # Q5_K
        14: (256, 210),  # Q6_K
        15: (256, 292),  # Q8_K
        16: (256, 66),  # IQ2_XXS
        17: (256, 74),  # IQ2_XS
        18: (256, 98),  # IQ3_XXS
        19: (256, 50),  # IQ1_S
        20: (32, 18),  # IQ4_NL
        21: (256, 110),  # IQ3_S
        22: (256, 82),  # IQ2_S
        23: (256, 136),  # IQ4_XS
        24: (1, 1),  # I8
        25: (1, 2),  # I16
        26: (1, 4),  # I32
        27: (1, 8),  # I64
        28: (1, 8),  # F64
        29: (256, 56),  # IQ1_M
        30: (1, 2),  # BF16
        34: (256, 54),  # TQ1_0
        35: (256, 66),  # TQ2_0
        39: (32, 17),  # MXFP4
    }
)


class _Reader:
    """Takes values off the front of a head; it never reads beyond what is there."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._kept = 0
        self.position = 0

    def keeps(self, count: int) -> bool:
        """Tell whether so many more numbers of arrays are kept: to read them takes long."""
        self._kept += count
        return self._kept <= _MAX_NUMBERS_KEPT

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        self._need(count)
        self.position += count

    def whole(self, shape: struct.Struct) -> int:
        """Take a whole number."""
        return int(self.value(shape))

    def value(self, shape: struct.Struct) -> int | float | bool:
        """Take a number or truth value."""
        self._need(shape.size)
        value: int | float | bool = shape.unpack_from(self._data, self.position)[0]
        self.position += shape.size
        return value

    def text(self, limit: int) -> str:
        """Take a text of at most `limit` bytes; bytes that are no UTF-8 are replaced."""
        length = self.whole(_U64)
        if length > limit:
            raise _Malformed
        self._need(length)
        raw = bytes(self._data[self.position : self.position + length])
        self.position += length
        return raw.decode(errors="replace")

    def skip_texts(self, count: int) -> None:
        """Pass over `count` texts, such as the words of a vocabulary."""
        data, position, end = self._data, self.position, len(self._data)
        unpack = _U64.unpack_from
        for _ in range(count):
            if position + _U64.size > end:
                raise _CutOff
            position += _U64.size + unpack(data, position)[0]
        self.position = position
        self._need(0)

    def _need(self, count: int) -> None:
        if self.position + count > len(self._data):
            if self.position + count > MAX_HEAD_BYTES:
                raise _Malformed
            raise _CutOff
