"""Vectors, shortcuts and claims in one SQLite file that the processes of a machine share.

Vectors that were computed together are one row: a *block* of the images' digests and their vectors, under a proof that
covers both. A block is what is read, checked and evicted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from blake3 import blake3

from sktransfer.liveness import LifeSign, is_alive

LAYOUT = 1  # raise it when the tables change
FILE_NAME = "vectors.sqlite"
CLAIM_SECONDS = 30  # without a sign of progress, until others take the work over
ACTIVE_SECONDS = 24 * 3600  # since its last call, while what a process used is kept whatever the bound says
TOUCH_SECONDS = 3600  # precision of "last used"
RESERVE_BYTES = 256 * 2**20  # left free on the disk
BUSY_SECONDS = 20  # that a write waits for the others

_APPLICATION_ID = 0x736B7472
_PAGE_SIZE = 4096  # small pages: a block is much longer, and only its last page is partly empty
_PROOF = 16  # bytes
_SCHEMA = """
CREATE TABLE spaces (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, backbone TEXT, layer TEXT, n_features INTEGER);
CREATE TABLE entries (space INTEGER, image BLOB, block INTEGER, position INTEGER,
                      PRIMARY KEY (space, image)) WITHOUT ROWID;
CREATE TABLE blocks (id INTEGER PRIMARY KEY, space INTEGER, n INTEGER, bytes INTEGER, used INTEGER);
CREATE TABLE payloads (block INTEGER PRIMARY KEY, content BLOB);
CREATE TABLE shortcuts (place BLOB PRIMARY KEY, validator_and_digest BLOB, checksum INTEGER) WITHOUT ROWID;
CREATE TABLE facts (key BLOB PRIMARY KEY, value TEXT, proof BLOB) WITHOUT ROWID;
CREATE TABLE claims (id INTEGER PRIMARY KEY, space INTEGER, owner INTEGER, images BLOB);
CREATE TABLE owners (id INTEGER PRIMARY KEY, sign TEXT UNIQUE, parent INTEGER, started INTEGER, active REAL,
                     hits INTEGER, passes INTEGER);
