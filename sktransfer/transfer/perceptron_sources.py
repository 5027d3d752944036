"""Fitted networks as sources: their layers, and which of their outputs a new task knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sktransfer.transfer.callbacks import find_stacklevel
from sktransfer.transfer.coordinates import warn_if_standardised
from sktransfer.transfer.held import check_features, feature_names, fold_steps, is_estimator, split_pipeline
from sktransfer.transfer.networks import Floats, Parameters, Pull, draw_layer
from sktransfer.transfer.perceptron_layers import Entrance
from sktransfer.transfer.perceptron_settings import Settings, read_sizes, read_weights


@dataclass(frozen=True, slots=True)
class Outputs:
    """The last layer of a network: what its units stand for."""

    activation: str  # "softmax", "logistic" (one unit: the second of two classes; several: labels), "identity" or "exp"
    size: int
    classes: npt.NDArray[Any] | None  # None: a regression

    @property
    def is_multilabel(self) -> bool:
        """Whether each unit is a label of its own."""
        return self.activation == "logistic" and self.size > 1


@dataclass(frozen=True, slots=True)
class SourceNetwork:
    """A fitted network, with the affine steps in front of it folded into its first layer."""

    coefs: list[Floats]
    intercepts: list[Floats]
    activation: str
    outputs: Outputs
    folded: bool  # whether there were such steps


@dataclass(frozen=True, slots=True)
class Inheritance:
    """The layers a network starts with."""

    parameters: Parameters  # in the last layer, zeros for the units that the source does not know
    known: npt.NDArray[np.bool_]  # (n_outputs,): which units of the last layer the source knows

    def start(self, random: np.random.RandomState, activation: str, dtype: npt.DTypeLike) -> Parameters:
        """Return the first parameters, those of unknown output units drawn."""
        parameters = [array.astype(dtype) for array in self.parameters]
        new = ~self.known
        if new.any():
            last = parameters[len(parameters) // 2 - 1]
            weights, biases = draw_layer(random, len(last), len(new), activation, dtype)
            last[:, new], parameters[-1][new] = weights[:, new], biases[new]
        return parameters

    def pull(self, source_weight: Any, dtype: npt.DTypeLike) -> Pull | None:
        """Return the pull to the layers of the source, which leaves unknown output units alone."""
        depth = len(self.parameters) // 2
        layer_weights = read_weights(source_weight, depth)
        if not any(layer_weights):
            return None
        weights: list[Floats] = [  # float64 always: 1e300 is allowed
            np.full(len(biases), weight) for biases, weight in zip(self.parameters[depth:], layer_weights, strict=True)
        ]
        weights[-1] = weights[-1] * self.known
        return Pull([array.astype(dtype) for array in self.parameters], weights * 2)


def read_source(estimator: Any) -> SourceNetwork:
    """Read the source of an estimator and express it in the features of that.

    Raises
    ------
    ValueError
        If the source is no network, takes other features, or has a step in front of it that is not affine.
    NotFittedError
        If it is not fitted.
    """
    network, steps = find_network(estimator.source)
    coefs = [np.asarray(weights) for weights in network.coefs_]
    intercepts = [np.asarray(biases) for biases in network.intercepts_]
    if steps:
        weights, intercepts[0] = fold_steps(steps, coefs[0].T.astype(np.float64), intercepts[0].astype(np.float64))
        coefs[0] = weights.T
    check_features("source", feature_names(network, steps), coefs[0].shape[0], estimator)
    activation = getattr(network, "activation_", network.activation)
    return SourceNetwork(coefs, intercepts, activation, describe_outputs(network), bool(steps))


def find_network(source: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return the fitted network that ends a source and the steps in front of it, or raise a sentence."""
    kind = type(source).__name__ if is_estimator(source) else repr(source)
    if is_estimator(source):
        network, steps = split_pipeline(source)
        if hasattr(network, "coefs_") and hasattr(network, "out_activation_"):
            return network, steps
        kind = type(network).__name__
    raise ValueError(
        "source must be a fitted MLPClassifier, MLPRegressor, TransferMLPClassifier or TransferMLPRegressor, or a "
        f"pipeline or search that ends in one. Got {kind} instead."
    )


