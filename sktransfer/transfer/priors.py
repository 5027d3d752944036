"""What linear heads are pulled to: sources read as coefficients, matched by class, and folded into one mean."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sktransfer.transfer.affine import Array, Function, as_function, fold
from sktransfer.transfer.held import check_features, feature_names, fold_steps, is_estimator, split_pipeline, unwrap

ROWS = 64  # of X, on which sources are checked
TOLERANCE = 1e-6  # of how far values on them spread
ROUNDING = 1e-10  # of the values


@dataclass(frozen=True)
class LinearSource:
    """A fitted linear function, in the features in front of its own scalers."""

    coef: Array  # (k, d)
    intercept: Array  # (k,)
    classes: tuple[Any, ...] = ()  # one a row; a regressor has none
    names: Any = None  # of the d features, if it was fitted with names
    folded: bool = False  # whether there were steps in front of its coefficients
    function: Function | None = None  # what the estimator itself gives for rows of X


@dataclass(frozen=True)
class Prior:
    """The point that the sources pull to, and how hard."""

    coef: Array  # (k, d)
    intercept: Array  # (k,)
    weight: float  # the sum of the sources' weights


def read_weights(source: Any, source_weight: Any) -> list[tuple[str, Any, float]]:
    """Return the sources, each with the name it has in sentences and its weight.

    Raises
    ------
    ValueError
        If a weight is not a finite number >= 0, or there are not as many weights as sources.
    """
    listed = isinstance(source, list) or (
        isinstance(source, tuple) and all(is_estimator(item) or isinstance(item, Mapping) for item in source)
    )
    sources = list(source) if listed else [] if source is None else [source]
    several = isinstance(source_weight, Sequence | np.ndarray) and not isinstance(source_weight, str)
    weights = list(source_weight) if several else [source_weight] * len(sources)
    if several and len(weights) != len(sources):
        raise ValueError(
            f"source_weight must be a number, or one number for each source. Got {len(weights)} numbers for "
            f"{len(sources)} sources instead."
        )
    for weight in weights if several or sources else [source_weight]:
        number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
        if not number or not 0 <= weight < np.inf:
            raise ValueError(f"source_weight must be finite and >= 0. Got {weight!r} instead.")
    names = [f"source[{i}]" for i in range(len(sources))] if listed else ["source"]
    return [(name, item, float(weight)) for name, item, weight in zip(names, sources, weights, strict=False)]


def read_classifier(source: Any) -> LinearSource:
    """Read a linear classifier: one row of coefficients a class.

    Parameters
    ----------
    source : estimator or mapping
        A fitted linear classifier, a Pipeline of affine steps that ends in one, or class -> (coefficients, intercept).
        Two classes with one row w become -w/2 and +w/2.

    Raises
    ------
    TypeError, ValueError, NotFittedError
        If it is something else, not linear, or not fitted.
    """
    if isinstance(source, Mapping):
        return _read_mapping(source)
    if not is_estimator(source):
        raise TypeError(
            "source must be a fitted linear classifier, a Pipeline that ends in one, a dict of class -> (coefficients, "
            f"intercept), or a list of these. Got {type(source).__name__} instead."
        )
    last, steps = split_pipeline(source)
    classes = getattr(last, "classes_", None)
    labels = not isinstance(classes, list) and not getattr(last, "multilabel_", False)
    if classes is None or not hasattr(last, "decision_function") or not labels:
        raise TypeError(
            f"source must be a linear classifier (with classes_ and decision_function). Got {type(last).__name__} "
            "instead."
        )
    coef, intercept = _read_linear(last, "decision_function")
    if len(classes) == 2 and len(coef) == 1:
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    if len(coef) != len(classes):
        raise ValueError(
            f"source must have one row of coefficients for each of its {len(classes)} classes. Got {len(coef)} rows "
            f"from {type(last).__name__} instead: one-versus-one classifiers have none."
        )
    return LinearSource(
        *fold_steps(steps, coef, intercept),
        classes=tuple(classes.tolist()),
        names=feature_names(last, steps),
        folded=bool(steps),
        function=as_function(unwrap(source), "decision_function"),
    )


def _read_mapping(source: Mapping[Any, Any]) -> LinearSource:
    rows, intercepts, width = [], [], None
    for label, value in source.items():
        try:
            coef, intercept = value
            row, offset = np.asarray(coef, dtype=np.float64), np.asarray(intercept, dtype=np.float64).item()
        except (TypeError, ValueError):
            raise ValueError(
                f"source must map each class to (coefficients, intercept). Got {type(value).__name__} for {label!r} "
                "instead."
            ) from None
        width = row.size if width is None else width
        if row.shape != (width,):
            raise ValueError(
                f"source must map each class to coefficients of one length, {width}. Got shape {row.shape} for "
                f"{label!r} instead."
            )
        if not (np.isfinite(row).all() and np.isfinite(offset)):
            raise ValueError(f"source must have finite coefficients and intercepts. Got others for {label!r} instead.")
        rows.append(row)
        intercepts.append(offset)
    if not rows:
        raise ValueError("source must have at least one class. Got an empty dict instead.")
    labels = (label.item() if isinstance(label, np.generic) else label for label in source)
    return LinearSource(np.array(rows), np.array(intercepts), tuple(labels))


def read_regressor(source: Any) -> LinearSource:
    """Read a linear regressor: one row of coefficients an output.

    Parameters
    ----------
    source : estimator or tuple
        A fitted regressor whose predictions are affine in X, a Pipeline of affine steps that ends in one, or
        (coefficients of shape (d,) or (n_outputs, d), intercept).

    Raises
    ------
    TypeError, ValueError, NotFittedError
        If it is something else, not linear, or not fitted.
    """
    if isinstance(source, tuple) and len(source) == 2 and not any(is_estimator(part) for part in source):
        try:
            coef = np.atleast_2d(np.asarray(source[0], dtype=np.float64))
            intercept = np.broadcast_to(np.ravel(np.asarray(source[1], dtype=np.float64)), len(coef))
        except (TypeError, ValueError):
            coef, intercept = np.zeros((0, 0, 0)), np.zeros(0)
        if coef.ndim != 2 or not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            raise ValueError(
                "source must be (coefficients of shape (n_features,) or (n_outputs, n_features), one intercept an "
                f"output), all of them finite numbers. Got {_describe(source[0])} and {_describe(source[1])} instead."
            )
        return LinearSource(coef, intercept)
    if not is_estimator(source):
        raise TypeError(
            "source must be a fitted linear regressor, a Pipeline that ends in one, (coefficients, intercept), or a "
            f"list of these. Got {type(source).__name__} instead."
        )
    last, steps = split_pipeline(source)
    if hasattr(last, "classes_") or not hasattr(last, "predict"):
        raise TypeError(f"source must be a linear regressor. Got {type(last).__name__} instead.")
    coef, intercept = _read_linear(last, "predict")
    return LinearSource(
        *fold_steps(steps, coef, intercept),
        names=feature_names(last, steps),
        folded=bool(steps),
        function=as_function(unwrap(source), "predict"),
    )


def _describe(value: Any) -> str:
    array = np.asarray(value, dtype=object)
    return f"an array of shape {array.shape}" if array.ndim else repr(value)


def _read_linear(estimator: Any, method: str) -> tuple[Array, Array]:
    """Read coefficients off what an estimator does: not all attributes called coef_ mean X @ coef_.T + intercept_."""
    n_features = getattr(estimator, "n_features_in_", None)
    if n_features is None:
        n_features = np.atleast_2d(estimator.coef_).shape[1]
    coef = getattr(estimator, "coef_", None)
    guess = np.atleast_2d(coef).astype(np.float64) if isinstance(coef, np.ndarray) else None
    try:
        return fold(as_function(estimator, method), None, None, n_features, guess)
    except ValueError as error:
        raise ValueError(
            f"source must be linear: its {method} must be X @ coef.T + intercept. Got {type(estimator).__name__}, "
            "which is not."
        ) from error


def match_classes(source: LinearSource, classes: Sequence[Any]) -> tuple[Array, Array]:
    """Return a source's coefficients for a target's classes.

    A class that the source does not know has zeros. Two classes have one row, the second's minus the first's.

    Parameters
    ----------
    source : LinearSource
    classes : sequence of labels, sorted as in ``classes_``

    Returns
    -------
    coef : ndarray of shape (1 or n_classes, d)
    intercept : ndarray of shape (1 or n_classes,)
    """
    rows = {label: row for row, label in enumerate(source.classes)}
    coef, intercept = np.zeros((len(classes), source.coef.shape[1])), np.zeros(len(classes))
    for position, label in enumerate(classes):
        if label in rows:
            coef[position], intercept[position] = source.coef[rows[label]], source.intercept[rows[label]]
    return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if len(classes) == 2 else (coef, intercept)


def find_unused(sources: Sequence[tuple[str, LinearSource, float]], classes: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the classes that sources know and the target has not; warn where one shares none with it."""
    for name, source, weight in sources:
        if weight > 0 and not set(source.classes) & set(classes):
            warnings.warn(
                f"No class of {name} is a class of y: it has {_shorten(source.classes)}, y has {_shorten(classes)}. "
                "It pulls all coefficients to zero; are the labels of the same type?",
                UserWarning,
                stacklevel=4,
            )
    known = dict.fromkeys(label for _, source, _ in sources for label in source.classes)
    unused = [label for label in known if label not in set(classes)]
    result = np.empty(len(unused), dtype=object)
    result[:] = unused
    return result


