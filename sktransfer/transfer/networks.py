"""Multilayer perceptrons as plain arrays: outputs, loss, gradients, first weights, and the pull to a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, xlogy

Floats = npt.NDArray[Any]  # float32 or float64
Parameters = list[Floats]  # the weights (n_in, n_out) of every layer, then the biases (n_out,) of every layer

ACTIVATIONS = ("identity", "logistic", "relu", "tanh")


def _activate(name: str, values: Floats) -> None:
    if name == "relu":
        np.maximum(values, 0, out=values)
    elif name == "tanh":
        np.tanh(values, out=values)
    elif name == "logistic":
        expit(values, out=values)
    elif name == "exp":
        np.exp(values, out=values)
    elif name == "softmax":
        values -= values.max(axis=1, keepdims=True)
        np.exp(values, out=values)
        values /= values.sum(axis=1, keepdims=True)


def _multiply_by_slope(activation: str, values: Floats, delta: Floats) -> None:
    """Multiply by the derivative of an activation, given the values it took."""
    if activation == "relu":
        delta[values == 0] = 0
    elif activation == "tanh":
        delta *= 1 - values**2
    elif activation == "logistic":
        delta *= values
        delta *= 1 - values


def _layer_values(X: Any, parameters: Parameters, activation: str, out_activation: str) -> Iterator[Any]:
    depth = len(parameters) // 2
    values = X
    yield values
    for layer in range(depth):
        values = values @ parameters[layer]
        values += parameters[depth + layer]
        _activate(out_activation if layer == depth - 1 else activation, values)
        yield values


def compute_outputs(X: Any, parameters: Parameters, activation: str, out_activation: str) -> Any:
    """Return the values of the last layer, (n, n_outputs), for rows X, an array or a sparse matrix."""
    for values in _layer_values(X, parameters, activation, out_activation):
        outputs = values
    return outputs


def mean_loss(out_activation: str, y: Floats, outputs: Floats, sample_weight: Floats | None) -> float:
    """Return the mean over rows of the loss whose canonical link the output activation is.

    identity: half the squared error; exp: half the Poisson deviance; softmax and logistic: the log loss, of natural
    logarithms. Each is summed over the outputs, so that the gradients below are its own.
    """
    if out_activation == "identity":
        losses = (y - outputs) ** 2 / 2
    elif out_activation == "exp":
        losses = xlogy(y, y / outputs) - y + outputs
    else:
        margin = np.finfo(outputs.dtype).eps
        shares = np.clip(outputs, margin, 1 - margin)
        losses = -xlogy(y, shares)
        if out_activation == "logistic":
            losses = losses - xlogy(1 - y, 1 - shares)
    return float(np.average(losses, weights=sample_weight, axis=0).sum())


@dataclass(frozen=True, slots=True)
class Pull:
    """Quadratic pull of parameters p to those of a source: half the sum of w (p - p0)²."""

    anchors: Parameters  # p0; 0 where nothing is known
    weights: list[Floats]  # w, for each array of parameters (n_out,), the same for all of its rows

    def penalty(self, parameters: Parameters) -> float:
        """Return half the sum of w (p - p0)²."""
        arrays = zip(parameters, self.anchors, self.weights, strict=True)
        return 0.5 * sum(float((w * (p - p0) ** 2).sum()) for p, p0, w in arrays)

    def gradients(self, parameters: Parameters) -> Parameters:
        """Return w (p - p0)."""
        return [w * (p - p0) for p, p0, w in zip(parameters, self.anchors, self.weights, strict=True)]

    def shrink(self, index: int, parameter: Floats, step: float | Floats, n: float) -> None:
        """Take the proximal step, p ← (p + s w/n p0) / (1 + s w/n), in place on one array of parameters."""
        weight = self.weights[index]
        if weight.any():
            anchor = self.anchors[index]
            parameter -= anchor  # in this form a weight beyond all bounds gives p0 itself
            with np.errstate(over="ignore"):
                parameter /= 1 + step * (weight / n)
            parameter += anchor


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: mean loss + (½ alpha Σ W² + pull) / n, with n the sum of the sample weights."""

    activation: str
    out_activation: str
    alpha: float
    pull: Pull | None = None

    def evaluate(
        self, parameters: Parameters, X: Any, y: Floats, sample_weight: Floats | None
    ) -> tuple[float, Parameters]:
        """Return the objective, and the gradients of all of it but the pull.

        Parameters
        ----------
        parameters : list of ndarray
        X : {ndarray, sparse matrix} of shape (n_rows, n_features)
        y : ndarray of shape (n_rows, n_outputs)
        sample_weight : ndarray of shape (n_rows,) or None
            With a sum > 0.
        """
        depth = len(parameters) // 2
        values = list(_layer_values(X, parameters, self.activation, self.out_activation))
        n = float(len(y) if sample_weight is None else sample_weight.sum())
        penalty = 0.5 * self.alpha * sum(float(np.vdot(weights, weights)) for weights in parameters[:depth])
        if self.pull is not None:
            penalty += self.pull.penalty(parameters)
        loss = mean_loss(self.out_activation, y, values[-1], sample_weight) + penalty / n
        delta = values[-1] - y  # the same for every loss under its canonical link
        if sample_weight is not None:
            delta *= sample_weight[:, None]
        gradients = [np.empty(0)] * len(parameters)
        for layer in reversed(range(depth)):
            gradient = values[layer].T @ delta
            gradient += self.alpha * parameters[layer]
            gradient /= n
            gradients[layer], gradients[depth + layer] = gradient, delta.sum(axis=0) / n
            if layer:
                delta = delta @ parameters[layer].T
                _multiply_by_slope(self.activation, values[layer], delta)
        return loss, gradients


def draw_layer(
    random: np.random.RandomState, n_in: int, n_out: int, activation: str, dtype: npt.DTypeLike
) -> tuple[Floats, Floats]:
    """Draw weights (n_in, n_out) and biases (n_out,), uniform within Glorot and Bengio's (2010) bound, eq. 16.

    The bound is sqrt(6 / (n_in + n_out)), and as in scikit-learn sqrt(2 / (n_in + n_out)) for "logistic".
    """
    bound = np.sqrt((2.0 if activation == "logistic" else 6.0) / (n_in + n_out))
    weights = random.uniform(-bound, bound, (n_in, n_out))
    biases = random.uniform(-bound, bound, n_out)
    return weights.astype(dtype, copy=False), biases.astype(dtype, copy=False)


def draw_parameters(
    random: np.random.RandomState, sizes: Sequence[int], activation: str, dtype: npt.DTypeLike
) -> Parameters:
    """Draw all layers between `sizes`, the numbers of units from the features to the outputs."""
    layers = [draw_layer(random, n_in, n_out, activation, dtype) for n_in, n_out in pairwise(sizes)]
    return [weights for weights, _ in layers] + [biases for _, biases in layers]