def describe_outputs(network: Any) -> Outputs:
    """Return what the output units of a fitted network stand for."""
    return Outputs(network.out_activation_, network.coefs_[-1].shape[1], getattr(network, "classes_", None))


def check_architecture(estimator: Any, source: SourceNetwork) -> None:
    """Raise if a layer or an activation was asked for that the source does not have."""
    sizes = tuple(weights.shape[1] for weights in source.coefs[:-1])
    own = estimator.hidden_layer_sizes
    if own is not None and read_sizes(own) != sizes:
        _refuse_architecture("hidden_layer_sizes", sizes, own)
    if estimator.activation not in {None, source.activation}:
        _refuse_architecture("activation", source.activation, estimator.activation)


def _refuse_architecture(name: str, of_source: Any, own: Any) -> None:
    raise ValueError(
        f'{name} must be None or that of the source, {of_source!r}, unless transfer="structure". Got {own!r} instead.'
    )


def inherit(estimator: Any, X: Any, outputs: Outputs, entrance: Entrance) -> Inheritance | None:
    """Return the layers an estimator takes over from its source, or None where it starts afresh.

    Parameters
    ----------
    estimator : estimator
        With `source`, `transfer`, `scaler`, `hidden_layer_sizes` and `activation`.
    X : {ndarray, sparse matrix} of shape (n, n_features)
        What it is fitted on.
    outputs : Outputs
        What its output units stand for.
    entrance : Entrance
        Where its training takes place.
    """
    if estimator.source is None or estimator.transfer == "structure":
        return None
    source = read_source(estimator)
    check_architecture(estimator, source)
    if source.folded and estimator.scaler is None:
        warn_if_standardised(X, find_stacklevel() + 1)
    if estimator.transfer == "features":
        columns, known = _nothing(source, outputs)
    else:
        columns, known = match_outputs(source, outputs)
    parameters = [*source.coefs[:-1], columns[:-1], *source.intercepts[:-1], columns[-1]]
    return Inheritance(entrance.enter(parameters, np.float64), known)


def _nothing(source: SourceNetwork, outputs: Outputs) -> tuple[Floats, npt.NDArray[np.bool_]]:
    return np.zeros((len(source.coefs[-1]) + 1, outputs.size)), np.zeros(outputs.size, dtype=bool)


def match_outputs(source: SourceNetwork, outputs: Outputs) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the output layer that a source gives a new task.

    Returns
    -------
    columns : ndarray of shape (n_in + 1, n_outputs)
        Weights, and in the last row the biases; zeros where nothing is known.
    known : ndarray of bool of shape (n_outputs,)
    """
    old = source.outputs
    values = np.vstack([source.coefs[-1], source.intercepts[-1]])
    columns, known = _nothing(source, outputs)
    if old.classes is None or outputs.classes is None:
        if old.classes is outputs.classes and (old.activation, old.size) == (outputs.activation, outputs.size):
            return values, ~known
        return columns, known
    if old.is_multilabel != outputs.is_multilabel or len(old.classes) < 2:
        return columns, known
    if old.size == 1:  # the logistic unit of two classes, as two units of a softmax
        values = np.hstack([-values / 2, values / 2])
    positions = {label: position for position, label in enumerate(old.classes.tolist())}
    found = [positions.get(label) for label in outputs.classes.tolist()]
    if outputs.size == 1:
        negative, positive = found if len(found) == 2 else (None, None)
        if negative is None or positive is None:
            return columns, known
        return values[:, [positive]] - values[:, [negative]], ~known
    for column, position in enumerate(found):
        if position is not None:
            columns[:, column], known[column] = values[:, position], True
    return columns, known


def unused_classes(estimator: Any) -> npt.NDArray[Any]:
    """Return the classes that a source knows and a classifier does not."""
    network = None if estimator.source is None else find_network(estimator.source)[0]
    classes = getattr(network, "classes_", estimator.classes_[:0])
    own = set(estimator.classes_.tolist())
    unused = np.array([label not in own for label in classes.tolist()], dtype=bool)
    return np.asarray(classes[unused])


def count_frozen(estimator: Any, settings: Settings) -> int:
    """Return how many layers of an estimator's network are not trained."""
    return len(settings.hidden_layer_sizes) if estimator.source is not None and estimator.transfer == "features" else 0
