"""Digest of an embedding -> vector, remembered within the process and bounded in bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

MAX_BYTES = 512 * 2**20  # of vectors, for each cache folder

Vector = np.ndarray[Any, np.dtype[np.float32]]


class EmbeddingCache:
    """Bounded mapping from key to vector; the least recently used leave first. Safe for threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Vector | None:
        """The vector stored under `key`, or None."""
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector

    def put(self, key: bytes, vector: Vector) -> None:
        """Remember a copy of `vector` under `key`."""
        vector = vector.copy()
        with self._lock:
            previous = self._vectors.pop(key, None)
            self._vectors[key] = vector
            self._bytes += vector.nbytes - (0 if previous is None else previous.nbytes)
            while self._bytes > self._max_bytes and len(self._vectors) > 1:
                self._bytes -= self._vectors.popitem(last=False)[1].nbytes


_caches: dict[str, EmbeddingCache] = {}


def open_cache(cache_dir: str | os.PathLike[str] | None) -> EmbeddingCache | None:
    """The process-wide cache of `cache_dir` ("auto" or a path), or None where nothing shall be remembered."""
    if cache_dir is None:
        return None
    return _caches.setdefault(os.fspath(cache_dir), EmbeddingCache())


def forget_all() -> None:
    """Drop every vector remembered in this process."""
    _caches.clear()
