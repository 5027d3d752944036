"""What the columns of X are: images, numbers or texts, read off the fitted estimators that take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.pipeline import FeatureUnion, Pipeline

from sktransfer.export.inverses import InverseTarget
from sktransfer.extractor import PretrainedFeatureExtractor

Kind = Literal["image", "number", "integer", "text"]


_PARTS: dict[type, Callable[[Any], list[Any]]] = {
    Pipeline: lambda pipeline: [step for _, step in pipeline.steps],
    ColumnTransformer: lambda transformer: [part for _, part, _ in transformer.transformers_],
    FeatureUnion: lambda union: [part for _, part in union.transformer_list],
    CalibratedClassifierCV: lambda classifier: [one.estimator for one in classifier.calibrated_classifiers_],
    VotingClassifier: lambda voting: list(voting.estimators_),
    VotingRegressor: lambda voting: list(voting.estimators_),
    InverseTarget: lambda target: [target.regressor],
}


def list_parts(estimator: Any) -> list[Any]:
    """The estimators directly inside a plain one."""
    parts = _PARTS.get(type(estimator), lambda _: [])(estimator)
    return [part for part in parts if not isinstance(part, str)]


def walk(estimator: Any) -> list[Any]:
    """A plain estimator and everything in it."""
    return [estimator, *(inner for part in list_parts(estimator) for inner in walk(part))]


def find_entrance(estimator: Any) -> Any:
    """The first estimator of a plain one that sees the columns of X."""
    parts = list_parts(estimator)
    if isinstance(estimator, (PretrainedFeatureExtractor, ColumnTransformer)) or not parts:
        return estimator
    return find_entrance(parts[0])


def name_columns(estimator: Any) -> list[str]:
    """Names of the columns of X; "image" for the only one, an image."""
    entrance = find_entrance(estimator)
    names = getattr(entrance, "feature_names_in_", None)
    if isinstance(entrance, PretrainedFeatureExtractor):
        return ["image"] if entrance.n_features_in_ == 1 else list(entrance._columns)
    return [f"x{i}" for i in range(entrance.n_features_in_)] if names is None else list(map(str, names))


def find_columns(estimator: Any, n_columns: int) -> list[Kind | None]:
    """The kind of each column; None where nothing reads it.

    Raises
    ------
    ValueError
        If a column is read in two ways.
    """
    if isinstance(estimator, PretrainedFeatureExtractor):
        return ["image"] * n_columns
    if isinstance(estimator, Pipeline):
        return _find_in_pipeline(estimator, n_columns)
    if isinstance(estimator, ColumnTransformer):
        read = [(part, indices) for _, part, indices in estimator.transformers_ if part is not None and indices]
        return _agree([(part, indices) for part, indices in read if not _is(part, "drop")], n_columns)
    if parts := list_parts(estimator):
        return _agree([(part, range(n_columns)) for part in parts], n_columns)
    categories = getattr(estimator, "categories_", None)
    if categories is not None and len(categories) == n_columns:
        return [_find_of_categories(values, index) for index, values in enumerate(categories)]
    fill = np.asarray(getattr(estimator, "statistics_", 0.0))
    return ["text" if fill.dtype.kind in "OU" else "number"] * n_columns


def _is(part: Any, word: str) -> bool:
    return isinstance(part, str) and part == word


def _find_in_pipeline(pipeline: Any, n_columns: int) -> list[Kind | None]:
    kinds = find_columns(pipeline.steps[0][1], n_columns)
    encoder = next((step for _, step in pipeline.steps if hasattr(step, "categories_")), None)
    if "image" in kinds or encoder is None or len(encoder.categories_) != n_columns:
        return kinds
    return find_columns(encoder, n_columns)  # texts and whole numbers that are imputed first


def _agree(parts: Iterable[tuple[Any, Sequence[int]]], n_columns: int) -> list[Kind | None]:
    """The kinds of columns that several estimators read."""
    found: list[Kind | None] = [None] * n_columns
    for part, indices in parts:
        for index, kind in zip(indices, find_columns(part, len(indices)), strict=True):
            if None not in (found[index], kind) and found[index] != kind:
                raise ValueError(f"Column {index} must be read in one way. Got {found[index]} and {kind} instead.")
            found[index] = found[index] or kind
    return found


def _find_of_categories(categories: Any, index: int) -> Kind:
    if categories.dtype.kind in "iu":
        return "integer"
    if categories.dtype.kind == "f" and np.isfinite(categories).all():
        return "number"
    if categories.dtype.kind in "OU" and all(isinstance(value, str) for value in categories):
        return "text"
    shown = [value for value in categories.tolist() if not isinstance(value, str)][:1] or categories[:1].tolist()
    raise ValueError(
        f"Categories of a column must be texts, or whole numbers of an integer dtype. Got {shown[0]!r} in column "
        f"{index} of an encoder instead; encode texts and numbers in steps of their own, without empty cells."
    )
