"""Targets that a regression was fitted on transformed, and the way back as operators of ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, RobustScaler, StandardScaler

from sktransfer.transfer.affine import as_function, fold

Operation = tuple[str, float | None]  # an operator and its second operand

_FUNCTIONS: dict[Any, tuple[Operation, ...]] = {
    None: (),
    np.exp: (("Exp", None),),
    np.expm1: (("Exp", None), ("Sub", 1.0)),
    np.exp2: (("Mul", float(np.log(2))), ("Exp", None)),
    np.log: (("Log", None),),
    np.log1p: (("Add", 1.0), ("Log", None)),
    np.square: (("Pow", 2.0),),
    np.sqrt: (("Sqrt", None),),
    np.negative: (("Neg", None),),
    np.reciprocal: (("Reciprocal", None),),
}
_SCALERS = (StandardScaler, MinMaxScaler, RobustScaler)


@dataclass
class InverseTarget:
    """A regressor, and what its predictions still go through; for the converter alone."""

    regressor: Any
    operations: tuple[Operation, ...]


def find_inverse(transformer: Any) -> tuple[Operation, ...]:
    """The operators that do what the ``inverse_transform`` of a target's transformer does.

    Raises
    ------
    ValueError
        If it has no counterpart.
    """
    if isinstance(transformer, FunctionTransformer):
        inverse = transformer.inverse_func
        if inverse in _FUNCTIONS and not transformer.inv_kw_args:
            return _FUNCTIONS[inverse]
        raise ValueError(f"inverse_func must be one of {_list_names()}. Got {inverse!r} instead.")
    if isinstance(transformer, _SCALERS):
        weights, offset = fold(as_function(transformer, "inverse_transform"), None, None, 1)
        return (("Mul", float(weights[0, 0])), ("Add", float(offset[0])))
    raise ValueError(
        f"The transformer of a target must be a StandardScaler, MinMaxScaler or RobustScaler of one output, or a "
        f"function. Got {type(transformer).__name__} instead."
    )


def _list_names() -> str:
    return ", ".join(f"np.{function.__name__}" for function in _FUNCTIONS if function is not None)
