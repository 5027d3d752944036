"""Which rows are the target's, and which of them have a label."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FEW = 20  # target rows: fewer give moments that are mostly noise
SHOWN = 3  # rows that an error names


@dataclass(frozen=True)
class Task:
    """Rows of several domains as the adapters see them."""

    y: Array  # numbers of classes with -1, or values with NaN, for what is not known
    sample_domain: Array  # the source's number, or -1
    classes: Array | None  # what the numbers of classes stand for


def read_domains(sample_domain: Any, n_rows: int) -> Array:
    """Return one integer a row: a source's number (0 or more), or -1 for the target.

    Raises
    ------
    ValueError
        If it is not a whole number for each row, or names no source rows or fewer than two target rows.
    """
    domains = np.asarray(sample_domain)
    if domains.shape != (n_rows,):
        raise ValueError(
            f"sample_domain must have one number for each of the {n_rows} rows of X. Got shape {domains.shape} instead."
        )
    numbers = domains.tolist()
    bad = [row for row, number in enumerate(numbers) if not _is_whole(number)]
    if bad:
        raise ValueError(
            "sample_domain must be integers: 0 or more for rows of a source, below 0 for the target's. Got "
            f"{numbers[bad[0]]!r} in row {bad[0]} instead."
        )
    domains = np.array([max(int(number), -1) for number in numbers], dtype=np.int64)
    n_target = int((domains < 0).sum())
    if n_target == n_rows:
        raise ValueError(
            "sample_domain must be 0 or more for the rows of a source. Got only rows of the target instead."
        )
    if n_target < 2:
        raise ValueError(
            f"sample_domain must be below 0 for the rows of the target, two at least. Got {n_target} of {n_rows} rows "
            "instead; leave it out to fit the plain estimator."
        )
    if n_target < FEW:
        warnings.warn(
            f"Only {n_target} target rows: what is learnt of the target from fewer than {FEW} is mostly noise.",
            UserWarning, stacklevel=find_stacklevel(),
        )  # fmt: skip
    return domains


def read_classes(y: Any, domains: Array, missing_label: Any, use: Any) -> Task:
    """Number the classes of the labelled rows; target rows may have none.

    Parameters
    ----------
    y : array-like of shape (n,)
    domains : ndarray of shape (n,)
        What `read_domains` returned.
    missing_label : object
        None for -1 among integers. None, NaN and NA always stand for none.
    use : bool or "auto"
        Whether labels of target rows are read; "auto" does, and warns if there is none missing.
    """
    labels = _as_labels(y)
    if labels.shape != domains.shape:
        raise ValueError(
            f"y must have one label for each of the {len(domains)} rows. Got shape {labels.shape} instead."
        )
    target = domains < 0
    missing = _check_missing(find_missing(labels, missing_label), target, labels, missing_label, use)
    known = _narrow(labels[~missing])
    if known.dtype.kind == "f" and (known != np.floor(known)).any():
        raise ValueError("Unknown label type: y must be classes. Got continuous values instead; use AdaptedRegressor.")
    try:
        classes, codes = np.unique(known, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in known.tolist()})
        raise TypeError(f"y must hold labels of one kind. Got {' and '.join(kinds)} instead.") from error
    source_codes = np.unique(codes[~target[~missing]])
    if len(source_codes) < 2:
        only = classes[source_codes].tolist()[0]
        raise ValueError(f"The source rows must have at least two classes. Got only one class instead: {only!r}.")
    numbers = np.full(len(labels), -1, dtype=np.int64)
    numbers[~missing] = codes
    return Task(numbers, domains, classes)


def read_values(y: Any, domains: Array, missing_label: Any, use: Any) -> Task:
    """Values of a regression, (n,) or (n, n_outputs); target rows may hold NaN."""
    try:
        # pandas' NA is no number to numpy, and other libraries' to_numpy has no na_value
        values = y.to_numpy(np.float64, na_value=np.nan) if hasattr(y, "iloc") else np.array(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y must be numbers, NaN where a target row has none. {error}") from error
    values = np.array(values)
    if values.ndim not in {1, 2} or len(values) != len(domains):
        raise ValueError(
            f"y must have one value for each of the {len(domains)} rows. Got shape {values.shape} instead."
        )
    there = ~np.isnan(values)
    if missing_label is not None:
        there &= values != missing_label
    missing = np.logical_not(there if values.ndim == 1 else there.all(axis=1))
    missing = _check_missing(missing, domains < 0, values, missing_label, use)
    values[missing] = np.nan
    infinite = np.flatnonzero(np.isinf(values if values.ndim == 1 else np.abs(values).max(axis=1)))
    if len(infinite):
        raise ValueError(f"y must be finite. Got {values[infinite[0]].tolist()!r} in row {infinite[0]} instead.")
    return Task(values, domains, None)


def find_missing(labels: Array, missing_label: Any) -> Array:
    """Mask of the labels that stand for none."""
    import pandas as pd

    gone = np.asarray(pd.isna(labels), dtype=bool)
    if missing_label is None:
        # nullable integers with an NA among them arrive as objects
        integers = all(isinstance(label, Integral) and not isinstance(label, bool) for label in labels[~gone].tolist())
        if integers:
            gone[~gone] = labels[~gone] == -1
    elif not pd.isna(missing_label):
        gone[~gone] = [bool(label == missing_label) for label in labels[~gone].tolist()]
    return gone


def _check_missing(missing: Array, target: Array, labels: Array, missing_label: Any, use: Any) -> Array:
    """Return the mask of the labels that are not learnt from, which only target rows may lack."""
    _refuse_missing(missing & ~target, labels, missing_label)
    if not use:
        return target.copy()
    if use == "auto":
        _warn_if_unmasked(missing[target], labels)
    return missing


def _as_labels(y: Any) -> Array:
    """One-dimensional labels; strings of a list as objects, so that a None among them stays one."""
    if hasattr(y, "iloc"):
        y = y.to_numpy()
    if isinstance(y, (list, tuple)) and any(isinstance(label, str) or label is None for label in y):
        labels = np.empty(len(y), dtype=object)
        labels[:] = y
    else:
        labels = np.asarray(y)
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels.ravel()
    if labels.dtype.kind in "US":
        raise ValueError(
            "y must be an array of objects for labels to be missing in it. Got strings of fixed width "
            f"({labels.dtype}) instead, which cut longer ones off; use y.astype(object) with None on target rows "
            "without a label."
        )
    return labels


def _narrow(known: Array) -> Array:
    """Objects that are all integers, floats or bools as an array of these; strings stay objects."""
    if known.dtype != object:
        return known
    kinds = {type(label) for label in known}
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return known.astype(bool)
    if all(issubclass(kind, Integral) for kind in kinds):
        return known.astype(np.int64)
    if all(issubclass(kind, Real) for kind in kinds):
        return known.astype(np.float64)
    return known


def _refuse_missing(wrong: Array, labels: Array, missing_label: Any) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        named = ", ".join(str(row) for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        remedy = "" if missing_label is not None else ", or name another missing_label if this is a class"
        raise ValueError(
            f"Rows of a source must have a label. Got {labels[rows].tolist()[0]!r} in row {named}{more} instead; leave "
            f"such rows out{remedy}."
        )


def _warn_if_unmasked(missing: Array, labels: Array) -> None:
    if not missing.any():
        mark = {"i": "-1", "u": "-1", "f": "NaN"}.get(labels.dtype.kind, "None")
        warnings.warn(
            f"All {len(missing)} target rows have a label in y, and these are learnt from. To adapt without them, "
            f"put {mark} there or set use_target_labels=False; to learn from them without this warning, True.",
            UserWarning, stacklevel=find_stacklevel(),
        )  # fmt: skip


def _is_whole(number: Any) -> bool:
    if isinstance(number, Integral):
        return not isinstance(number, bool) and int(number) < 2**63
    return isinstance(number, float) and number.is_integer() and number < 2**63


def find_stacklevel() -> int:
    """Return the ``stacklevel`` of the caller's line, through a Pipeline or a search, for a warning in this module."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("sktransfer.", "sklearn.", "joblib.")):
        frame, level = frame.f_back, level + 1
    return level
