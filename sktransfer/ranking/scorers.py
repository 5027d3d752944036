"""Scores of arrays as scorers of estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class EmbeddingScorer:
    """What scores the embeddings that an estimator makes; see :func:`embedding_scorer`."""

    score: Callable[..., float]
    parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        """Score the fitted estimator's embeddings of X."""
        return self.score(find_embedder(estimator).transform(X), y, **self.parameters)


def embedding_scorer(score: Callable[..., float], **parameters: Any) -> EmbeddingScorer:
    """Make a scorer for searches and cross-validation of a score of arrays.

    Parameters
    ----------
    score : callable
        Of (X, y), such as :func:`logme_score`.
    **parameters
        Its further parameters.

    Returns
    -------
    scorer : callable
        Of (estimator, X, y). Scores what a transformer, or the steps of a Pipeline in front of one that predicts, makes
        of X. It can be pickled, as far as score and parameters can.

    Notes
    -----
    A search scores the rows of each test fold. No score needs a fold for itself: to score all rows at once pass
    ``cv=[(np.arange(n), np.arange(n))]`` and ``refit=False``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktransfer.ranking import embedding_scorer, h_score, logme_score
    >>> X, y = load_digits(return_X_y=True)
    >>> scoring = {"logme": embedding_scorer(logme_score), "h": embedding_scorer(h_score)}
    >>> search = GridSearchCV(PCA(), {"n_components": [2, 20]}, scoring=scoring, refit="logme", cv=3).fit(X, y)
    >>> search.best_params_
    {'n_components': 20}
    """
    return EmbeddingScorer(score, parameters)


def find_embedder(estimator: Any) -> Any:
    """Return what makes embeddings: a transformer, or a Pipeline's steps in front of the last one that predicts."""
    if isinstance(estimator, Pipeline) and len(estimator) > 1 and hasattr(estimator[-1], "predict"):
        return estimator[:-1]
    if not hasattr(estimator, "transform"):
        raise TypeError(
            "estimator must be a transformer, or a Pipeline with a transformer in front of its last step. Got "
            f"{estimator!r} instead."
        )
    return estimator
