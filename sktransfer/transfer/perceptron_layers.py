"""The layers of a network in training: in which coordinates, and which of them are frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sktransfer.transfer.coordinates import Coordinates
from sktransfer.transfer.networks import Floats, Parameters, compute_outputs


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where features enter a network: its first layer, for raw ones and in the coordinates of the training."""

    coordinates: Coordinates
    n_features: int
    n_scaled: int

    def enter(self, parameters: Parameters, dtype: npt.DTypeLike) -> Parameters:
        """Return parameters for scaled features from those for raw ones."""
        return self._convert(self.coordinates.enter, parameters, self.n_scaled, dtype)

    def leave(self, parameters: Parameters, dtype: npt.DTypeLike) -> Parameters:
        """Return parameters for raw features from those for scaled ones."""
        return self._convert(self.coordinates.leave, parameters, self.n_features, dtype)

    def _convert(
        self, convert: Callable[..., tuple[Floats, Floats]], parameters: Parameters, width: int, dtype: npt.DTypeLike
    ) -> Parameters:
        if self.coordinates.scaler is None:
            return parameters
        depth = len(parameters) // 2
        weights, biases = parameters[0].T, parameters[depth]
        if np.isfinite(weights).all() and np.isfinite(biases).all():
            weights, biases = convert(weights, biases, width)
        else:  # the training has diverged, which is said at its end
            weights, biases = np.full((len(biases), width), np.nan), np.full(len(biases), np.nan)
        converted = list(parameters)
        converted[0], converted[depth] = np.ascontiguousarray(weights.T, dtype), biases.astype(dtype)
        return converted


@dataclass(frozen=True, slots=True)
class Layers:
    """All parameters of a network as its training finds them."""

    parameters: Parameters
    entrance: Entrance
    frozen: int  # so many layers, from the features on, are not trained

    @property
    def trained(self) -> Parameters:
        """The parameters of the other layers."""
        depth = len(self.parameters) // 2
        return self.parameters[self.frozen : depth] + self.parameters[depth + self.frozen :]

    @property
    def _held(self) -> tuple[Parameters, Parameters]:
        depth = len(self.parameters) // 2
        return self.parameters[: self.frozen], self.parameters[depth : depth + self.frozen]

    def compute_features(self, X: Any, activation: str) -> Any:
        """Return what the trained layers are given: X itself, or what the frozen layers make of it."""
        coefs, intercepts = self._held
        return compute_outputs(X, coefs + intercepts, activation, activation) if coefs else X

    def express(self, trained: Parameters) -> tuple[list[Floats], list[Floats]]:
        """Return the weights and biases of all layers, for raw features, with new values of the trained ones."""
        coefs, intercepts = self._held
        middle = len(trained) // 2
        whole = coefs + trained[:middle] + intercepts + trained[middle:]
        whole = self.entrance.leave(whole, whole[0].dtype)
        return whole[: len(whole) // 2], whole[len(whole) // 2 :]
