"""The parameters of a network's training: given, or as the source has them, or scikit-learn's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline

from sktransfer.transfer.held import unwrap
from sktransfer.transfer.networks import ACTIVATIONS

TRANSFERS = ("parameters", "structure", "features")
STOCHASTIC_SOLVERS = ("adam", "sgd")


@dataclass(frozen=True, slots=True)
class Settings:
    """Resolved parameters, with the meaning they have in scikit-learn's MLPClassifier and MLPRegressor."""

    hidden_layer_sizes: tuple[int, ...]
    activation: str
    solver: str
    alpha: float
    batch_size: int | str
    learning_rate: str
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    tol: float
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: float  # an integer or infinity
    max_fun: int
    loss: str  # of a regressor; "log_loss" of a classifier


def _is_number(value: Any, low: float, high: float = np.inf, *, ends: str = "[]") -> bool:
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    number = float(value)
    above = number > low if ends[0] == "(" else number >= low
    return above and (number < high if ends[1] == ")" else number <= high)


def is_weight(value: Any) -> bool:
    """Tell whether a value is a finite number >= 0."""
    return _is_number(value, 0, ends="[)")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and _is_number(value, 1)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    allowed = ", ".join(f'"{name}"' for name in names[:-1]) + f' or "{names[-1]}"'
    return lambda value: isinstance(value, str) and value in names, allowed


COUNT = (_is_count, "an integer >= 1")
FLAG = (_is_flag, "True or False")
AT_LEAST_ZERO = (is_weight, "a finite number >= 0")
ABOVE_ZERO = (lambda value: _is_number(value, 0, ends="()"), "a finite number > 0")
FROM_ZERO_TO_ONE = (lambda value: _is_number(value, 0, 1), "a number from 0 to 1")
BELOW_ONE = (lambda value: _is_number(value, 0, 1, ends="[)"), "a number >= 0 and < 1")

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "transfer": _one_of(*TRANSFERS),
    "activation": _one_of(*ACTIVATIONS),
    "solver": _one_of("adam", "sgd", "lbfgs"),
    "alpha": AT_LEAST_ZERO,
    "batch_size": (
        lambda value: _is_count(value) or (isinstance(value, str) and value == "auto"),
        '"auto" or an integer >= 1',
    ),
    "learning_rate": _one_of("constant", "invscaling", "adaptive"),
    "learning_rate_init": ABOVE_ZERO,
    "power_t": AT_LEAST_ZERO,
    "max_iter": COUNT,
    "shuffle": FLAG,
    "tol": AT_LEAST_ZERO,
    "momentum": FROM_ZERO_TO_ONE,
    "nesterovs_momentum": FLAG,
    "early_stopping": FLAG,
    "validation_fraction": BELOW_ONE,
    "beta_1": BELOW_ONE,
    "beta_2": BELOW_ONE,
    "epsilon": ABOVE_ZERO,
    "n_iter_no_change": (
        lambda value: _is_count(value) or (isinstance(value, Real) and value == np.inf),
        "an integer >= 1 or infinity",
    ),
    "max_fun": COUNT,
    "loss": _one_of("squared_error", "poisson"),
    "warm_start": FLAG,
    "verbose": (lambda value: _is_flag(value) or _is_number(value, 0), "True, False or a number >= 0"),
}


def check(name: str, value: Any) -> None:
    """Raise a sentence if a parameter has a value outside its range."""
    accepts, allowed = RULES[name]
    if not accepts(value):
        raise ValueError(f"{name} must be {allowed}. Got {value!r} instead.")


def read_sizes(value: Any) -> tuple[int, ...]:
    """Return hidden_layer_sizes, an integer or a sequence of integers, as a tuple."""
    try:
        sizes = tuple(np.asarray(value).reshape(-1).tolist()) if np.iterable(value) else (value,)
    except (TypeError, ValueError):
        sizes = (value,)
    if not all(_is_count(size) for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be an integer >= 1 or a sequence of them. Got {value!r} instead.")
    return tuple(int(size) for size in sizes)


def read_weights(value: Any, n_layers: int) -> list[float]:
    """Return source_weight, a number or one for each layer, as a list."""
    weights = [value] * n_layers if isinstance(value, Real) else value
    if not isinstance(weights, list | tuple | np.ndarray) or not all(map(is_weight, weights)):
        raise ValueError(
            f"source_weight must be a finite number >= 0, or a list of them, one for each layer. Got {value!r} instead."
        )
    if len(weights) != n_layers:
        raise ValueError(
            f"source_weight must be a number, or a list of as many as the source has layers of weights, {n_layers}. "
            f"Got {len(weights)} instead."
        )
    return [float(weight) for weight in weights]


def last_estimator(source: Any) -> Any:
    """Return the estimator that ends a source, inside pipelines, searches and frozen ones."""
    source = unwrap(source)
    while isinstance(source, Pipeline):
        source = unwrap(source.steps[-1][1])
    return source


def _lineage(estimator: Any) -> Iterator[Any]:
    """Yield the estimator, its source, the source of that, …, each once."""
    seen = set()
    while estimator is not None and id(estimator) not in seen:
        seen.add(id(estimator))
        yield estimator
        source = getattr(estimator, "source", None)
        estimator = None if source is None else last_estimator(source)


def _learnt(ancestor: Any, name: str) -> Any:
    """Return the value under which an ancestor was fitted, or that it was given."""
    if name == "hidden_layer_sizes" and hasattr(ancestor, "coefs_"):
        return tuple(weights.shape[1] for weights in ancestor.coefs_[:-1])
    if name == "activation" and hasattr(ancestor, "activation_"):
        return ancestor.activation_
    if name == "loss" and hasattr(ancestor, "classes_"):
        return None  # a classifier's loss says nothing about that of a regressor
    return getattr(ancestor, name, None)


def resolve(estimator: Any, name: str) -> Any:
    """Return a parameter: the estimator's own, or the first of its sources', or scikit-learn's default."""
    ancestors = _lineage(estimator)
    value = getattr(next(ancestors), name)
    for ancestor in ancestors:
        value = _learnt(ancestor, name) if value is None else value
    if value is None:
        default = MLPRegressor() if name == "loss" else MLPClassifier()
        value = getattr(default, name)
    return value


def read_settings(estimator: Any) -> Settings:
    """Resolve and check all parameters of an estimator; raise a sentence for the first that is out of range."""
    for name in ("transfer", "warm_start", "verbose"):
        check(name, getattr(estimator, name))
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Settings)):
        if name == "hidden_layer_sizes":
            values[name] = read_sizes(resolve(estimator, name))
        elif name == "loss" and not hasattr(estimator, "loss"):
            values[name] = "log_loss"
        else:
            values[name] = resolve(estimator, name)
            check(name, values[name])
    return Settings(**values)
