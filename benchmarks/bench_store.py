"""Which store keeps vectors fastest and smallest?

    python -m benchmarks.bench_store [--rounds 5]

10,000 vectors are written in transactions of 16, as threads publish them, and read in random order through a fresh
connection: the project's store (SQLite, the vectors of a transaction in one row), SQLite with a row for each vector,
with and without rowid, LMDB with a value for each vector and with blocks, and a `.npy` file for each. Every vector that
is read is checked by its digest where the format has none of its own. Then half the file is cut off, and a process
reads on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
import numpy as np
from blake3 import blake3

from benchmarks.measure import alternate, spread, write_markdown
from sktransfer.blocks import Space
from sktransfer.claims import NO_CLAIM
from sktransfer.store import Store

N = 10_000
CHUNK = 16
SIZES = (256, 512, 1280)


def chunks(n: int = N):
    return (slice(start, start + CHUNK) for start in range(0, n, CHUNK))


def check(key: bytes, content) -> np.ndarray:
    """The vector behind its 16-byte proof."""
    view = memoryview(content)
    if blake3(key).update(view[16:]).digest(length=16) != view[:16]:
        raise ValueError("damaged")
    return np.frombuffer(view[16:], dtype=np.float32)


def seal(key: bytes, vector: np.ndarray) -> bytes:
    content = vector.tobytes()
    return blake3(key).update(content).digest(length=16) + content


class Ours:
    """The project's own."""

    def __init__(self, folder: Path, d: int) -> None:
        self.store, self.space = Store(folder, 10**12), Space(bytes(32), "backbone", "layer", d)

    def write(self, keys, vectors) -> None:
        for part in chunks():
            self.store.publish(self.space, keys[part], vectors[part], NO_CLAIM)

    def read(self, keys, out) -> None:
        row_of = {key: row for row, key in enumerate(keys)}
        for block in self.store.read(self.space, self.store.find(self.space, keys)):
            for key, vector in zip(block.images, block.vectors, strict=True):
                out[row_of[key]] = vector

    def close(self) -> None:
        self.store.close()


