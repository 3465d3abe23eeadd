"""Splits a GGUF file into parts, as llama.cpp's own `gguf-split` does.

The first part has all of the model's entries, each part has its tensors, and three entries say
which part it is: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_ALIGNMENT = 32
_U16, _I32 = 2, 5
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class _Tensor:
    described: bytes  # its name, shape and kind
    content: bytes


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return int(value)

    def skip_text(self) -> None:
        length = self.number("Q")
        self.at += length

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip_text()
        elif kind == _ARRAY:
            element, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip_value(element)
        else:
            self.at += _SIZES[kind]


def split_model(model: Path, folder: Path, count: int) -> list[Path]:
    """Write the model's parts into `folder` and return them in order."""
    version, entries, entry_count, tensors = _read(model.read_bytes())
    each = -(-len(tensors) // count)
    paths = []
    for number in range(count):
        mine = tensors[number * each : (number + 1) * each]
        about = [
            _entry("split.no", _U16, struct.pack("<H", number)),
            _entry("split.count", _U16, struct.pack("<H", count)),
            _entry("split.tensors.count", _I32, struct.pack("<i", len(tensors))),
        ]
        own = entries if number == 0 else b""
        total = len(about) + (entry_count if number == 0 else 0)
        head = b"GGUF" + struct.pack("<IQQ", version, len(mine), total) + own + b"".join(about)
        content = b""
        for tensor in mine:
            head += tensor.described + struct.pack("<Q", len(content))
            content += _padded(tensor.content)
        path = folder / f"{model.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(_padded(head) + content)
        paths.append(path)
    return paths


def _read(data: bytes) -> tuple[int, bytes, int, list[_Tensor]]:
    cursor = _Cursor(data)
    cursor.at = 4
    version, tensor_count, entry_count = (cursor.number(code) for code in "IQQ")
    began = cursor.at
    for _ in range(entry_count):
        cursor.skip_text()
        cursor.skip_value(cursor.number("I"))
    entries = data[began : cursor.at]
    described, offsets = [], []
    for _ in range(tensor_count):
        began = cursor.at
        cursor.skip_text()
        for _ in range(cursor.number("I")):
            cursor.number("Q")
        cursor.number("I")
        described.append(data[began : cursor.at])
        offsets.append(cursor.number("Q"))
    start = cursor.at + -cursor.at % _ALIGNMENT
    ends = [*sorted(offsets)[1:], len(data) - start]
    end_of = dict(zip(sorted(offsets), ends, strict=True))
    tensors = [
        _Tensor(text, data[start + offset : start + end_of[offset]])
        for text, offset in zip(described, offsets, strict=True)
    ]
    return version, entries, entry_count, tensors


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)
