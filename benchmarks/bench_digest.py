"""Which cryptographic digest is fastest on the pixels of an image?

python -m benchmarks.bench_digest
"""

from __future__ import annotations

import hashlib
import statistics

import numpy as np
from blake3 import blake3

from benchmarks.measure import alternate, spread, write_markdown

SHAPE, REPEATS, ROUNDS = (224, 224, 3), 500, 9


def main() -> None:
    data = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8).tobytes()
    digests = {"blake3": blake3, "sha256": hashlib.sha256, "blake2b": hashlib.blake2b}
    loops = {name: (lambda new=new: [new(data).digest() for _ in range(REPEATS)]) for name, new in digests.items()}
    seconds = alternate(loops, ROUNDS)
    rates = {name: len(data) * REPEATS / statistics.median(values) / 1e9 for name, values in seconds.items()}
    ratios = {
        name: spread([a / b for a, b in zip(values, seconds["blake3"], strict=True)])
        for name, values in seconds.items()
    }
    write_markdown(
        "digest",
        "Which cryptographic digest is fastest on the pixels of an image?",
        "python -m benchmarks.bench_digest",
        ["digest", "GB/s (median)", "time ÷ blake3, median (smallest–largest)"],
        [[name, f"{rates[name]:.2f}", ratios[name]] for name in digests],
        f"One thread, {REPEATS} digests of {len(data)} bytes in memory a round, {ROUNDS} alternating rounds.",
    )


if __name__ == "__main__":
    main()
