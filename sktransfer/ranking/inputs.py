"""Features, labels and targets as they are given, checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sktransfer.ranking.blocks import Features, row_slices

LARGE = 64  # powers of two whose fourth powers can still be summed


class Labels(NamedTuple):
    """Class labels as positions."""

    classes: npt.NDArray[Any]  # (n_classes,) sorted
    codes: npt.NDArray[np.intp]  # (n,) positions in classes


def read_features(X: Any, name: str = "X") -> Features:
    """Check an array of shape (n, d) and choose the power of two it is divided by.

    Raises
    ------
    TypeError
        If X is sparse.
    ValueError
        If it is not 2-D, has fewer than 2 rows or no column, or holds anything but finite real numbers.
    """
    if scipy.sparse.issparse(X):
        raise TypeError(f"{name} must be a dense array. Got a sparse {type(X).__name__} instead; see its toarray().")
    array = np.asarray(X)
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold real numbers. Got other objects instead.") from error
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold real numbers. Got dtype {array.dtype} instead.")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (n_samples, n_features). Got shape {array.shape} instead.")
    if array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} must have at least 2 rows and 1 column. Got shape {array.shape} instead.")
    largest = max(_find_largest(array, part, name) for part in row_slices(*array.shape))
    exponent = int(np.frexp(largest)[1])
    return Features(array, exponent if abs(exponent) > LARGE else 0)


def _find_largest(array: npt.NDArray[Any], part: slice, name: str) -> float:
    """Return the largest absolute value of a few rows."""
    block = array[part]
    largest = max(float(block.max()), -float(block.min()))
    if not np.isfinite(largest):
        row, column = np.argwhere(~np.isfinite(block))[0]
        raise ValueError(
            f"{name} must be finite. Got {block[row, column]} in row {part.start + row}, column {column} instead; "
            "leave such rows out, or impute them."
        )
    return largest


def is_regression(y: Any, task: str) -> bool:
    """Tell whether y are values of a regression: what task says, and whether they are floats where it is "auto".

    Categories of pandas are labels, whatever they hold.
    """
    if task not in {"auto", "classification", "regression"}:
        raise ValueError(f'task must be "auto", "classification" or "regression". Got {task!r} instead.')
    if task != "auto" or getattr(getattr(y, "dtype", None), "name", "") == "category":
        return task == "regression"
    return np.asarray(y).dtype.kind == "f"


def read_labels(y: Any, n_rows: int) -> Labels:
    """Check the labels of n rows.

    Raises
    ------
    ValueError
        If they are not 1-D (or one column), not as many as rows, missing, of types that cannot be sorted together, or
        all the same.
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"y must have shape (n_samples,) for class labels. Got shape {labels.shape} instead.")
    _check_length(labels, n_rows)
    missing = [row for row, label in enumerate(labels.tolist()) if _is_missing(label)]
    if missing:
        raise ValueError(f"y must have a label in each row. Got {labels[missing[0]]} in row {missing[0]} instead.")
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels.tolist()})
        raise ValueError(f"y must have labels of one type. Got {' and '.join(kinds)} instead.") from error
    if len(classes) < 2:
        raise ValueError(f"y must have at least 2 classes. Got {classes.tolist()[0]!r} in all {n_rows} rows instead.")
    return Labels(classes, codes.astype(np.intp))


def read_groups(groups: Any, n_rows: int) -> npt.NDArray[np.intp]:
    """Check the groups of n rows and return them as numbers from 0.

    Raises
    ------
    ValueError
        If they are not 1-D, not as many as rows, or missing.
    """
    array = np.asarray(groups)
    if array.shape != (n_rows,):
        raise ValueError(f"groups must have one entry for each of the {n_rows} rows. Got shape {array.shape} instead.")
    listed = array.tolist()
    missing = [row for row, group in enumerate(listed) if _is_missing(group)]
    if missing:
        raise ValueError(
            f"groups must have an entry in each row. Got {listed[missing[0]]} in row {missing[0]} instead."
        )
    try:
        order = sorted(set(listed))
    except TypeError:  # of several types
        order = list(dict.fromkeys(listed))
    numbers = {group: number for number, group in enumerate(order)}
    return np.array([numbers[group] for group in listed], dtype=np.intp)


def _is_missing(label: Any) -> bool:
    """Tell whether a label is None, NaN, NaT or pandas' NA."""
    return label is None or type(label).__name__ in {"NAType", "NaTType"} or bool(label != label)  # noqa: PLR0124


def read_targets(y: Any, n_rows: int) -> npt.NDArray[np.float64]:
    """Check the values of n rows and return them with shape (n, n_outputs).

    Raises
    ------
    ValueError
        If they are not numbers in 1-D or 2-D, not as many as rows, not finite, or all the same in a column.
    """
    try:
        targets = np.asarray(y)
        targets = targets.astype(np.float64) if targets.dtype.kind in "buifO" else targets
    except (TypeError, ValueError) as error:
        raise ValueError("y must hold real numbers for a regression. Got other objects instead.") from error
    if targets.dtype != np.float64:
        raise ValueError(f"y must hold real numbers for a regression. Got dtype {targets.dtype} instead.")
    if targets.ndim not in {1, 2} or 0 in targets.shape[1:]:
        raise ValueError(
            f"y must have shape (n_samples,) or (n_samples, n_outputs). Got shape {targets.shape} instead."
        )
    _check_length(targets, n_rows)
    targets = targets.reshape(n_rows, -1)
    wrong = np.argwhere(~np.isfinite(targets))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"y must be finite. Got {targets[row, column]} in row {row} instead.")
    constant = np.flatnonzero((targets == targets[0]).all(axis=0))
    if len(constant):
        raise ValueError(
            f"y must have at least 2 values. Got {targets[0, constant[0]]} in all {n_rows} rows of column "
            f"{constant[0]} instead."
        )
    return targets


def _check_length(y: npt.NDArray[Any], n_rows: int) -> None:
    if len(y) != n_rows:
        raise ValueError(f"y must have one entry for each of the {n_rows} rows. Got {len(y)} instead.")
