"""Vectors that were computed together, as one row of bytes that proves itself."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3

PROOF_BYTES = 16
DIGEST_BYTES = 32  # of an image

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Space:
    """What makes vectors comparable: everything in their key but the image."""

    key: bytes  # 32 bytes
    backbone: str
    layer: str
    n_features: int


@dataclass(eq=False)
class Block:
    """Vectors that were computed together."""

    id: int  # 0: not in the store
    images: list[bytes]  # their digests, 32 bytes each
    vectors: Vectors  # (n, d)
    touched: float = field(default_factory=time.time)  # when the store was last told that it is used


def prove(*parts: bytes | memoryview) -> bytes:
    """A digest of some parts, to be kept beside them."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest(length=PROOF_BYTES)


def pack_block(images: Sequence[bytes], vectors: Vectors, space: Space) -> bytes:
    """Proof, digests of the images, vectors."""
    body = b"".join(images) + np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    return prove(space.key, struct.pack("<i", len(images)), body) + body


def unpack_block(block_id: int, content: Any, space: Space) -> Block | None:
    """The block, or None where its content is not what was written."""
    size = DIGEST_BYTES + 4 * space.n_features
    if not isinstance(content, bytes) or len(content) <= PROOF_BYTES or (len(content) - PROOF_BYTES) % size:
        return None
    n = (len(content) - PROOF_BYTES) // size
    if prove(space.key, struct.pack("<i", n), memoryview(content)[PROOF_BYTES:]) != content[:PROOF_BYTES]:
        return None
    vectors = np.frombuffer(content, dtype="<f4", offset=PROOF_BYTES + DIGEST_BYTES * n).reshape(n, space.n_features)
    if sys.byteorder == "big":
        vectors = vectors.astype(np.float32)
    return Block(block_id, split_images(content[PROOF_BYTES : PROOF_BYTES + DIGEST_BYTES * n]), vectors)


def split_images(content: bytes) -> list[bytes]:
    """Digests that lie one after the other."""
    return [content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)]