class Rows:
    """SQLite, one row a vector."""

    schema = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, key BLOB UNIQUE, content BLOB)"

    def __init__(self, folder: Path, _d: int) -> None:
        folder.mkdir(exist_ok=True)
        self.connection = sqlite3.connect(folder / "vectors.sqlite", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.execute(self.schema)

    def write(self, keys, vectors) -> None:
        for part in chunks():
            self.connection.execute("BEGIN IMMEDIATE")
            rows = [(key, seal(key, vector)) for key, vector in zip(keys[part], vectors[part], strict=True)]
            self.connection.executemany("INSERT INTO vectors (key, content) VALUES (?, ?)", rows)
            self.connection.execute("COMMIT")

    def read(self, keys, out) -> None:
        row_of = {key: row for row, key in enumerate(keys)}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"SELECT key, content FROM vectors WHERE key IN ({','.join('?' * len(part))})"
            for key, content in self.connection.execute(query, part):
                out[row_of[key]] = check(key, content)

    def close(self) -> None:
        self.connection.close()


class RowsWithoutRowid(Rows):
    """SQLite, one row a vector in a table without rowid."""

    schema = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID"


class Lmdb:
    """LMDB, one value a vector."""

    def __init__(self, folder: Path, _d: int) -> None:
        self.environment = lmdb.open(str(folder), map_size=2**33)

    def write(self, keys, vectors) -> None:
        for part in chunks():
            with self.environment.begin(write=True) as transaction:
                for key, vector in zip(keys[part], vectors[part], strict=True):
                    transaction.put(key, seal(key, vector))

    def read(self, keys, out) -> None:
        with self.environment.begin(buffers=True) as transaction:
            for row, key in enumerate(keys):
                out[row] = check(key, transaction.get(key))

    def close(self) -> None:
        self.environment.close()


class LmdbBlocks(Lmdb):
    """LMDB, the vectors of a transaction in one value."""

    def write(self, keys, vectors) -> None:
        for number, part in enumerate(chunks()):
            name = b"block" + number.to_bytes(8, "big")
            with self.environment.begin(write=True) as transaction:
                transaction.put(name, seal(name, vectors[part]))
                for position, key in enumerate(keys[part]):
                    transaction.put(key, name + bytes([position]))

    def read(self, keys, out) -> None:
        with self.environment.begin(buffers=True) as transaction:
            blocks: dict[bytes, np.ndarray] = {}
            for row, key in enumerate(keys):
                place = bytes(transaction.get(key))
                name = place[:-1]
                if name not in blocks:
                    blocks[name] = check(name, transaction.get(name)).reshape(-1, out.shape[1])
                out[row] = blocks[name][place[-1]]


class Files:
    """One .npy file a vector, renamed into place."""

    def __init__(self, folder: Path, _d: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, keys, vectors) -> None:
        for key, vector in zip(keys, vectors, strict=True):
            path = self.folder / key.hex()
            np.save(f"{path}.part.npy", vector)
            os.replace(f"{path}.part.npy", path)

    def read(self, keys, out) -> None:
        for row, key in enumerate(keys):
            out[row] = np.load(self.folder / key.hex())

    def close(self) -> None:
        pass


STORES = {
    "SQLite, blocks (ours)": Ours,
    "SQLite, a row a vector": Rows,
    "SQLite, a row a vector, WITHOUT ROWID": RowsWithoutRowid,
    "LMDB, a value a vector": Lmdb,
    "LMDB, blocks": LmdbBlocks,
    "a .npy file a vector": Files,
}


def make_data(d: int):
    rng = np.random.default_rng(0)
    keys = [blake3(index.to_bytes(8, "big")).digest() for index in range(N)]
    return keys, rng.standard_normal((N, d)).astype(np.float32), rng.permutation(N)


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def read_after_cut(name: str, folder: Path, d: int) -> str:
    """What a process says that reads the file after half of it is gone."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    command = [sys.executable, "-m", "benchmarks.bench_store", "--read", name, str(folder), str(d)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"the process dies of signal {-done.returncode}"
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip().splitlines()[-1]


def read_all(name: str, folder: Path, d: int) -> None:
    keys, vectors, _ = make_data(d)
    out = np.full_like(vectors, np.nan)
    try:
        store = STORES[name](folder, d)
        store.read(keys, out)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return
    good = int((out == vectors).all(axis=1).sum())
    print(f"{good} vectors are read, {int((~np.isnan(out).all(axis=1)).sum()) - good} of them wrong")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", nargs=3)
    arguments = parser.parse_args()
    if arguments.read:
        name, folder, d = arguments.read
        read_all(name, Path(folder), int(d))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for d in SIZES:
            keys, vectors, order = make_data(d)
            shuffled, out = [keys[row] for row in order], np.empty_like(vectors)

            def write(store, d=d, keys=keys, vectors=vectors):
                shutil.rmtree(root / store, ignore_errors=True)
                opened = STORES[store](root / store, d)
                opened.write(keys, vectors)
                opened.close()

            def read(store, d=d, shuffled=shuffled, out=out):
                opened = STORES[store](root / store, d)
                opened.read(shuffled, out)
                opened.close()

            written = alternate({store: lambda store=store: write(store) for store in STORES}, arguments.rounds)
            bytes_used = {store: used_bytes(root / store) for store in STORES}
            found = {}
            for store in STORES:
                out[:] = 0
                read(store)
                found[store] = bool((out == vectors[order]).all())
            assert all(found.values()), found
            seconds = alternate({store: lambda store=store: read(store) for store in STORES}, arguments.rounds)
            for store in STORES:
                cut = read_after_cut(store, root / store, d) if d == SIZES[-1] else ""
                ratios = [a / b for a, b in zip(seconds[store], seconds["SQLite, a row a vector"], strict=True)]
                rows.append(
                    [d, store, f"{N / np.median(written[store]):,.0f}", f"{N / np.median(seconds[store]):,.0f}",
                     spread([1 / ratio for ratio in ratios]), f"{bytes_used[store] / N / d / 4:.2f}", cut]
                )  # fmt: skip
    write_markdown(
        "store",
        "Which store keeps vectors fastest and smallest?",
        "python -m benchmarks.bench_store",
        ["features", "store", "written per second", "read per second", "reading speed ÷ SQLite, a row a vector",
         "bytes on disk ÷ bytes of the vectors", "after half the file is cut off"],
        rows,
        f"{N:,} vectors, transactions of {CHUNK}, read in random order through a fresh connection from the page cache, "
        f"{arguments.rounds} rounds.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
