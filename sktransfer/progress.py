"""How far a long call is: a bar for people, lines of JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

LINE_SECONDS = 1.0  # between two lines


class Progress(Protocol):
    """Told of every image that is done."""

    def advance(self, *, hits: int = 0, passes: int = 0, copies: int = 0, failed: int = 0) -> None:
        """So many more images were found in the cache, computed, in the call already, or could not be read."""

    def say(self, text: str) -> None:
        """What is waited for."""

    def close(self, worker_hits: int = 0, worker_passes: int = 0) -> None:
        """The end, with what worker processes have reported."""


def open_progress(total: int, form: str = "bar") -> Progress:
    """The progress of `total` images on stderr: a "bar", a "plain" one without a network, or lines of "json"."""
    return _Lines(total, sys.stderr) if form == "json" else _Bar(total, () if form == "plain" else ("cached", "passes"))


class _Bar:
    """tqdm, with the images found in the cache and the forward passes."""

    def __init__(self, total: int, counts: Sequence[str]) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc="images", unit="image")
        self._counts = dict.fromkeys(counts, 0)

    def advance(self, *, hits: int = 0, passes: int = 0, copies: int = 0, failed: int = 0) -> None:
        for name, count in (("cached", hits), ("passes", passes), ("failed", failed)):
            if count:
                self._counts[name] = self._counts.get(name, 0) + count
        self._bar.set_postfix(self._counts, refresh=False)
        self._bar.update(hits + passes + copies + failed)

    def say(self, text: str) -> None:
        self._bar.set_postfix_str(text)

    def close(self, worker_hits: int = 0, worker_passes: int = 0) -> None:
        workers = {"workers": f"{worker_hits} cached, {worker_passes} passes"} if worker_hits or worker_passes else {}
        self._bar.set_postfix({**self._counts, **workers})
        self._bar.close()


class _Lines:
    """One object a line: done, total, cached, passes, failed, seconds; at most one a second, and one at the end."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._counts = {"done": 0, "total": total, "cached": 0, "passes": 0, "failed": 0}
        self._stream, self._started = stream, time.monotonic()
        self._last = self._started

    def advance(self, *, hits: int = 0, passes: int = 0, copies: int = 0, failed: int = 0) -> None:
        more = {"done": hits + passes + copies + failed, "cached": hits, "passes": passes, "failed": failed}
        for name, count in more.items():
            self._counts[name] += count
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._write()

    def say(self, text: str) -> None:
        self._write(status=text)

    def close(self, worker_hits: int = 0, worker_passes: int = 0) -> None:
        workers = {"worker_cached": worker_hits, "worker_passes": worker_passes}
        self._write(**(workers if any(workers.values()) else {}))

    def _write(self, **more: str | int) -> None:
        self._last = time.monotonic()
        line = {**self._counts, "seconds": round(self._last - self._started, 1), **more}
        print(json.dumps(line), file=self._stream, flush=True)