"""
_EMPTIED = ("entries", "blocks", "payloads", "shortcuts", "facts", "claims")  # spaces keep their numbers

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class StoreVersionError(Exception):
    """The file was written by a newer sktransfer, or is no cache at all."""


@dataclass(frozen=True)
class Space:
    """What makes vectors comparable: everything in their key but the image."""

    key: bytes  # 32 bytes
    backbone: str
    layer: str
    n_features: int


@dataclass(frozen=True)
class Claim:
    """Images that one process has promised to compute."""

    id: int  # 0: not in the store
    images: set[bytes]
    held: set[bytes]  # asked for too, and being computed by others


NO_CLAIM = Claim(0, set(), set())


@dataclass(eq=False)
class Block:
    """Vectors that were computed together."""

    id: int  # 0: not in the store
    images: list[bytes]  # their digests, 32 bytes each
    vectors: Vectors  # (n, d)
    touched: float = field(default_factory=time.time)  # when the store was last told that it is used


class Store:
    """An open file of vectors. Safe for threads; a forked child opens its own.

    Every method may raise sqlite3.Error or OSError.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.path, self.max_bytes = folder, folder / FILE_NAME, max_bytes
        self._lock = threading.RLock()
        self._spaces: dict[bytes, int] = {}
        self._life_sign: LifeSign | None = None
        self._owner = 0
        self._renewed = self._next_eviction = 0.0
        self._touched: set[int] = set()
        self.damaged_blocks = 0  # found and deleted so far
        self.crowded_bytes = 0  # size of the file, once it exceeds its bound and nothing may leave
        self.short_of_disk = False
        self.read_only = not _make_private(folder)
        self._connection = self._connect()
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise
        self._inode = os.stat(self.path).st_ino

    def _connect(self) -> sqlite3.Connection:
        # An immutable file is read without the locks and the shared memory that a read-only folder cannot hold.
        query = "?mode=ro&immutable=1" if self.read_only else ""
        uri = self.path.absolute().as_uri() + query
        return sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA cache_size = -16000")
        created = self._check_layout()
        if not self.read_only:
            execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._patiently(lambda: execute("PRAGMA journal_mode = WAL"))
            execute("PRAGMA synchronous = NORMAL")
            execute("PRAGMA secure_delete = OFF")
            execute("PRAGMA wal_autocheckpoint = 2000")
            execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
            if not created:
                with self._transaction():
                    if not self._check_layout():  # otherwise another process was faster
                        self._create()

    def _check_layout(self) -> bool:
        """Whether the tables are there; an error if they are not ours. Changes nothing."""
        execute = self._connection.execute
        application, layout = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != _APPLICATION_ID:
            raise StoreVersionError("is not a cache of sktransfer")
        if tables and layout != LAYOUT:
            raise StoreVersionError(
                f"has the layout {layout} of another version of sktransfer; this one reads {LAYOUT}"
            )
        return bool(tables)

    def _create(self) -> None:
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {LAYOUT}")

    # -- transactions ---------------------------------------------------------------------------------------------

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """Retry while other processes write; in short waits, so that Ctrl-C is heard."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection.in_transaction:  # left by an interrupt
                self._connection.rollback()
            self._patiently(lambda: self._connection.execute("BEGIN IMMEDIATE"))
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                raise

    def _select(self, query: str, values: Iterable[Any], *before: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query whose ``{}`` is the list of values, asked in parts."""
        iterator = iter(values)
        while part := tuple(islice(iterator, 500)):
            yield from self._connection.execute(query.format(",".join("?" * len(part))), (*before, *part))

    def _space_id(self, space: Space, *, create: bool = False) -> int | None:
        known = self._spaces.get(space.key)
        if known is not None:
            return known
        execute = self._connection.execute
        if create:
            execute(
                "INSERT OR IGNORE INTO spaces (key, backbone, layer, n_features) VALUES (?, ?, ?, ?)",
                (space.key, space.backbone, space.layer, space.n_features),
            )
        row = execute("SELECT id FROM spaces WHERE key = ?", (space.key,)).fetchone()
        if row is None:
            return None
        if not create:  # otherwise the transaction may still fail
            self._spaces[space.key] = row[0]
        return int(row[0])

    # -- vectors --------------------------------------------------------------------------------------------------

    def find(self, space: Space, images: Iterable[bytes]) -> list[Block]:
        """Every block that holds one of `images`."""
        with self._lock:
            space_id = self._space_id(space)
            if space_id is None:
                return []
            query = "SELECT DISTINCT block FROM entries WHERE space = ? AND image IN ({})"
            ids = sorted({row[0] for row in self._select(query, images, space_id)})
            query = "SELECT id, used, content FROM blocks LEFT JOIN payloads ON block = id WHERE id IN ({}) ORDER BY id"
            blocks, damaged, now = [], [], time.time()
            for block_id, used, content in self._select(query, ids):
                block = _unpack(block_id, content, space)
                if block is None:
                    damaged.append(block_id)
                    continue
                if now - used > TOUCH_SECONDS:
                    self._touched.add(block_id)
                blocks.append(block)
            missing = set(ids).difference((block.id for block in blocks), damaged)
            self._drop_damaged([*damaged, *missing])
            return blocks

    def contains(self, space: Space, images: Iterable[bytes]) -> set[bytes]:
        """Those of `images` that are stored."""
        with self._lock:
            space_id = self._space_id(space)
            query = """SELECT image, block, used FROM entries JOIN blocks ON id = block
                       WHERE entries.space = ? AND image IN ({})"""
            rows = [] if space_id is None else list(self._select(query, images, space_id))
            stale = time.time() - TOUCH_SECONDS
            self._touched.update(block for _, block, used in rows if used < stale)
            return {image for image, _, _ in rows}

    def touch(self, blocks: Iterable[Block], now: float) -> None:
        """Note that blocks are in use; written with the next `flush`."""
        with self._lock:
            for block in blocks:
                block.touched = now
                if block.id:
                    self._touched.add(block.id)

    def _drop_damaged(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        self.damaged_blocks += len(ids)
        if not self.read_only:
            with self._transaction() as connection:
                for block in ids:
                    connection.execute("DELETE FROM entries WHERE block = ?", (block,))  # rare, so without an index
                    connection.execute("DELETE FROM blocks WHERE id = ?", (block,))
                    connection.execute("DELETE FROM payloads WHERE block = ?", (block,))

    def publish(self, space: Space, images: Sequence[bytes], vectors: Vectors, claim: Claim) -> int:
        """Store vectors (n, d) and give the claim on them up; returns the id of their block, 0 if some were known."""
        if self._is_disk_short():
            self.release(claim)
            return 0
        with self._transaction() as connection:
            space_id = self._space_id(space, create=True)
            query = "SELECT image FROM entries WHERE space = ? AND image IN ({})"
            known = {row[0] for row in self._select(query, images, space_id)}
            rows = [row for row, image in enumerate(images) if image not in known]
            block_id = 0
            if rows:
                new = [images[row] for row in rows]
                content = _pack(new, vectors[rows], space)
                cursor = connection.execute(
                    "INSERT INTO blocks (space, n, bytes, used) VALUES (?, ?, ?, ?)",
                    (space_id, len(new), len(content), int(time.time())),
                )
                block_id = int(cursor.lastrowid or 0)
                connection.execute("INSERT INTO payloads VALUES (?, ?)", (block_id, content))
                connection.executemany(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    [(space_id, image, block_id, position) for position, image in enumerate(new)],
                )
            connection.execute("DELETE FROM claims WHERE id = ?", (claim.id,))
            self._renew(connection)
        self._keep_bound()
        return block_id if len(rows) == len(images) else 0

    def _is_disk_short(self) -> bool:
        self.short_of_disk = shutil.disk_usage(self.folder).free < RESERVE_BYTES
        return self.short_of_disk

    # -- claims ---------------------------------------------------------------------------------------------------

    def claim(self, space: Space, images: Sequence[bytes], limit: int | None = None) -> Claim:
        """Take images that nobody has and nobody is computing; with a `limit`, so many and only if there are any."""
        with self._lock:
            self._register()
            if limit is not None:
                free, held, _ = self._sort_out(space, images)
                if not free:
                    return Claim(0, set(), held)
            with self._transaction() as connection:
                free, held, dead = self._sort_out(space, images)
                connection.executemany("DELETE FROM claims WHERE owner = ?", [(owner,) for owner in dead])
                free = set(islice(free, limit))
                space_id = self._space_id(space, create=True)
                claim_id = 0
                if free:
                    row = (space_id, self._owner, b"".join(free))
                    cursor = connection.execute("INSERT INTO claims (space, owner, images) VALUES (?, ?, ?)", row)
                    claim_id = int(cursor.lastrowid or 0)
                self._renew(connection)
            return Claim(claim_id, free, held)

    def _sort_out(self, space: Space, images: Sequence[bytes]) -> tuple[set[bytes], set[bytes], list[int]]:
        """The images that are free, those that others are computing, and owners whose claims do not stand."""
        space_id = self._space_id(space)
        if space_id is None:
            return set(images), set(), []
        stored = self._select("SELECT image FROM entries WHERE space = ? AND image IN ({})", images, space_id)
        wanted = set(images).difference(row[0] for row in stored)
        held: set[bytes] = set()
        claims = self._connection.execute("SELECT owner, images FROM claims WHERE space = ?", (space_id,)).fetchall()
        working = {owner: self._is_working(owner) for owner in {owner for owner, _ in claims}}
        for owner, claimed in claims:
            if working[owner]:
                held.update(wanted.intersection(_split_images(claimed)))
        return wanted - held, held, [owner for owner, works in working.items() if not works]

    def _is_working(self, owner: int) -> bool:
        """Whether the claims of an owner stand."""
        row = self._connection.execute("SELECT sign, active FROM owners WHERE id = ?", (owner,)).fetchone()
        if row is None or abs(time.time() - row[1]) > CLAIM_SECONDS:
            return False
        return owner == self._owner or is_alive(self._signs, row[0])

    def release(self, claim: Claim) -> None:
        """Give a claim up."""
        if claim.id:
            with self._transaction() as connection:
                connection.execute("DELETE FROM claims WHERE id = ?", (claim.id,))

    def renew(self) -> None:
        """Tell the others that work goes on; costs nothing most of the time."""
        if time.time() - self._renewed > CLAIM_SECONDS / 6:
            with self._transaction() as connection:
                self._renew(connection)

    def _renew(self, connection: sqlite3.Connection) -> None:
        now = time.time()
        if now - self._renewed > 1:
            connection.execute("UPDATE owners SET active = ? WHERE id = ?", (now, self._owner))
            self._renewed = now

    # -- owners ---------------------------------------------------------------------------------------------------

    @property
    def _signs(self) -> Path:
        return self.folder / "processes"

    def _register(self) -> None:
        if self._life_sign is not None:
            return
        self._life_sign = LifeSign(self._signs)
        now = time.time()
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO owners (sign, parent, started, active, hits, passes) VALUES (?, ?, ?, ?, 0, 0)",
                (self._life_sign.name, os.getppid(), int(now), now),
            )
            self._owner, self._renewed = int(cursor.lastrowid or 0), now
            old = "SELECT id, sign FROM owners WHERE active < ?"
            for owner, sign in connection.execute(old, (now - TOUCH_SECONDS,)).fetchall():
                if not is_alive(self._signs, sign):
                    connection.execute("DELETE FROM owners WHERE id = ?", (owner,))
            connection.execute("DELETE FROM claims WHERE owner NOT IN (SELECT id FROM owners WHERE active > ?)",
                               (now - CLAIM_SECONDS,))  # fmt: skip

    def flush(self) -> None:
        """Write which blocks were used since the last time."""
        with self._lock:
            if self.read_only or not self._touched:
                return
            self._register()
            now = time.time()
            with self._transaction() as connection:
                touches = [(int(now), block) for block in self._touched]
                connection.executemany("UPDATE blocks SET used = ? WHERE id = ?", touches)
                self._renew(connection)
            self._touched.clear()

    def count(self, hits: int, passes: int) -> None:
        """Add to what this process reports to its parent."""
        with self._lock:
            self._register()
            with self._transaction() as connection:
                connection.execute(
                    "UPDATE owners SET hits = hits + ?, passes = passes + ? WHERE id = ?", (hits, passes, self._owner)
                )

    def count_of_children(self) -> tuple[int, int]:
        """(hits, passes) that the child processes of this one have reported."""
        with self._lock:
            query = "SELECT coalesce(sum(hits), 0), coalesce(sum(passes), 0) FROM owners WHERE parent = ?"
            hits, passes = self._connection.execute(query, (os.getpid(),)).fetchone()
            return hits, passes

    # -- the bound ------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """Bytes in use, without the free pages of the file."""
        with self._lock:
            pages, free = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
            )
            return int((pages - free) * _PAGE_SIZE)

    def _keep_bound(self) -> None:
        if self.n_bytes <= self.max_bytes or time.monotonic() < self._next_eviction:
            return
        self.flush()
        self.evict(int(0.9 * self.max_bytes), before=self._protected_since())
        if self.n_bytes > self.max_bytes:
            self.crowded_bytes = self.n_bytes
            self._next_eviction = time.monotonic() + 10

    def _protected_since(self) -> float:
        """What was used since then belongs to a running process."""
        with self._lock:
            started = [time.time()]
            for owner, sign, start, active in self._connection.execute("SELECT id, sign, started, active FROM owners"):
                active_now = owner == self._owner or is_alive(self._signs, sign)
                if active_now and time.time() - active < ACTIVE_SECONDS:
                    started.append(start)
            return min(started) - TOUCH_SECONDS

    def evict(self, target_bytes: int, before: float) -> int:
        """Drop the least recently used blocks until the file fits, none used since `before`; returns their vectors."""
        with self._lock:
            excess, dropped = self.n_bytes - target_bytes, []
            query = "SELECT id, space, n, bytes FROM blocks WHERE used < ? ORDER BY used, id"
            for block, space, n, size in self._connection.execute(query, (before,)):
                if excess <= 0:
                    break
                dropped.append((block, space, n))
                excess -= size
        iterator = iter(dropped)
        while part := list(islice(iterator, 64)):
            with self._transaction() as connection:
                for block, space, n in part:
                    self._delete_block(connection, block, space, n)
        if dropped:
            with self._transaction() as connection:
                digest = "substr(validator_and_digest, -32)"
                connection.execute(f"DELETE FROM shortcuts WHERE {digest} NOT IN (SELECT image FROM entries)")  # noqa: S608
        return sum(n for _, _, n in dropped)

    @staticmethod
    def _delete_block(connection: sqlite3.Connection, block: int, space: int, n: int) -> None:
        query = "SELECT substr(content, 1, ?) FROM payloads WHERE block = ?"
        row = connection.execute(query, (_PROOF + 32 * n, block)).fetchone()
        images = _split_images(row[0][_PROOF:]) if row is not None else []
        connection.executemany(
            "DELETE FROM entries WHERE space = ? AND image = ? AND block = ?",
            [(space, image, block) for image in images],
        )
        connection.execute("DELETE FROM blocks WHERE id = ?", (block,))
        connection.execute("DELETE FROM payloads WHERE block = ?", (block,))

    # -- removal on request ---------------------------------------------------------------------------------------

    def forget(self, images: Sequence[bytes], places: Sequence[bytes]) -> int:
        """Remove the vectors of images and the shortcuts of places, and overwrite what they left. Returns vectors."""
        removed = 0
        with self._lock:
            self._connection.execute("PRAGMA secure_delete = ON")
            spaces = [
                Space(*row)
                for row in self._connection.execute("SELECT key, backbone, layer, n_features FROM spaces").fetchall()
            ]
            gone = {both[-32:] for both in self.find_shortcuts(places).values()}.union(images)
            for space in spaces:
                for block in self.find(space, gone):
                    removed += self._rewrite_block(space, block, gone)
            with self._transaction() as connection:
                connection.executemany("DELETE FROM shortcuts WHERE place = ?", [(place,) for place in places])
                query = "DELETE FROM shortcuts WHERE substr(validator_and_digest, -32) = ?"
                connection.executemany(query, [(image,) for image in gone])
            self.compact()
            self._connection.execute("PRAGMA secure_delete = OFF")
        return removed

    def _rewrite_block(self, space: Space, block: Block, gone: set[bytes]) -> int:
        kept = [row for row, image in enumerate(block.images) if image not in gone]
        with self._transaction() as connection:
            space_id = self._space_id(space, create=True)
            assert space_id is not None
            self._delete_block(connection, block.id, space_id, len(block.images))
        if kept:
            self.publish(space, [block.images[row] for row in kept], block.vectors[kept], NO_CLAIM)
        return len(block.images) - len(kept)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._connection.execute("PRAGMA secure_delete = ON")
            with self._transaction() as connection:
                for table in _EMPTIED:
                    connection.execute(f"DELETE FROM {table}")  # noqa: S608
            self._touched.clear()
            self.compact()
            self._connection.execute("PRAGMA secure_delete = OFF")

    def compact(self) -> None:
        """Give free pages back to the disk."""
        with self._lock:
            self._connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    # -- shortcuts and facts --------------------------------------------------------------------------------------

    def find_shortcuts(self, places: Iterable[bytes]) -> dict[bytes, bytes]:
        """Validator and digest of each known place, the latter being the last 32 bytes."""
        with self._lock:
            query = "SELECT place, validator_and_digest, checksum FROM shortcuts WHERE place IN ({})"
            return {place: both for place, both, checksum in self._select(query, places) if crc32(both) == checksum}

    def keep_shortcuts(self, shortcuts: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember (place, validator and digest)."""
        # A digest that is not what was written leads nowhere; the checksum guards against halves of two versions.
        rows = sorted((place, both, crc32(both)) for place, both in shortcuts)
        if rows and not self._is_disk_short():
            with self._transaction() as connection:
                connection.executemany("INSERT OR REPLACE INTO shortcuts VALUES (?, ?, ?)", rows)

    def find_fact(self, key: bytes) -> str | None:
        """A text that was kept under `key`."""
        with self._lock:
            row = self._connection.execute("SELECT value, proof FROM facts WHERE key = ?", (key,)).fetchone()
            return row[0] if row is not None and _prove(key, row[0].encode()) == row[1] else None

    def keep_fact(self, key: bytes, value: str) -> None:
        """Remember a text."""
        with self._transaction() as connection:
            row = (key, value, _prove(key, value.encode()))
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    # -- the file -------------------------------------------------------------------------------------------------

    def summarise(self) -> list[dict[str, Any]]:
        """One line for each space: key, backbone, layer, n_features, entries, bytes, used (seconds since the epoch)."""
        with self._lock:
            names = ("key", "backbone", "layer", "n_features", "entries", "bytes", "used")
            query = """SELECT key, backbone, layer, n_features, sum(n), sum(bytes), max(used)
                       FROM blocks JOIN spaces ON spaces.id = blocks.space GROUP BY space ORDER BY backbone, layer"""
            return [dict(zip(names, row, strict=True)) for row in self._connection.execute(query)]

    def is_current(self) -> bool:
        """Whether the file at its place is still the one that is open."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the file, and stop being a process that uses it."""
        with self._lock:
            if self._life_sign is not None:
                self._life_sign.release()
            self._connection.close()


def _make_private(folder: Path) -> bool:
    """Make the folder, for the user alone; returns whether it can be written."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / FILE_NAME
    return os.access(folder, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


def _prove(*parts: bytes | memoryview) -> bytes:
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest(length=_PROOF)


def _pack(images: Sequence[bytes], vectors: Vectors, space: Space) -> bytes:
    body = b"".join(images) + np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    return _prove(space.key, struct.pack("<i", len(images)), body) + body


def _unpack(block_id: int, content: Any, space: Space) -> Block | None:
    """The block, or None where its content is not what was written."""
    size = 32 + 4 * space.n_features
    if not isinstance(content, bytes) or len(content) <= _PROOF or (len(content) - _PROOF) % size:
        return None
    n = (len(content) - _PROOF) // size
    if _prove(space.key, struct.pack("<i", n), memoryview(content)[_PROOF:]) != content[:_PROOF]:
        return None
    vectors = np.frombuffer(content, dtype="<f4", offset=_PROOF + 32 * n).reshape(n, space.n_features)
    if sys.byteorder == "big":
        vectors = vectors.astype(np.float32)
    return Block(block_id, _split_images(content[_PROOF : _PROOF + 32 * n]), vectors)


def _split_images(content: bytes) -> list[bytes]:
    return [content[start : start + 32] for start in range(0, len(content), 32)]


_NETWORK_TYPES = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "beegfs", "gpfs", "ceph", "fuse.sshfs", "fuse.s3fs",
     "fuse.gcsfuse", "fuse.glusterfs", "glusterfs", "9p", "ncpfs", "pvfs2", "orangefs")
)  # fmt: skip


def is_network_folder(folder: Path) -> bool:
    """Whether the folder lies on a file system that other machines write too, where SQLite's locks do not hold."""
    path = os.path.realpath(folder)
    if path.startswith(("\\\\", "//")):
        return True
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mounts = [(fields[1].replace("\\040", " "), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    inside = [mount for mount in mounts if path == mount[0] or path.startswith(mount[0].rstrip("/") + "/")]
    return bool(inside) and max(inside, key=lambda mount: len(mount[0]))[1] in _NETWORK_TYPES
