"""Content digests of bytes, pixels and files: the names under which everything is remembered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3


def digest_bytes(content: bytes) -> bytes:
    """BLAKE3 digest (32 bytes) of an encoded image."""
    return blake3(b"bytes:").update(content).digest()


def digest_pixels(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """BLAKE3 digest (32 bytes) of a uint8 array, its shape included."""
    header = f"pixels:{'x'.join(map(str, pixels.shape))}:".encode()
    return blake3(header).update(np.ascontiguousarray(pixels).data.cast("B")).digest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
