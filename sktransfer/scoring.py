"""Scores by name or as functions, of embeddings of rows with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sktransfer.intervals import draw_subsets, find_interval
from sktransfer.ranking import h_score, leep_score, linear_probe_score, logme_score, nce_score
from sktransfer.ranking.inputs import is_regression, read_groups, read_labels, read_targets
from sktransfer.ranking.probe import choose_splitter

NAMES = ("logme", "h_score", "linear_probe", "leep", "nce")
OF_CLASSIFIERS = ("leep", "nce")  # that take the network's own logits
OF_CLASSES = ("h_score", "leep", "nce")  # that know no regression
COLUMNS = ("rank", "backbone", "layer", "low", "high", "n_features", "macs", "images_per_second")  # beside the scores
MAX_ROWS = 500  # of a subset: the interval shall cost less than the embeddings

Array = np.ndarray[Any, Any]
ScoreFunction = Callable[[Any, Any], float]
Scores = str | ScoreFunction | Sequence[str | ScoreFunction]


@dataclass(frozen=True)
class Targets:
    """Labels or values of some rows, and what of them has to stay together."""

    y: Array
    groups: Array | None
    cv: Any
    regression: bool

    def take(self, rows: Array) -> Targets:
        """Those of some rows."""
        return replace(self, y=self.y[rows], groups=None if self.groups is None else self.groups[rows])


def read_targets_of_images(y: Any, groups: Any, cv: Any, n_rows: int) -> Targets:
    """Check labels, or the values of a regression (floats), of n rows.

    Raises
    ------
    ValueError
        If there are not as many as rows, some are missing, or they are all the same.
    """
    regression = is_regression(y, "auto")
    if regression:
        read_targets(y, n_rows)
        labels = np.asarray(y)
    else:
        found = read_labels(y, n_rows)
        labels = found.classes[found.codes]
    if groups is not None:
        groups = read_groups(groups, n_rows)
    if cv is not None and not (isinstance(cv, (int, np.integer)) or hasattr(cv, "split")):
        raise ValueError("cv must be None, a number of folds or a splitter, since rows without an image are left out. "
                         f"Got a {type(cv).__name__} instead.")  # fmt: skip
    return Targets(labels, groups, cv, regression)


def name_scores(scores: Scores, *, regression: bool) -> dict[str, str | ScoreFunction]:
    """The scores by the names of their columns.

    Raises
    ------
    ValueError
        If one is unknown, comes twice, or does not fit a regression.
    """
    listed = [scores] if isinstance(scores, str) or callable(scores) else list(scores)
    if not listed:
        raise ValueError("scores must name at least one score. Got an empty list instead.")
    named: dict[str, str | ScoreFunction] = {}
    for score in listed:
        if not callable(score) and score not in NAMES:
            raise ValueError(f"scores must be functions, or of {', '.join(map(repr, NAMES))}. Got {score!r} instead.")
        name = score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)
        if name in named or name in COLUMNS:
            raise ValueError(f"scores must have different names, and none of {', '.join(COLUMNS)}. Got {name!r}.")
        if regression and name in OF_CLASSES:
            raise ValueError(f'{name!r} needs classes. Got y of floats instead; use "logme" or "linear_probe".')
        named[name] = score
    return named


def check_folds(named: Mapping[str, str | ScoreFunction], targets: Targets) -> None:
    """Refuse, before any work, a number of folds that the labels do not allow."""
    if "linear_probe" in named and not hasattr(targets.cv, "split"):
        choose_splitter(targets.y, targets.cv, targets.groups, targets.regression)


def score_embeddings(
    named: Mapping[str, str | ScoreFunction],
    X: Array,
    logits: Array | None,
    targets: Targets,
    n_resamples: int,
    random_state: int,
) -> dict[str, float]:
    """Every score of some rows, and `low` and `high`: an interval of 90 % of the first one."""
    values = {name: _compute(score, X, logits, targets) for name, score in named.items()}
    first = next(iter(named))
    low, high = np.nan, np.nan
    if n_resamples >= 2 and np.isfinite(values[first]):
        labels = None if targets.regression else np.unique(targets.y, return_inverse=True)[1]
        n_rows = len(targets.y)
        subsets = draw_subsets(labels, targets.groups, n_rows, n_resamples, MAX_ROWS, random_state)
        with threadpool_limits(1):  # small problems: a second thread costs more than it brings
            drawn = [
                _compute_part(named[first], X[rows], None if logits is None else logits[rows], targets.take(rows))
                for rows in subsets
            ]
        low, high = find_interval(values[first], drawn, float(np.mean([len(rows) for rows in subsets])), n_rows)
    return values | {"low": low, "high": high}


def _compute_part(score: str | ScoreFunction, X: Array, logits: Array | None, targets: Targets) -> float:
    """One score of a part of the rows; NaN where that has too few groups, or too few rows of a class."""
    try:
        return _compute(score, X, logits, targets)
    except ValueError:
        return np.nan


def _compute(score: str | ScoreFunction, X: Array, logits: Array | None, targets: Targets) -> float:
    """One score; NaN where it takes logits and there are none."""
    if callable(score):
        return float(score(X, targets.y))
    if score in OF_CLASSIFIERS:
        function = leep_score if score == "leep" else nce_score
        return np.nan if logits is None else float(function(logits, targets.y))
    if score == "linear_probe":
        return float(linear_probe_score(X, targets.y, cv=targets.cv, groups=targets.groups))
    # LogME has no intercept: a mean that embeddings have to explain as well would decide which of them is best.
    y = targets.y - targets.y.mean(axis=0) if targets.regression else targets.y
    return float((logme_score if score == "logme" else h_score)(X, y))
