"""What this process knows of places: the digests of contents that have not changed since they were read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from blake3 import blake3

from sktransfer.blocks import DIGEST_BYTES
from sktransfer.locations import Stamp, is_file, is_racy, is_remote, pack_stamp, stamp_file

FRESH_SECONDS = 60  # that a URL's validator is trusted without asking the server again
MAX_SHORTCUTS = 2_000_000  # places that a process remembers


class Places:
    """Shortcuts from places to digests, in memory and, through `find_shortcuts`, in the store."""

    def __init__(self, find_shortcuts: Callable[[Iterable[bytes]], dict[bytes, bytes]], *, remembers: bool) -> None:
        self._find_shortcuts, self._remembers = find_shortcuts, remembers
        self._files: dict[str, bytes] = {}  # path -> validator and digest, without a tuple for each
        self._remotes: dict[str, tuple[bytes | None, bytes, float]] = {}  # place -> validator, digest, checked at
        self._models: dict[str, tuple[Stamp, str]] = {}
        self._new: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def recall(self, places: Iterable[str]) -> dict[str, bytes]:
        """The content digests of places that are as they were when last read."""
        found, asked, validators = dict[str, bytes](), dict[bytes, str](), dict[str, bytes]()
        files, remotes, stat, pack = self._files, self._remotes, os.stat, pack_stamp
        for place in places:
            if not is_file(place):
                if is_remote(place) and (kept := remotes.get(place)) and time.monotonic() - kept[2] < FRESH_SECONDS:
                    found[place] = kept[1]
                continue
            try:
                status = stat(place)
            except (OSError, ValueError):
                continue
            validator = pack((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
            known = files.get(place)
            if known is not None and known.startswith(validator):
                found[place] = known[-DIGEST_BYTES:]
            else:
                asked[name_place(place)] = place
                validators[place] = validator
        if asked:
            shortcuts = self._find_shortcuts(asked)
            for name, both in shortcuts.items():
                place = asked[name]
                if both.startswith(validators[place]):
                    found[place] = both[-DIGEST_BYTES:]
                    self._keep_file(place, both)
        return found

    def recall_remote(self, place: str, check: Callable[[str], bytes | None]) -> bytes | None:
        """The digest of a place without a stat, if `check` returns the validator it had when last read."""
        known = self._remotes.get(place)
        if known is not None:
            validator, digest, _ = known
        else:
            name = name_place(place)
            both = self._find_shortcuts([name]).get(name)
            if both is None:
                return None
            validator, digest = both[:-DIGEST_BYTES], both[-DIGEST_BYTES:]
        if validator is None:
            return digest  # read once in a process
        if not validator or check(place) != validator:
            return None
        self._remotes[place] = validator, digest, time.monotonic()
        return digest

    def remember(self, place: str, validator: bytes | None, digest: bytes) -> None:
        """Keep the digest of what was read at `place`; for the store with the next `take_new`."""
        if not self._remembers:
            return
        if not is_file(place):
            checked = time.monotonic() if validator is not None else float("inf")
            self._remotes[place] = validator, digest, checked
        if validator:
            both = validator + digest
            if is_file(place):
                self._keep_file(place, both)
            with self._lock:
                self._new[name_place(place)] = both

    def _keep_file(self, place: str, validator_and_digest: bytes) -> None:
        if len(self._files) >= MAX_SHORTCUTS:
            self._files.clear()
        self._files[place] = validator_and_digest

    def digest_file(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The digest that `compute` gives of a file, hexadecimal; computed again when the file has changed."""
        place = f"model:{os.path.abspath(path)}"
        stamp = stamp_file(os.fspath(path))
        known = self._models.get(place)
        if known is not None and known[0] == stamp:
            return known[1]
        name, validator = name_place(place), pack_stamp(stamp)
        kept = self._find_shortcuts([name]).get(name)
        if kept is not None and kept.startswith(validator):
            digest = kept[-DIGEST_BYTES:].hex()
        else:
            now = time.time_ns()
            digest = compute(path)
            if is_racy(stamp, now) or stamp_file(os.fspath(path)) != stamp:
                return digest
            if self._remembers:
                with self._lock:
                    self._new[name] = validator + bytes.fromhex(digest)
        self._models[place] = stamp, digest
        return digest

    @property
    def n_new(self) -> int:
        """How many places `take_new` would return."""
        return len(self._new)

    def take_new(self) -> dict[bytes, bytes]:
        """What was learnt since the last time, by name of the place: validator and digest."""
        with self._lock:
            new, self._new = self._new, {}
            return new

    def forget(self, places: Sequence[str]) -> None:
        """Forget some places."""
        for place in places:
            self._files.pop(place, None)
            self._remotes.pop(place, None)

    def clear(self) -> None:
        """Forget everything."""
        for known in (self._files, self._remotes, self._models, self._new):
            known.clear()

    def reset_lock(self) -> None:
        """In a forked child: the lock may be held by a thread of the parent."""
        self._lock = threading.Lock()


def name_place(place: str) -> bytes:
    """What a place is called in the store."""
    return blake3(place.encode("utf-8", "surrogateescape")).digest(length=16)
