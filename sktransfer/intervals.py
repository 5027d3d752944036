"""How far a score of some rows would move with other rows: intervals from half-samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

QUANTILES = (0.05, 0.95)


def draw_subsets(
    labels: Array | None, groups: Array | None, n_rows: int, n_subsets: int, max_rows: int, random_state: int
) -> list[Array]:
    """Random halves of the rows, each at most about `max_rows` long, without any row twice.

    Every class of `labels` keeps its share, rounded up, so that none disappears; with None, rows are drawn at random.
    Rows of one of `groups` stay together: whole groups are drawn, and then one of each class that is missing.
    """
    share, rng = min(0.5, max_rows / n_rows), np.random.default_rng(random_state)
    strata = np.zeros(n_rows, dtype=np.intp) if labels is None else labels
    if groups is None:
        members = [np.flatnonzero(strata == label) for label in np.unique(strata)]
        return [_draw_rows(members, share, rng) for _ in range(n_subsets)]
    numbers = np.unique(groups, return_inverse=True)[1].ravel()
    return [_draw_groups(strata, numbers, share, rng) for _ in range(n_subsets)]


def _draw_rows(members: Sequence[Array], share: float, rng: np.random.Generator) -> Array:
    drawn = [rng.choice(rows, int(np.ceil(share * len(rows))), replace=False) for rows in members]
    return np.sort(np.concatenate(drawn))


def _draw_groups(strata: Array, numbers: Array, share: float, rng: np.random.Generator) -> Array:
    order = rng.permutation(numbers.max() + 1)
    lengths = np.bincount(numbers)[order]
    n_groups = 1 + int(np.searchsorted(np.cumsum(lengths), share * len(numbers)))
    chosen = set(order[:n_groups].tolist())
    rows = np.isin(numbers, list(chosen))
    for label in np.setdiff1d(strata, strata[rows]):
        chosen.add(int(rng.choice(numbers[strata == label])))
    return np.flatnonzero(np.isin(numbers, list(chosen)))


def find_interval(score: float, values: Sequence[float], n_drawn: float, n_rows: int) -> tuple[float, float]:
    """The 5 % and 95 % quantiles of a score, from its values on subsets of `n_drawn` rows of `n_rows`.

    A subset's deviations are those of a sample of all rows times sqrt((n - m) / m): the jackknife that deletes n - m
    rows (Shao and Wu 1989, A general theory for jackknife variance estimation, Annals of Statistics 17(3)). They are
    laid around `score`, since the score of fewer rows is another one. Their quantiles are those that are unbiased for
    a few normal values: interpolated between the sorted ones, 20 deviations make an interval that is a sixth too short.
    """
    known = np.asarray(values, dtype=np.float64)
    if not np.isfinite(score) or len(known) < 2 or not np.isfinite(known).all() or n_drawn >= n_rows:
        return np.nan, np.nan
    deviations = (known - known.mean()) * np.sqrt(n_drawn / (n_rows - n_drawn))
    low, high = np.quantile(deviations, QUANTILES, method="normal_unbiased")
    return float(score + low), float(score + high)
