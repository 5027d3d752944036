"""What does LogME cost, in time and memory, against one singular value decomposition of the same array?

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.bench_logme

10,000 rows, 2,048 columns like embeddings, 100 classes, float32: `numpy.linalg.svd` in float32, `logme_score` by inner
products and, as for values without noise, with all digits; beside them `h_score`. Memory is what Python's allocator
hands out (tracemalloc).
"""

from __future__ import annotations

import tracemalloc

import numpy as np

from benchmarks.measure import alternate, spread, write_markdown
from sktransfer import h_score, logme_score
from sktransfer.ranking import logme

N, D, K = 10_000, 2048, 100
ROUNDS = 3
FACTORS = 60  # of the columns like embeddings


def make_columns(n=N, d=D, n_classes=K):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, FACTORS))
    mixed = hidden @ rng.standard_normal((FACTORS, d)) / 8 + 0.3 * rng.standard_normal((n, d)) - 0.2
    scores = hidden @ rng.standard_normal((FACTORS, n_classes)) + 3 * rng.standard_normal((n, n_classes))
    return np.maximum(mixed, 0).astype(np.float32), scores.argmax(axis=1)


def decompose(X):
    return np.linalg.svd(X, full_matrices=False)


def score_exactly(X, y):
    """Score with all digits, as if inner products were never believed."""
    believed, logme.ACCURACY = logme.ACCURACY, -1.0
    try:
        return logme_score(X, y)
    finally:
        logme.ACCURACY = believed


def measure_peak(call):
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, result


def compare(X, y, rounds):
    candidates = {
        "`numpy.linalg.svd`": lambda: decompose(X),
        "`logme_score`": lambda: logme_score(X, y),
        "`logme_score` with all digits": lambda: score_exactly(X, y),
        "`h_score`": lambda: h_score(X, y),
    }
    seconds = alternate(candidates, rounds)
    base = seconds["`numpy.linalg.svd`"]
    rows = []
    for name, call in candidates.items():
        peak, result = measure_peak(call)
        ratios = spread([own / one for own, one in zip(seconds[name], base, strict=True)])
        shown = f"{result:.6f}" if isinstance(result, float) else "–"
        rows.append([name, f"{np.median(seconds[name]):.2f} s", ratios, f"{1 + peak / X.nbytes:.2f}", shown])
    return rows


def main() -> None:
    write_markdown(
        "logme",
        "What does LogME cost, in time and memory, against one singular value decomposition of the same array?",
        "OPENBLAS_NUM_THREADS=1 python -m benchmarks.bench_logme",
        ["", "time", "÷ SVD", "array and peak ÷ array", "score"],
        compare(*make_columns(), ROUNDS),
        f"""{N:,} rows, {D:,} columns (float32), {K} classes. Ratios of seconds: median of {ROUNDS} alternating rounds
(smallest–largest). Memory by tracemalloc, which sees arrays and not what LAPACK takes for itself inside of
`numpy.linalg`. The score of `h_score` is another one. *With all digits* is the way that is taken where y is reproduced
with so little noise that squared singular values are too coarse.""",
    )


if __name__ == "__main__":
    main()
