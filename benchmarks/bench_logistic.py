"""What does it cost to fit a penalised logistic regression to its optimum, against scikit-learn's?

    python -m benchmarks.bench_logistic

10,000 rows, 1,280 columns, 20 classes: columns like embeddings (not negative, correlated) and independent ones. Time
until scikit-learn's objective is reached, and the time to our own stop.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import alternate, spread, write_markdown
from sktransfer import TransferLogisticRegression

N, D, K = 10_000, 1280, 20
ROUNDS = 3
FACTORS = 60  # of the columns like embeddings


def make_columns(kind):
    rng = np.random.default_rng(0)
    if kind == "independent":
        X = rng.standard_normal((N, D))
        return X, (X[:, :K] + rng.standard_normal((N, K))).argmax(axis=1)
    hidden = rng.standard_normal((N, FACTORS))
    mixed = hidden @ rng.standard_normal((FACTORS, D)) / 8 + 0.3 * rng.standard_normal((N, D)) - 0.2
    return np.maximum(mixed, 0), (hidden[:, :K] + 0.7 * rng.standard_normal((N, K))).argmax(axis=1)


def objective(model, X, y, C):
    """Sum of cross-entropies and penalty, as both state it."""
    logits = X @ model.coef_.T + model.intercept_
    return (logsumexp(logits, axis=1) - logits[np.arange(N), y]).sum() + 0.5 / C * (model.coef_**2).sum()


def iterations_to(value, X, y, C):
    """Return the fewest of our iterations that reach a value of the objective."""
    low, high = 1, 1000
    while low < high:
        middle = (low + high) // 2 if high < 1000 else min(2 * low, 999)
        reached = objective(TransferLogisticRegression(C=C, max_iter=middle).fit(X, y), X, y, C) <= value
        low, high = (low, middle) if reached else (middle + 1, high)
    return low


def compare(kind, C):
    X, y = make_columns(kind)
    plain = LogisticRegression(C=C).fit(X, y)
    ours = TransferLogisticRegression(C=C).fit(X, y)
    best, reached = objective(ours, X, y, C), objective(plain, X, y, C)
    iterations = iterations_to(reached, X, y, C)
    seconds = alternate(
        {
            "plain": lambda: LogisticRegression(C=C).fit(X, y),
            "same": lambda: TransferLogisticRegression(C=C, max_iter=iterations).fit(X, y),
            "ours": lambda: TransferLogisticRegression(C=C).fit(X, y),
        },
        ROUNDS,
    )
    ratios = {name: [own / base for own, base in zip(seconds[name], seconds["plain"], strict=True)] for name in seconds}
    return [
        kind, C, f"{np.median(seconds['plain']):.2f} s", plain.n_iter_[0], f"{reached / best - 1:.0e}",
        spread(ratios["same"]), iterations, spread(ratios["ours"]), ours.n_iter_,
    ]  # fmt: skip


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = [compare(kind, C) for kind in ("like embeddings", "independent") for C in (0.01, 1.0)]
    write_markdown(
        "logistic",
        "What does it cost to fit a penalised logistic regression to its optimum, against scikit-learn's?",
        "python -m benchmarks.bench_logistic",
        ["columns", "C", "LogisticRegression(lbfgs)", "its iterations", "its objective above the optimum",
         "ours to the same objective ÷ it", "iterations", "ours to the optimum ÷ it", "iterations"],
        rows,
        f"""{N:,} rows, {D:,} columns (float64), {K} classes, no source. `LogisticRegression` with its defaults (100
iterations, tol 1e-4). Ratios of seconds, median of {ROUNDS} alternating rounds (smallest–largest); below 1 ours is
faster. *Ours to the optimum* stops where the gradient proves the coefficients to be within 1e-5 of it.""",
    )  # fmt: skip


if __name__ == "__main__":
    main()
