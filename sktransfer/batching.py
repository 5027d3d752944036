"""Images of many threads in, whole batches out: decoding and a GPU at work at the same time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

N_LANES = 2  # one puts a batch together and sends it while the other one's is computed
LINGER_SECONDS = 0.01  # that a batch which is not full waits for more images

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(eq=False)
class _Request:
    """Images of one thread, which waits for their vectors."""

    pixels: Pixels
    taken: int = 0
    left: int = 0
    vectors: Vectors | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Runs the images that threads hand in, `batch_size` at a time, on threads of its own.

    A thread that calls `run` waits for its vectors, so that no more images are in memory than the threads hold.

    Parameters
    ----------
    run : callable
        uint8 (n, h, w, 3) -> float32 (n, d), for any n up to `batch_size`; called by N_LANES threads.
    batch_size : int
    """

    def __init__(self, run: Callable[[Pixels], Vectors], batch_size: int) -> None:
        self._run, self._batch_size = run, batch_size
        self._requests: deque[_Request] = deque()
        self._n_waiting = 0  # images
        self._changed = threading.Condition()
        self._gathering = threading.Lock()
        self._closed = False
        self._lanes = [threading.Thread(target=self._work, daemon=True) for _ in range(N_LANES)]
        for lane in self._lanes:
            lane.start()

    def run(self, pixels: Pixels) -> Vectors:
        """The vectors of some images: uint8 (n, h, w, 3) -> float32 (n, d)."""
        request = _Request(pixels, left=len(pixels))
        with self._changed:
            closed = self._closed
            if not closed:
                self._requests.append(request)
                self._n_waiting += len(pixels)
                self._changed.notify_all()
        if closed:  # the call was interrupted while this thread was decoding
            return self._run(pixels)
        request.done.wait()
        if request.error is not None:
            raise request.error
        assert request.vectors is not None
        return request.vectors

    def close(self) -> None:
        """End the threads; what was handed in is still run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _work(self) -> None:
        while True:
            with self._gathering:
                parts = self._gather()
            if not parts:
                return
            try:
                pixels = [request.pixels[start:stop] for request, start, stop in parts]
                vectors = self._run(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
            except BaseException as error:
                self._fail(parts, error)
            else:
                self._distribute(parts, vectors)

    def _gather(self) -> list[tuple[_Request, int, int]]:
        """Images for the next batch, in the order in which they came; nothing when all is done."""
        with self._changed:
            while not self._n_waiting and not self._closed:
                self._changed.wait()
            until = time.monotonic() + LINGER_SECONDS
            while self._n_waiting < self._batch_size and not self._closed:
                if not self._changed.wait(until - time.monotonic()):
                    break
            parts: list[tuple[_Request, int, int]] = []
            room = self._batch_size
            while room and self._requests:
                request = self._requests[0]
                start, stop = request.taken, min(request.taken + room, len(request.pixels))
                parts.append((request, start, stop))
                request.taken = stop
                room -= stop - start
                if stop == len(request.pixels):
                    self._requests.popleft()
            self._n_waiting -= self._batch_size - room
            return parts

    def _distribute(self, parts: list[tuple[_Request, int, int]], vectors: Vectors) -> None:
        position = 0
        with self._changed:
            for request, start, stop in parts:
                if request.vectors is None:
                    request.vectors = np.empty((len(request.pixels), vectors.shape[1]), dtype=np.float32)
                request.vectors[start:stop] = vectors[position : position + stop - start]
                position += stop - start
                request.left -= stop - start
                if not request.left:
                    request.done.set()

    def _fail(self, parts: list[tuple[_Request, int, int]], error: BaseException) -> None:
        with self._changed:
            for request, _, _ in parts:
                if request.taken < len(request.pixels):  # its other images are of no use any more
                    self._requests.remove(request)
                    self._n_waiting -= len(request.pixels) - request.taken
                request.error = error
                request.done.set()