def _shorten(classes: Sequence[Any]) -> str:
    return ", ".join(map(repr, classes[:3])) + (", …" if len(classes) > 3 else "")


def collapse(
    estimator: Any,
    sources: Sequence[tuple[str, LinearSource, float]],
    n_rows: int,
    match: Callable[[LinearSource], tuple[Array, Array]],
    X: Any,
) -> Prior:
    """Fold sources, Σ ½λᵢ‖w − wᵢ‖², into one: ½Λ‖w − w̄‖² with Λ = Σλᵢ and w̄ = Σλᵢwᵢ/Λ, but for a constant.

    Parameters
    ----------
    estimator : estimator
        With ``n_features_in_`` (and ``feature_names_in_``), which the sources must agree with.
    sources : sequence of (name, source, weight)
    n_rows : int
        Rows of coefficients of the target.
    match : callable
        LinearSource -> (coef, intercept) of the target's rows.
    X : array or sparse matrix of shape (n_samples, n_features)
        On some of whose rows the coefficients must give what the sources give.
    """
    coef, intercept = np.zeros((n_rows, estimator.n_features_in_)), np.zeros(n_rows)
    total = sum(weight for *_, weight in sources)
    for name, source, weight in sources:
        check_features(name, source.names, source.coef.shape[1], estimator)
        check_linear(name, source, X)
        matched, offset = match(source)
        if len(matched) != n_rows:
            raise ValueError(
                f"{name} must have as many outputs as y has columns, {n_rows}. Got {len(matched)} instead."
            )
        if weight > 0:
            coef += weight / total * matched
            intercept += weight / total * offset
    return Prior(coef, intercept, total)


def check_linear(name: str, source: LinearSource, X: Any) -> None:
    """Raise unless a source's coefficients give what it gives itself, on rows of X and between them.

    Its values on probes far from all data (:func:`fold`) do not show a tree or a kernel there.
    """
    if source.function is None:
        return
    some = X[:ROWS].toarray() if scipy.sparse.issparse(X) else np.asarray(X[:ROWS])
    some = some.astype(np.float64)
    rows = np.vstack([some, (some + some[::-1]) / 2, some * np.linspace(0.5, 1.5, len(some))[:, None]])
    expected = source.function(rows)
    coef, intercept = source.coef, source.intercept
    if expected.shape[1] == 1 and len(coef) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    size = (
        np.abs(expected - expected.mean(axis=0)).max() + np.abs(rows - rows.mean(axis=0)).max(axis=0) @ np.abs(coef).T
    )
    wrong = np.abs(rows @ coef.T + intercept - expected) > TOLERANCE * size + ROUNDING * np.abs(expected).max()
    if wrong.any():
        raise ValueError(
            f"{name} must be linear: what it gives for X must be X @ coef.T + intercept, and is not. Trees, kernels "
            "and steps such as bins and one-hot codes have no such coefficients."
        )
