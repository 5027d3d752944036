"""Many threads' images in, whole batches out."""

import threading
import time

import numpy as np
import pytest

from sktransfer.batching import Batcher


def sums(pixels):
    return pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.float32)[:, None]


def blocks(n, size=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (rng.integers(1, size + 1), 2, 2, 3), dtype=np.uint8) for _ in range(n)]


def run_in_threads(function, arguments):
    results = [None] * len(arguments)

    def call(index):
        results[index] = function(arguments[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return results


def test_every_thread_gets_the_vectors_of_its_own_images():
    images = blocks(40)
    batcher = Batcher(sums, 7)
    for given, vectors in zip(images, run_in_threads(batcher.run, images), strict=True):
        np.testing.assert_array_equal(vectors, sums(given))
    batcher.close()


def test_batches_are_full_while_there_are_images():
    sizes, gate = [], threading.Event()

    def run(pixels):
        gate.wait(5)
        sizes.append(len(pixels))
        return sums(pixels)

    batcher, images = Batcher(run, 4), [np.zeros((3, 2, 2, 3), dtype=np.uint8)] * 12
    opener = threading.Timer(0.2, gate.set)
    opener.start()
    run_in_threads(batcher.run, images)
    batcher.close()
    assert sum(sizes) == 36
    assert sizes.count(4) >= 7  # the first of each lane may have come before the others


def test_a_batch_that_does_not_fill_is_run_all_the_same():
    batcher = Batcher(sums, 1000)
    started = time.monotonic()
    assert batcher.run(np.ones((2, 2, 2, 3), dtype=np.uint8)).tolist() == [[12.0], [12.0]]
    assert time.monotonic() - started < 5
    batcher.close()


def test_an_error_reaches_the_threads_whose_images_were_in_the_batch_and_no_other():
    def run(pixels):
        if (pixels == 13).any():
            raise MemoryError("too much")
        return sums(pixels)

    batcher, images = Batcher(run, 2), [np.full((2, 2, 2, 3), value, dtype=np.uint8) for value in (1, 13, 2)]
    with pytest.raises(MemoryError, match="too much"):
        batcher.run(np.full((9, 2, 2, 3), 13, dtype=np.uint8))
    assert batcher.run(images[0]).tolist() == [[12.0], [12.0]]
    with pytest.raises(MemoryError, match="too much"):
        batcher.run(images[1])
    assert batcher.run(images[2]).tolist() == [[24.0], [24.0]]
    batcher.close()


def test_closing_ends_its_threads_and_late_images_are_run_by_their_own():
    before = threading.active_count()
    batcher = Batcher(sums, 4)
    assert threading.active_count() > before
    batcher.close()
    assert threading.active_count() == before
    assert batcher.run(np.ones((1, 2, 2, 3), dtype=np.uint8)).tolist() == [[12.0]]
