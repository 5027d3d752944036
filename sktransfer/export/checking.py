"""A file against the pipeline it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sktransfer.exported import ExportedModel, raise_failures
from sktransfer.extraction import read_references

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Comparison:
    """A file and a pipeline on the same rows."""

    difference: float  # the largest, of probabilities; relative to 1 or the value, if that is larger, of others
    row: int  # that differs most, or the first with another label
    agreement: float | None  # share of equal labels; None where there are none


def read_columns(X: Any, columns: Mapping[int, str], image_shape: Any) -> dict[str, Sequence[Any]]:
    """The cells of the columns of X, by the names of the inputs that take them.

    Parameters
    ----------
    X : sequence, Series, frame or array
        What the pipeline takes.
    columns : mapping of int to str
        Positions in X, and names of inputs.
    image_shape : tuple or None
        Of flattened images in the rows of a 2-D numeric X.
    """
    if len(columns) == 1 and not hasattr(X, "columns"):
        return {columns[0]: list(read_references(X, image_shape).columns[0])}
    if hasattr(X, "iloc"):
        return {name: X.iloc[:, position].to_list() for position, name in columns.items()}
    if hasattr(X, "columns"):  # polars
        return {name: X[X.columns[position]].to_list() for position, name in columns.items()}
    cells = np.asarray(X, dtype=object)
    return {name: cells[:, position].tolist() for position, name in columns.items()}


def compare(model: ExportedModel, estimator: Any, X: Any, columns: Mapping[str, Sequence[Any]]) -> Comparison:
    """How far the file is from the estimator on the rows of X."""
    found = raise_failures(model.predict(columns)).outputs
    if "features" in found:
        return Comparison(*_differ(found["features"], np.asarray(estimator.transform(X)), relative=True), None)
    expected = np.asarray(estimator.predict(X))
    if "label" not in found:
        return Comparison(*_differ(found["value"], expected, relative=True), None)
    labels = found["label"]
    same = labels == (expected.astype(np.int64) if labels.dtype.kind == "i" else expected.astype(object))
    name = "probabilities" if "probabilities" in found else "scores"
    wanted = estimator.predict_proba(X) if name == "probabilities" else estimator.decision_function(X)
    difference, row = _differ(found[name], np.asarray(wanted), relative=name == "scores")
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
    return Comparison(difference, row, float(same.mean()))


def _differ(found: Array, expected: Array, *, relative: bool) -> tuple[float, int]:
    """The largest difference, and its row; NaN differs from everything but NaN."""
    expected = expected.reshape(found.shape)
    gaps = np.abs(found.astype(np.float64) - expected)
    if relative:
        gaps /= np.maximum(1.0, np.abs(expected))
    gaps[np.isnan(found) & np.isnan(expected)] = 0.0
    gaps = np.nan_to_num(gaps, nan=np.inf).reshape(len(gaps), -1).max(axis=1)
    return float(gaps.max()), int(gaps.argmax())
