"""Vectors by space and image, shortcuts and facts, in the database of a cache folder; bounded in bytes.

A block of vectors that were computed together is what is written, read, checked and evicted.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from sktransfer.blocks import (
    DIGEST_BYTES,
    PROOF_BYTES,
    Block,
    Space,
    Vectors,
    pack_block,
    prove,
    split_images,
    unpack_block,
)
from sktransfer.claims import NO_CLAIM, Claim, Workers
from sktransfer.database import Database

TOUCH_SECONDS = 3600  # precision of "last used"
RESERVE_BYTES = 250 * 10**6  # left free on the disk

_EMPTIED = ("entries", "blocks", "payloads", "shortcuts", "facts", "claims")  # spaces keep their numbers


class Store:
    """The vectors of a cache folder. Safe for threads; a forked child opens its own.

    Every method may raise sqlite3.Error or OSError.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.database = Database(folder)
        self._lock, self._connection = self.database.lock, self.database.connection
        self._select, self._transaction = self.database.select, self.database.transaction
        self._workers = Workers(self.database)
        self._spaces: dict[bytes, int] = {}
        self._next_eviction = 0.0
        self._touched: set[int] = set()
        self.damaged_blocks = 0  # found and deleted so far
        self.crowded_bytes = 0  # size of the file, once it exceeds its bound and nothing may leave
        self.short_of_disk = False

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

    def find(self, space: Space, images: Iterable[bytes]) -> list[int]:
        """The blocks that hold one of `images`, to be read in parts."""
        with self._lock:
            space_id = self._space_id(space)
            if space_id is None:
                return []
            query = "SELECT DISTINCT block FROM entries WHERE space = ? AND image IN ({})"
            return sorted({row[0] for row in self._select(query, images, space_id)})

    def read(self, space: Space, ids: Sequence[int]) -> list[Block]:
        """Blocks, without those that are damaged: these are deleted."""
        with self._lock:
            query = "SELECT id, used, content FROM blocks JOIN payloads ON block = id WHERE id IN ({}) ORDER BY id"
            blocks, now = [], time.time()
            for block_id, used, content in self._select(query, ids):
                block = unpack_block(block_id, content, space)
                if block is not None:
                    blocks.append(block)
                    if now - used > TOUCH_SECONDS:
                        self._touched.add(block_id)
            self._drop_damaged(sorted(set(ids).difference(block.id for block in blocks)))
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
        if not self.database.read_only:
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
                content = pack_block(new, vectors[rows], space)
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
            self._workers.release(claim)
            self._workers.renew()
        self._keep_bound()
        return block_id if len(rows) == len(images) else 0

    def _is_disk_short(self) -> bool:
        self.short_of_disk = shutil.disk_usage(self.database.folder).free < RESERVE_BYTES
        return self.short_of_disk

    # -- work shared with other processes -------------------------------------------------------------------------

    def claim(self, space: Space, images: Sequence[bytes], limit: int | None = None) -> Claim:
        """Take images that nobody has and nobody is computing; with a `limit`, so many and only if there are any."""
        with self._lock:
            self._workers.register()
            if limit is not None:
                space_id = self._space_id(space)
                free, held, _ = self._workers.sort_out(space_id or 0, self._find_missing(space_id, images))
                if not free:
                    return Claim(0, set(), held)
            with self._transaction():
                space_id = self._space_id(space, create=True)
                return self._workers.claim(space_id or 0, self._find_missing(space_id, images), limit)

    def _find_missing(self, space_id: int | None, images: Sequence[bytes]) -> set[bytes]:
        stored = self._select("SELECT image FROM entries WHERE space = ? AND image IN ({})", images, space_id)
        return set(images).difference(row[0] for row in stored)

    def release(self, claim: Claim) -> None:
        """Give a claim up."""
        if claim.id:
            with self._transaction():
                self._workers.release(claim)

    def renew(self) -> None:
        """Tell the others that work goes on; costs nothing most of the time."""
        if self._workers.is_renewal_due:
            with self._transaction():
                self._workers.renew()

    def flush(self) -> None:
        """Write which blocks were used since the last time."""
        with self._lock:
            if self.database.read_only or not self._touched:
                return
            self._workers.register()
            now = int(time.time())
            with self._transaction() as connection:
                touches = [(now, block) for block in self._touched]
                connection.executemany("UPDATE blocks SET used = ? WHERE id = ?", touches)
                self._workers.renew()
            self._touched.clear()

    def report(self, hits: int, passes: int) -> None:
        """Add to what this process tells its parent."""
        with self._lock:
            self._workers.register()
            with self._transaction():
                self._workers.report(hits, passes)

    def reports_of_children(self) -> tuple[int, int]:
        """(hits, passes) that the child processes of this one have reported."""
        with self._lock:
            return self._workers.reports_of_children()

    # -- the bound ------------------------------------------------------------------------------------------------

    def _keep_bound(self) -> None:
        if self.database.n_bytes <= self.max_bytes or time.monotonic() < self._next_eviction:
            return
        self.flush()
        with self._lock:
            protected_since = self._workers.oldest_start() - TOUCH_SECONDS
        self.evict(int(0.9 * self.max_bytes), before=protected_since)
        if self.database.n_bytes > self.max_bytes:
            self.crowded_bytes = self.database.n_bytes
            self._next_eviction = time.monotonic() + 10

    def evict(self, target_bytes: int, before: float) -> int:
        """Drop the least recently used blocks until the file fits, none used since `before`; returns their vectors."""
        with self._lock:
            excess, dropped = self.database.n_bytes - target_bytes, []
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
                query = (
                    "DELETE FROM shortcuts WHERE substr(validator_and_digest, -32) NOT IN (SELECT image FROM entries)"
                )
                connection.execute(query)
        return sum(n for _, _, n in dropped)

    @staticmethod
    def _delete_block(connection: sqlite3.Connection, block: int, space: int, n: int) -> None:
        query = "SELECT substr(content, 1, ?) FROM payloads WHERE block = ?"
        row = connection.execute(query, (PROOF_BYTES + DIGEST_BYTES * n, block)).fetchone()
        images = split_images(row[0][PROOF_BYTES:]) if row is not None else []
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
            gone = {both[-DIGEST_BYTES:] for both in self.find_shortcuts(places).values()}.union(images)
            for space in spaces:
                for block in self.read(space, self.find(space, gone)):
                    removed += self._rewrite_block(space, block, gone)
            with self._transaction() as connection:
                connection.executemany("DELETE FROM shortcuts WHERE place = ?", [(place,) for place in places])
                query = "DELETE FROM shortcuts WHERE substr(validator_and_digest, -32) = ?"
                connection.executemany(query, [(image,) for image in gone])
            self.database.compact()
            self._connection.execute("PRAGMA secure_delete = FAST")
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
            self.database.compact()
            self._connection.execute("PRAGMA secure_delete = FAST")

    # -- shortcuts and facts --------------------------------------------------------------------------------------

    def find_shortcuts(self, places: Iterable[bytes]) -> dict[bytes, bytes]:
        """Validator and digest of each known place, the latter being the last part."""
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
            return row[0] if row is not None and prove(key, row[0].encode()) == row[1] else None

    def keep_fact(self, key: bytes, value: str) -> None:
        """Remember a text."""
        with self._transaction() as connection:
            row = (key, value, prove(key, value.encode()))
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)

    # -- the file -------------------------------------------------------------------------------------------------

    def summarise(self) -> list[dict[str, Any]]:
        """One line for each space: key, backbone, layer, n_features, entries, bytes, used (seconds since the epoch)."""
        with self._lock:
            names = ("key", "backbone", "layer", "n_features", "entries", "bytes", "used")
            query = """SELECT key, backbone, layer, n_features, sum(n), sum(bytes), max(used)
                       FROM blocks JOIN spaces ON spaces.id = blocks.space GROUP BY space ORDER BY backbone, layer"""
            return [dict(zip(names, row, strict=True)) for row in self._connection.execute(query)]

    def close(self) -> None:
        """Close the file, and stop being a process that uses it."""
        with self._lock:
            self._workers.leave()
            self.database.close()
