"""What is lost when a process is killed?

    python -m benchmarks.bench_crash [--runs 200]

Four processes embed the same 400 images, each in an order of its own, with the embedded backbone. One of them is killed
(`kill -9`) at a random instant. Afterwards every vector is compared with the one computed without a cache, and every
image that has to be embedded again counts as lost. The time from the kill until the other three are done is compared
with that of undisturbed runs. Needs `fork`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time

import numpy as np

from benchmarks.measure import spread, write_markdown
from sktransfer import extract, release_sessions
from sktransfer.cache import close_all
from sktransfer.claims import CLAIM_SECONDS
from sktransfer.session import forward_passes

N = 400
PROCESSES = 4


def start(images, cache, seed) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        order = np.random.default_rng(seed).permutation(N)
        extract(images[order], cache_dir=cache, n_jobs=1)
        status = 0
    finally:
        os._exit(status)


def run(images, expected, seed: int, window: float, *, kill: bool) -> dict[str, float]:
    """One run; `window` are the seconds within which the kill falls."""
    with tempfile.TemporaryDirectory() as cache:
        close_all()
        started = time.perf_counter()
        pids = [start(images, cache, [seed, worker]) for worker in range(PROCESSES)]
        generator = random.Random(seed)
        instant = generator.uniform(0, window)
        if kill:
            time.sleep(instant)
            victim = pids.pop(generator.randrange(PROCESSES))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
        seconds = time.perf_counter() - started
        before = forward_passes()
        vectors = extract(images, cache_dir=cache)
        lost = forward_passes() - before
        release_sessions()
        close_all()
    wrong = int((vectors != expected).any(axis=1).sum())
    return {"seconds": seconds, "lost": lost, "wrong": wrong, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (N, 64, 64, 3), dtype=np.uint8)
    expected = extract(images, cache_dir=None)
    release_sessions()
    calm = [run(images, expected, seed, 0, kill=False) for seed in range(max(3, arguments.runs // 10))]
    window = float(np.median([one["seconds"] for one in calm]))
    killed = [run(images, expected, seed, window, kill=True) for seed in range(arguments.runs)]
    rows = [
        [
            label,
            len(runs),
            *(int(sum(one[key] for one in runs)) for key in ("lost", "wrong", "failed")),
            spread([one["seconds"] / window for one in runs]),
        ]
        for label, runs in (("undisturbed", calm), ("one of four killed", killed))
    ]
    write_markdown(
        "crash",
        "What is lost when a process is killed?",
        "python -m benchmarks.bench_crash",
        ["runs", "number", "vectors lost", "vectors wrong", "survivors that failed",
         "time until all are done ÷ undisturbed, median (range)"],
        rows,
        f"{PROCESSES} processes, {N} images, one run lasts {window:.2f} s undisturbed. A dead process is seen by its "
        f"lock at once; a claim lives {CLAIM_SECONDS} s at most.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
