"""Content digests of bytes, pixels and files: the names under which everything is remembered."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

RACY_NS = 2_000_000_000  # a file changed this recently may change again without a new mtime

_file_digests: dict[str, tuple[tuple[int, ...], str]] = {}


def digest_bytes(content: bytes) -> bytes:
    """BLAKE3 digest (32 bytes) of an encoded image."""
    return blake3(b"bytes:").update(content).digest()


def digest_pixels(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """BLAKE3 digest (32 bytes) of a uint8 array, its shape included."""
    header = f"pixels:{'x'.join(map(str, pixels.shape))}:".encode()
    return blake3(header).update(np.ascontiguousarray(pixels).data.cast("B")).digest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    The digest is remembered while (size, mtime, ctime, inode) stay the same, unless the file was changed within two
    seconds of the hashing: such a file can change again under the same timestamps.
    """
    key = os.path.abspath(path)
    stamp = _stamp(path)
    known = _file_digests.get(key)
    if known is not None and known[0] == stamp:
        return known[1]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _stamp(path) == stamp and time.time_ns() - stamp[1] > RACY_NS:
        _file_digests[key] = (stamp, digest)
    return digest


def _stamp(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
