"""One SQLite file that the processes of a machine share: its layout, its transactions, its size."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

LAYOUT = 1  # raise it when the tables change
FILE_NAME = "vectors.sqlite"
BUSY_SECONDS = 20  # that a write waits for the others

_APPLICATION_ID = 0x736B7472
_PAGE_SIZE = 4096  # small pages: a block is much longer, and only its last page is partly empty
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


class StoreVersionError(Exception):
    """The file was written by a newer sktransfer, or is no cache at all."""


class Database:
    """An open file. Safe for threads; a forked child opens its own.

    Every method may raise sqlite3.Error or OSError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE_NAME
        self.lock = threading.RLock()
        self.read_only = not _make_private(folder)
        self.connection = self._connect()
        try:
            self._prepare()
        except BaseException:
            self.connection.close()
            raise
        self._inode = os.stat(self.path).st_ino

    def _connect(self) -> sqlite3.Connection:
        # An immutable file is read without the locks and the shared memory that a read-only folder cannot hold.
        query = "?mode=ro&immutable=1" if self.read_only else ""
        uri = self.path.absolute().as_uri() + query
        return sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        execute = self.connection.execute
        execute("PRAGMA cache_size = -16000")
        created = self._check_layout()
        if not self.read_only:
            execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._retry(lambda: execute("PRAGMA journal_mode = WAL"))
            execute("PRAGMA synchronous = NORMAL")
            execute("PRAGMA secure_delete = FAST")
            execute("PRAGMA wal_autocheckpoint = 2000")
            execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
            if not created:
                with self.transaction():
                    if not self._check_layout():  # otherwise another process was faster
                        self._create()

    def _check_layout(self) -> bool:
        """Whether the tables are there; an error if they are not ours. Changes nothing."""
        execute = self.connection.execute
        # The tables first: another process creates them and sets the numbers in one transaction.
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application, layout = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
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
                self.connection.execute(statement)
        self.connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self.connection.execute(f"PRAGMA user_version = {LAYOUT}")

    def _retry(self, action: Callable[[], Any]) -> Any:
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes that are done as a whole or not at all."""
        with self.lock:
            if self.connection.in_transaction:  # left by an interrupt
                self.connection.rollback()
            self._retry(lambda: self.connection.execute("BEGIN IMMEDIATE"))
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.rollback()
                raise

    def select(self, query: str, values: Iterable[Any], *before: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query whose ``{}`` is the list of values, asked in parts."""
        iterator = iter(values)
        while part := tuple(islice(iterator, 500)):
            yield from self.connection.execute(query.format(",".join("?" * len(part))), (*before, *part))

    @property
    def n_bytes(self) -> int:
        """Bytes in use, without the free pages of the file."""
        with self.lock:
            pages, free = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
            )
            return int((pages - free) * _PAGE_SIZE)

    def compact(self) -> None:
        """Give free pages back to the disk."""
        with self.lock:
            self.connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def is_current(self) -> bool:
        """Whether the file at its place is still the one that is open."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self.connection.close()


def _make_private(folder: Path) -> bool:
    """Make the folder, for the user alone; returns whether it can be written."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / FILE_NAME
    return os.access(folder, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


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
