"""Sources held as parameters: fitted estimators that clone must not forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sktransfer.transfer.affine import Array, as_function, fold


class Held:
    """Parameter that keeps fitted estimators through clone, by holding each in a FrozenEstimator (dicts in Weights).

    ``clone`` copies a parameter's settings and drops what it has learnt, unless it is frozen. Both ``__init__`` and
    ``set_params`` come through here.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return vars(instance)[self._name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__!r} object has no attribute {self._name!r}") from None

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = _freeze(value)


class Weights(dict[Any, Any]):
    """Class -> (coefficients, intercept), with a short repr and one copy for all clones."""

    def __repr__(self) -> str:
        return f"<coefficients of {len(self)} classes>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return self


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if isinstance(value, Weights) else Weights(value)
    if isinstance(value, list | tuple):
        frozen = [_freeze(item) for item in value]
        # clone insists on the very object it passed, so one with nothing to freeze stays
        same = all(new is old for new, old in zip(frozen, value, strict=True))
        return value if same else type(value)(frozen)
    if is_estimator(value) and not isinstance(value, FrozenEstimator):
        return FrozenEstimator(value)
    return value


def is_estimator(value: Any) -> bool:
    """Tell whether a value is an estimator (rather than weights, or a class)."""
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def unwrap(source: Any) -> Any:
    """Return the estimator inside frozen ones and fitted searches."""
    while True:
        if isinstance(source, FrozenEstimator):
            source = source.estimator
        elif hasattr(source, "best_estimator_"):
            source = source.best_estimator_
        else:
            return source


def check_fitted(source: Any) -> None:
    """Raise a sentence for a source that has learnt nothing (yet, or any more)."""
    try:
        check_is_fitted(source)
    except NotFittedError:
        raise NotFittedError(
            f"source must be fitted. Got {type(source).__name__}, which is not: fit it first, and in a grid of "
            "parameters hold it as FrozenEstimator(source), since a search clones what it is given."
        ) from None


def split_pipeline(source: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return the last estimator of a source and the (name, transformer) steps in front of it, from first to last."""
    source, steps = unwrap(source), []
    while isinstance(source, Pipeline):
        check_fitted(source)
        steps += [(name, step) for name, step in source.steps[:-1] if step not in (None, "passthrough")]
        source = unwrap(source.steps[-1][1])
    check_fitted(source)
    return source, steps


def fold_steps(steps: Sequence[tuple[str, Any]], weights: Array, offset: Array) -> tuple[Array, Array]:
    """Express a linear function of what a pipeline's steps give in what they are given.

    Parameters
    ----------
    steps : sequence of (name, fitted transformer)
    weights : ndarray of shape (k, m)
    offset : ndarray of shape (k,)

    Returns
    -------
    weights : ndarray of shape (k, d)
    offset : ndarray of shape (k,)

    Raises
    ------
    ValueError
        If a step is not affine; names it and says what to do.
    """
    for position in range(len(steps) - 1, -1, -1):
        name, step = steps[position]
        known: int | None = getattr(step, "n_features_in_", None)
        n_features = weights.shape[1] if known is None else known
        try:
            weights, offset = fold(as_function(step, "transform"), weights, offset, n_features)
        except Exception as error:
            raise ValueError(
                f"Every step of a source in front of its weights must be affine (scalers, projections, selections). "
                f"Got step {name!r} ({type(unwrap(step)).__name__}), which is not. Put that step in front of this "
                f"estimator as well, frozen, and pass what comes after it: source=pipeline[{position + 1}:]."
            ) from error
    return weights, offset


def feature_names(source: Any, steps: Sequence[tuple[str, Any]]) -> Any:
    """Return the names of the features a source was fitted on, or None."""
    first = steps[0][1] if steps else source
    return getattr(first, "feature_names_in_", None)


def check_features(position: str, names: Any, n_source: int, estimator: Any) -> None:
    """Raise if a source was fitted on other features than the estimator that starts from it.

    Parameters
    ----------
    position : str
        How the source is called in the sentence: "source", "source[1]".
    names : ndarray of str or None
        The source's names.
    n_source : int
        How many features the source takes.
    estimator : estimator
        With ``n_features_in_`` and, where X had names, ``feature_names_in_``.
    """
    if n_source != estimator.n_features_in_:
        raise ValueError(
            f"{position} must take as many features as X has, {estimator.n_features_in_}. Got {n_source} instead: fit "
            "both on embeddings of the same backbone and layer."
        )
    own = getattr(estimator, "feature_names_in_", None)
    if names is not None and own is not None and not np.array_equal(names, own):
        column = int(np.flatnonzero(np.asarray(names) != np.asarray(own))[0])
        raise ValueError(
            f"{position} must have been fitted on the features of X, in their order. Column {column} is "
            f"{own[column]!r} in X and was {names[column]!r} there."
        )
