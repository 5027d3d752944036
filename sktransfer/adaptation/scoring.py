"""Scores of target rows alone."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing

from sktransfer.adaptation.domains import find_missing


class TargetScorer(BaseEstimator):
    """A scorer for searches and cross-validation that counts the target's rows only.

    Those of them that have a label, where some have none. Which rows are the target's reaches it through scikit-learn's
    metadata routing, as it reaches :class:`~sktransfer.AdaptedClassifier`.

    Parameters
    ----------
    scoring : str or callable, default="accuracy"
        As in scikit-learn.

    Examples
    --------
    >>> import numpy as np, sklearn
    >>> from sklearn.datasets import make_blobs
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV, StratifiedKFold
    >>> from sktransfer import AdaptedClassifier
    >>> from sktransfer.adaptation import TargetScorer
    >>> X, y = make_blobs(200, 8, random_state=0)
    >>> domains = np.repeat([1, -1], 100)
    >>> X[100:] = 0.3 * X[100:] + 5
    >>> adapted = AdaptedClassifier(LogisticRegression(max_iter=1000), use_target_labels=False)
    >>> with sklearn.config_context(enable_metadata_routing=True):
    ...     cv = StratifiedKFold(5, shuffle=True, random_state=0)
    ...     search = GridSearchCV(adapted, {"method": ["standardize", "coral"]}, scoring=TargetScorer(), cv=cv)
    ...     search = search.fit(X, y, sample_domain=domains)
    >>> bool(search.best_score_ > 0.9)
    True
    """

    __metadata_request__score = {"sample_domain": True}  # noqa: RUF012  # scikit-learn reads it off the class

    def __init__(self, scoring="accuracy"):
        self.scoring = scoring

    def __call__(self, estimator, X, y, *, sample_domain=None, **parameters):
        """Score the rows whose `sample_domain` is below 0."""
        return self.score(estimator, X, y, sample_domain=sample_domain, **parameters)

    def score(self, estimator, X, y, *, sample_domain=None, **parameters):
        """Score the rows whose `sample_domain` is below 0.

        Raises
        ------
        ValueError
            If `sample_domain` does not arrive, or none of the rows is the target's, or none of those has a label.
        """
        if sample_domain is None:
            raise ValueError(
                "TargetScorer needs sample_domain, which only metadata routing brings: "
                "sklearn.set_config(enable_metadata_routing=True), and pass sample_domain=... to fit or in params."
            )
        rows = np.flatnonzero(np.asarray(sample_domain) < 0)
        if not len(rows):
            raise ValueError(
                "None of the rows to score is the target's. Shuffle them into all folds, as in "
                "cv=StratifiedKFold(5, shuffle=True, random_state=0)."
            )
        rows = rows[_find_labelled(estimator, np.asarray(_safe_indexing(y, rows)))]
        if not len(rows):
            raise ValueError(
                "None of the target's rows to score has a label in y. Give the known ones; use_target_labels=False "
                "keeps them from the fit."
            )
        parameters = {name: _safe_indexing(value, rows) for name, value in parameters.items()}
        return get_scorer(self.scoring)(estimator, _safe_indexing(X, rows), _safe_indexing(y, rows), **parameters)


def _find_labelled(estimator, y):
    """Mask of the rows with a label, by what the adapted estimator says stands for none."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    if not hasattr(estimator, "missing_label"):
        return np.ones(len(y), dtype=bool)
    missing = find_missing(y.ravel(), estimator.missing_label).reshape(len(y), -1)
    return ~missing.any(axis=1)
