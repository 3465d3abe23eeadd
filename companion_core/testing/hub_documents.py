"""What the double of a model hub says about its repositories, as the public hub words it.

docs/hub.md has the facts and their sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

__all__ = ["describe_repository", "list_tree"]


def describe_repository(
    name: str, commit: str, files: Mapping[str, bytes], *, blobs: bool
) -> dict[str, Any]:
    """Return the answer about a repository; with `blobs`, sizes and digests of its files."""
    siblings = []
    for path, data in sorted(files.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"blobId": _git_id(data), "size": len(data)}
            if path.endswith(".gguf"):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        siblings.append(entry)
    return {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 1,
        "likes": 0,
        "tags": ["gguf", "license:apache-2.0"],
        "cardData": {"license": "apache-2.0"},
        "siblings": siblings,
    }


def list_tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the answer that lists the files of a repository."""
    return [
        {
            "type": "file",
            "path": path,
            "size": len(data),
            "oid": _git_id(data),
            "lfs": {
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            },
        }
        for path, data in sorted(files.items())
    ]


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
