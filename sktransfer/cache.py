"""The cache of embeddings: what this process remembers in memory, and the store on disk behind it.

Whatever goes wrong with the store costs speed and one warning, never a result.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from blake3 import blake3

from sktransfer.blocks import Block, Space
from sktransfer.claims import NO_CLAIM, Claim
from sktransfer.database import StoreVersionError, is_network_folder
from sktransfer.exceptions import CacheWarning
from sktransfer.folders import DIRECTORY_VARIABLE, user_folder
from sktransfer.front import Front
from sktransfer.places import Places, name_place
from sktransfer.sizes import format_bytes, parse_bytes
from sktransfer.store import RESERVE_BYTES, TOUCH_SECONDS, Store

if TYPE_CHECKING:
    import pandas as pd

SIZE_VARIABLE = "SKTRANSFER_CACHE_SIZE"
FOLDER_NAME = "sktransfer-embeddings"  # removed as a whole when damaged, so a name that nobody else uses
DEFAULT_BYTES = 5 * 10**9  # of the file
READ_BLOCKS = 64  # at once

CacheDir = str | os.PathLike[str] | Literal["auto"] | None
Vector = np.ndarray[Any, np.dtype[np.float32]]
T = TypeVar("T")

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}


class EmbeddingCache:
    """Vectors by (space, image digest), and the shortcuts that lead to digests. Safe for threads.

    Without a folder it remembers nothing, and every image is the caller's to compute.
    """

    def __init__(self, folder: Path | None, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder, self._max_bytes = folder, max_bytes
        self._lock = threading.RLock()
        self._front = Front()
        self.places = Places(self._find_shortcuts, remembers=folder is not None)
        self._facts: dict[bytes, dict[str, Any]] = {}
        self._store: Store | None = None
        self._given_up = False  # the store cannot be used by this process
        self._writable = True
        self._said: set[str] = set()  # kinds of warnings
        self._unsaid: list[str] = []
        self.hits: Counter[bytes] = Counter()  # by key of the space
        self.misses: Counter[bytes] = Counter()

    # -- the store, and what may go wrong with it -----------------------------------------------------------------

    def _open(self) -> Store | None:
        if self.folder is None or self._given_up:
            return None
        if self._store is None:
            if is_network_folder(self.folder):
                self._give_up("it lies on a network file system, whose locks cannot be relied on")
                return None
            for attempt in (0, 1):
                try:
                    self._store = Store(self.folder, self._max_bytes)
                    break
                except StoreVersionError as error:
                    self._give_up(f"it {error}; upgrade sktransfer, or choose another folder")
                except (sqlite3.Error, OSError) as error:
                    if attempt or not self._start_anew(error):
                        self._give_up(str(error))
                if self._given_up:
                    return None
            if self._store is not None and self._store.database.read_only:
                self._writable = False
        return self._store

    def keeps(self) -> bool:
        """Whether there is a store that can be written."""
        with self._lock:
            return self._open() is not None and self._writable

    def _ask(self, action: Callable[[Store], T], default: T, *, write: bool = False) -> T:
        """What `action` returns, or `default` where there is no store or it fails."""
        with self._lock:
            store = self._open()
            if store is None:
                return default
            if write and not self._writable:
                if "full" not in self._said:
                    self._say("read-only", self._describe_read_only())
                return default
        try:
            return action(store)
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                if self._store is store:
                    self._handle(error)
            return default

    def _handle(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            self._writable = False
            self._say("full", f"The disk of the {self._name} is full: new embeddings are not stored. {_REMEDY}")
        elif code == sqlite3.SQLITE_READONLY or getattr(error, "errno", 0) in (errno.EROFS, errno.EACCES):
            self._writable = False
            self._say("read-only", self._describe_read_only())
        elif not self._start_anew(error):
            self._give_up(str(error))

    def _start_anew(self, error: Exception) -> bool:
        """Put a damaged file away, once; returns whether the store may be opened again."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        assert self.folder is not None
        if code not in _DAMAGED or "damaged" in self._said or not os.access(self.folder, os.W_OK):
            return False
        self._close()
        aside = self.folder.with_name(f"{self.folder.name}-damaged-{secrets.token_hex(4)}")
        try:
            self.folder.rename(aside)  # with its log and shared memory, which belong to no other file
        except OSError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        self._say("damaged", f"The {self._name} was damaged ({error}): it starts anew, and images are embedded again.")
        return True

    def _give_up(self, reason: str) -> None:
        self._close()
        self._given_up = True
        self._say("given up", f"The {self._name} cannot be used: {reason}. Every process embeds for itself. {_REMEDY}")

    def _describe_read_only(self) -> str:
        return f"The {self._name} cannot be written; new embeddings are not stored. {_REMEDY}"

    @property
    def _name(self) -> str:
        return f"embedding cache {str(self.folder)!r}"

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._unsaid.append(message)

    def warn(self, stacklevel: int) -> None:
        """Give the warnings that have come up, each kind once in a process."""
        store = self._store
        if store is not None:
            if store.damaged_blocks:
                self._say("damaged", f"The {self._name} holds damaged blocks: their images are embedded again.")
            if store.crowded_bytes:
                size, bound = format_bytes(store.crowded_bytes), format_bytes(store.max_bytes)
                self._say(
                    "crowded",
                    f"The {self._name} holds {size} in use by running processes, more than its bound of {bound}, and "
                    f"grows beyond it: evicting them would cost more passes. Set {SIZE_VARIABLE}, for example to 20GB.",
                )
            if store.short_of_disk:
                left = format_bytes(RESERVE_BYTES)
                self._say(
                    "full",
                    f"The disk of the {self._name} has less than {left} left: new embeddings are not stored. {_REMEDY}",
                )
        with self._lock:
            messages, self._unsaid = self._unsaid, []
        for message in messages:
            warnings.warn(message, CacheWarning, stacklevel=stacklevel + 1)

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with contextlib.suppress(sqlite3.Error, OSError):
                store.close()

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            self._close()

    def leave_to_parent(self, inherited: list[Any]) -> None:
        """In a forked child: the vectors in memory stay, the open file is the parent's."""
        self._lock = threading.RLock()
        self.places.reset_lock()
        inherited.append(self._store)
        self._store = None
        self.hits.clear()
        self.misses.clear()

    # -- vectors --------------------------------------------------------------------------------------------------

    def fetch(self, space: Space, images: Iterable[bytes]) -> dict[bytes, Vector]:
        """The vectors that are known, from memory or from the store."""
        if self.folder is None:
            return {}
        with self._lock:
            found, unknown, used = self._front.find(space.key, images)
            now = time.time()
            idle = [block for block in used if now - block.touched > TOUCH_SECONDS]
        if idle:
            self._ask(lambda store: store.touch(idle, now), None)
        if unknown:
            ids = self._ask(lambda store: store.find(space, unknown), list[int]())
            wanted = set(unknown)
            for start in range(0, len(ids), READ_BLOCKS):
                self._read(space, ids[start : start + READ_BLOCKS], wanted, found)
        return found

    def _read(self, space: Space, ids: Sequence[int], wanted: set[bytes], found: dict[bytes, Vector]) -> None:
        """Read blocks into memory, and the wanted vectors into `found`."""
        blocks = self._ask(lambda store: store.read(space, ids), list[Block]())
        with self._lock:
            for block in blocks:
                self._front.add(space.key, block)
        for block in blocks:
            rows = [row for row, image in enumerate(block.images) if image in wanted]
            # A few vectors shall not keep a long block in memory.
            vectors = block.vectors if 2 * len(rows) > len(block.images) else block.vectors[rows]
            chosen = rows if vectors is block.vectors else range(len(rows))
            found.update((block.images[row], vectors[place]) for row, place in zip(rows, chosen, strict=True))

    def contains(self, space: Space, images: Iterable[bytes]) -> set[bytes]:
        """The images whose vectors are in the store; they are not read."""
        return self._ask(lambda store: store.contains(space, images), set[bytes]())

    def claim(self, space: Space, images: Sequence[bytes], limit: int | None = None) -> Claim:
        """What the caller shall compute, at most `limit` images, and what other processes are computing.

        The rest has been stored meanwhile, or is beyond the limit.
        """
        if not images:
            return NO_CLAIM
        alone = Claim(0, set(images), set())
        return self._ask(lambda store: store.claim(space, images, limit), alone, write=True)

    def publish(self, space: Space, images: Sequence[bytes], vectors: Vector, claim: Claim) -> None:
        """Remember vectors (n, d), let others have them, and end the claim."""
        if self.folder is None:
            return
        if not images:
            self.release(claim)
            return
        block_id = self._ask(lambda store: store.publish(space, images, vectors, claim), 0, write=True)
        with self._lock:
            self._front.add(space.key, Block(block_id, list(images), vectors))

    def release(self, claim: Claim) -> None:
        """End a claim."""
        if claim.id and self._writable:
            self._ask(lambda store: store.release(claim), None)

    def renew(self) -> None:
        """Tell other processes that work on the claims goes on."""
        if self._writable:
            self._ask(lambda store: store.renew(), None)

    def flush(self) -> None:
        """Write what a call has gathered: shortcuts, and which blocks were used."""
        with self._lock:
            if self._store is not None and not self._store.database.is_current():
                self._close()  # put away by another process
        self.keep_shortcuts()
        if self._writable:
            self._ask(lambda store: store.flush(), None)

    def keep_shortcuts(self) -> None:
        """Write what was learnt of places."""
        shortcuts = self.places.take_new()
        if shortcuts and self._writable:
            self._ask(lambda store: store.keep_shortcuts(shortcuts.items()), None)

    def count(self, space: Space, hits: int, misses: int, *, report: bool = False) -> None:
        """Count images that were known, and images that were run; `report` tells the parent process too."""
        with self._lock:
            self.hits[space.key] += hits
            self.misses[space.key] += misses
        if report and self._writable:
            self._ask(lambda store: store.report(hits, misses), None)

    def reports_of_children(self) -> tuple[int, int]:
        """(hits, passes) that worker processes have reported."""
        return self._ask(lambda store: store.reports_of_children(), (0, 0))

    def _find_shortcuts(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        return self._ask(lambda store: store.find_shortcuts(names), dict[bytes, bytes]())

    # -- facts ----------------------------------------------------------------------------------------------------

    def recall(self, kind: str, inputs: Sequence[object], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` returned for the same inputs before: JSON, kept beside the vectors."""
        key = blake3(repr((kind, *inputs)).encode()).digest()
        known = self._facts.get(key)
        if known is None:
            text = self._ask(lambda store: store.find_fact(key), None)
            known = json.loads(text) if text is not None else compute()
            self._facts[key] = known
            if text is None and self._writable and self.folder is not None:
                self._ask(lambda store: store.keep_fact(key, json.dumps(known)), None)
        return dict(known)

    # -- for people -----------------------------------------------------------------------------------------------

    def info(self) -> CacheInfo:
        """What `cache_info` returns."""
        lines = self._ask(lambda store: store.summarise(), list[dict[str, Any]]())
        for line in lines:
            key = line.pop("key")
            line["hits"], line["misses"] = self.hits[key], self.misses[key]
        n_bytes = self._ask(lambda store: store.database.n_bytes, 0)
        hits, misses = sum(self.hits.values()), sum(self.misses.values())
        assert self.folder is not None
        return CacheInfo(self.folder, sum(line["entries"] for line in lines), n_bytes, self._max_bytes,
                         hits, misses, tuple(lines))  # fmt: skip

    def clear(self) -> None:
        """Remove every vector and shortcut, in memory and on disk."""
        with self._lock:
            self._front = Front()
            self.places.clear()
            self._facts.clear()
        self._ask(lambda store: store.clear(), None, write=True)

    def forget(self, images: Sequence[bytes], places: Sequence[str]) -> int:
        """Remove the vectors of images, by digest and by the places they were read from; returns how many."""
        names = [name_place(place) for place in places]
        removed = self._ask(lambda store: store.forget(images, names), 0, write=True)
        with self._lock:
            self._front = Front()
            self.places.forget(places)
        return removed

    def prune(self, max_bytes: int, unused_seconds: float | None) -> int:
        """Evict to `max_bytes`, and what was not used for `unused_seconds`; returns the number of vectors."""

        def evict(store: Store) -> int:
            removed = 0
            if unused_seconds is not None:
                removed += store.evict(0, before=time.time() - unused_seconds)
            removed += store.evict(max_bytes, before=float("inf"))
            store.database.compact()
            return removed

        return self._ask(evict, 0, write=True)


@dataclass(frozen=True)
class CacheInfo:
    """State of a cache of embeddings."""

    folder: Path
    entries: int  # vectors on disk
    bytes: int  # on disk
    max_bytes: int
    hits: int  # images that this process found there or in its memory
    misses: int  # images that this process sent through a backbone
    spaces: tuple[dict[str, Any], ...]

    @property
    def backbones(self) -> pd.DataFrame:
        """One line for each backbone and layer: backbone, layer, n_features, entries, bytes, used, hits, misses."""
        import pandas as pd

        columns = ["backbone", "layer", "n_features", "entries", "bytes", "used", "hits", "misses"]
        frame = pd.DataFrame(list(self.spaces), columns=columns)
        frame["used"] = pd.to_datetime(frame["used"], unit="s")
        return frame

    def __str__(self) -> str:
        return (
            f"{self.entries} vectors in {format_bytes(self.bytes)} of {format_bytes(self.max_bytes)} at {self.folder}; "
            f"this process: {self.hits} hits, {self.misses} misses"
        )


_REMEDY = f"Set {DIRECTORY_VARIABLE} to a folder on a local disk that can be written, or pass cache_dir=None."
_caches: dict[str, EmbeddingCache] = {}
_caches_lock = threading.Lock()
NO_CACHE = EmbeddingCache(None)


def open_cache(cache_dir: CacheDir = "auto") -> EmbeddingCache:
    """The cache of this process at `cache_dir`: "auto", a path, or None, which remembers nothing."""
    if cache_dir is None:
        return NO_CACHE
    folder = locate_cache(cache_dir)
    max_bytes = _read_bound(os.environ.get(SIZE_VARIABLE, ""))
    with _caches_lock:
        cache = _caches.get(str(folder))
        if cache is None:
            cache = _caches[str(folder)] = EmbeddingCache(Path(os.path.realpath(folder)), max_bytes)
        return cache


def locate_cache(cache_dir: CacheDir = "auto") -> Path:
    """The folder of the embeddings for a value of `cache_dir`."""
    if cache_dir == "auto":
        cache_dir = user_folder()
    if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
        raise ValueError(f'cache_dir must be "auto", a path or None. Got {cache_dir!r} instead.')
    return Path(os.path.abspath(os.path.expanduser(cache_dir))) / FOLDER_NAME


def _read_bound(text: str) -> int:
    return parse_bytes(text, SIZE_VARIABLE) if text else DEFAULT_BYTES


def cache_info(cache_dir: CacheDir = "auto") -> CacheInfo:
    """What the cache of embeddings holds.

    Parameters
    ----------
    cache_dir : "auto" or path, default="auto"
        "auto" is the environment variable SKTRANSFER_CACHE_DIR, else the user's cache folder.

    Returns
    -------
    CacheInfo
        `folder`, `entries`, `bytes` and `max_bytes` on disk, `hits` and `misses` of this process, and `backbones`, a
        frame with one line for each backbone and layer.
    """
    return _open_existing(cache_dir).info()


def clear_cache(cache_dir: CacheDir = "auto") -> None:
    """Remove every embedding of a cache, on disk and in this process.

    Parameters
    ----------
    cache_dir : "auto" or path, default="auto"
        As for :func:`cache_info`.
    """
    cache = _open_existing(cache_dir)
    cache.clear()
    cache.warn(stacklevel=2)


def _open_existing(cache_dir: CacheDir) -> EmbeddingCache:
    if cache_dir is None:
        raise ValueError('cache_dir must be "auto" or a path. Got None instead, which remembers nothing.')
    return open_cache(cache_dir)


def close_all() -> None:
    """Close every store of this process and forget what it remembers."""
    with _caches_lock:
        for cache in _caches.values():
            cache.close()
        _caches.clear()


atexit.register(close_all)

_inherited: list[Any] = []  # connections of the parent process, which SQLite forbids to use or close here


def _reset_after_fork() -> None:
    global _caches_lock
    _caches_lock = threading.Lock()
    for cache in (NO_CACHE, *_caches.values()):
        cache.leave_to_parent(_inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
