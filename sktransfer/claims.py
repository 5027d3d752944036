"""Who computes what: the processes that use a database, and the images that each has promised to compute."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sktransfer.blocks import split_images
from sktransfer.database import Database
from sktransfer.liveness import LifeSign, is_alive

CLAIM_SECONDS = 30  # without a sign of progress, until others take the work over
ACTIVE_SECONDS = 24 * 3600  # since its last call, while a living process counts as one that uses the cache
FORGET_SECONDS = 3600  # after its last call, until a process that is gone is forgotten


@dataclass(frozen=True)
class Claim:
    """Images that one process has promised to compute."""

    id: int  # 0: not in the database
    images: set[bytes]
    held: set[bytes]  # asked for too, and being computed by others


NO_CLAIM = Claim(0, set(), set())


class Workers:
    """The processes that use a database, this one among them, and their claims.

    Methods that write do so within the caller's transaction; `register` has one of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._life_sign: LifeSign | None = None
        self._owner = 0
        self._renewed = 0.0

    @property
    def _signs(self) -> Path:
        return self._database.folder / "processes"

    def register(self) -> None:
        """Become known to the others, and forget those that are long gone."""
        if self._life_sign is not None:
            return
        life_sign, now = LifeSign(self._signs), time.time()
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO owners (sign, parent, started, active, hits, passes) VALUES (?, ?, ?, ?, 0, 0)",
                (life_sign.name, os.getppid(), int(now), now),
            )
            self._owner, self._renewed = int(cursor.lastrowid or 0), now
            old = "SELECT id, sign FROM owners WHERE active < ?"
            for owner, sign in connection.execute(old, (now - FORGET_SECONDS,)).fetchall():
                if not is_alive(self._signs, sign):
                    connection.execute("DELETE FROM owners WHERE id = ?", (owner,))
        self._life_sign = life_sign

    def leave(self) -> None:
        """Give the life sign up: what is claimed is free for others."""
        if self._life_sign is not None:
            self._life_sign.release()

    # -- claims ---------------------------------------------------------------------------------------------------

    def sort_out(self, space_id: int, images: set[bytes]) -> tuple[set[bytes], set[bytes], list[int]]:
        """The images that are free, those that others are computing, and the owners whose claims do not stand."""
        query = "SELECT owner, images FROM claims WHERE space = ?"
        claims = self._database.connection.execute(query, (space_id,)).fetchall()
        working = {owner: self._is_working(owner) for owner in {owner for owner, _ in claims}}
        held: set[bytes] = set()
        for owner, claimed in claims:
            if working[owner]:
                held.update(images.intersection(split_images(claimed)))
        return images - held, held, [owner for owner, works in working.items() if not works]

    def _is_working(self, owner: int) -> bool:
        """Whether the claims of an owner stand."""
        query = "SELECT sign, active FROM owners WHERE id = ?"
        row = self._database.connection.execute(query, (owner,)).fetchone()
        if row is None or abs(time.time() - row[1]) > CLAIM_SECONDS:
            return False
        return owner == self._owner or is_alive(self._signs, row[0])

    def claim(self, space_id: int, images: set[bytes], limit: int | None) -> Claim:
        """Promise to compute up to `limit` of `images`, none of which is stored."""
        connection = self._database.connection
        free, held, dead = self.sort_out(space_id, images)
        connection.executemany("DELETE FROM claims WHERE owner = ?", [(owner,) for owner in dead])
        taken, claim_id = set(islice(free, limit)), 0
        if taken:
            row = (space_id, self._owner, b"".join(taken))
            cursor = connection.execute("INSERT INTO claims (space, owner, images) VALUES (?, ?, ?)", row)
            claim_id = int(cursor.lastrowid or 0)
        self.renew()
        return Claim(claim_id, taken, held)

    def release(self, claim: Claim) -> None:
        """End a claim."""
        if claim.id:
            self._database.connection.execute("DELETE FROM claims WHERE id = ?", (claim.id,))

    # -- signs of progress ----------------------------------------------------------------------------------------

    @property
    def is_renewal_due(self) -> bool:
        """Whether the others should hear of this process again."""
        return time.time() - self._renewed > CLAIM_SECONDS / 6

    def renew(self) -> None:
        """Say that this process makes progress; at most once a second."""
        now = time.time()
        if now - self._renewed > 1:
            row = (now, self._owner)
            self._database.connection.execute("UPDATE owners SET active = ? WHERE id = ?", row)
            self._renewed = now

    def oldest_start(self) -> float:
        """When the oldest process began that still uses the database."""
        query = "SELECT id, sign, started FROM owners WHERE active > ?"
        now = time.time()
        owners: Sequence[tuple[int, str, int]]
        owners = self._database.connection.execute(query, (now - ACTIVE_SECONDS,)).fetchall()
        return min(
            (start for owner, sign, start in owners if owner == self._owner or is_alive(self._signs, sign)), default=now
        )

    # -- what worker processes report -----------------------------------------------------------------------------

    def report(self, hits: int, passes: int) -> None:
        """Add to what this process has done."""
        row = (hits, passes, self._owner)
        query = "UPDATE owners SET hits = hits + ?, passes = passes + ? WHERE id = ?"
        self._database.connection.execute(query, row)

    def reports_of_children(self) -> tuple[int, int]:
        """(hits, passes) that the child processes of this one have reported."""
        query = "SELECT coalesce(sum(hits), 0), coalesce(sum(passes), 0) FROM owners WHERE parent = ?"
        hits, passes = self._database.connection.execute(query, (os.getpid(),)).fetchone()
        return hits, passes
