"""Stochastic gradient descent and Adam, with the pull to a source taken as a proximal step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from sktransfer.transfer.networks import Floats, Parameters, Pull


@dataclass
class SGD:
    """Stochastic gradient descent with (Nesterov's) momentum.

    A constant gradient g moves the parameters by -s g, s = rate / (1 - momentum), once the velocity has settled. With
    that s in the proximal step the fixed points are those of loss and pull together.
    """

    initial_rate: float
    schedule: str  # "constant", "invscaling" or "adaptive"
    momentum: float
    nesterov: bool
    power: float
    rate: float = field(init=False)
    velocities: Parameters = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rate = self.initial_rate

    def step(self, parameters: Parameters, gradients: Parameters, pull: Pull | None, n: float) -> None:
        """Change the parameters in place, by their gradients without the pull and then by the pull / n."""
        if len(self.velocities) != len(parameters):
            self.velocities = [np.zeros_like(parameter) for parameter in parameters]
        size = self.rate / max(1 - self.momentum, 1e-16)  # a momentum of 1 never settles: the source wins
        arrays = zip(parameters, gradients, self.velocities, strict=True)
        for index, (parameter, gradient, velocity) in enumerate(arrays):
            self._descend(parameter, gradient, velocity)
            if pull is not None:
                pull.shrink(index, parameter, size, n)

    def _descend(self, parameter: Floats, gradient: Floats, velocity: Floats) -> None:
        velocity *= self.momentum
        velocity -= self.rate * gradient
        parameter += self.momentum * velocity - self.rate * gradient if self.nesterov else velocity

    def end_epoch(self, n_seen: int) -> None:
        """Follow the schedule "invscaling"."""
        if self.schedule == "invscaling":
            self.rate = self.initial_rate / (n_seen + 1) ** self.power

    def slow_down(self) -> bool:
        """Divide the rate by 5 under the schedule "adaptive", down to 1e-6."""
        if self.schedule != "adaptive" or self.rate <= 1e-6:
            return False
        self.rate /= 5.0
        return True


@dataclass
class Adam:
    """Adam (Kingma and Ba, 2014, algorithm 1, in the form of the end of its section 2).

    A constant gradient g moves each parameter by -s g, s = rate / (sqrt(v) + epsilon), once the moments have settled:
    the s of the proximal step, and the fixed points are those of loss and pull together.
    """

    initial_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    t: int = 0
    means: Parameters = field(default_factory=list)
    squares: Parameters = field(default_factory=list)

    def step(self, parameters: Parameters, gradients: Parameters, pull: Pull | None, n: float) -> None:
        """Change the parameters in place, by their gradients without the pull and then by the pull / n."""
        if len(self.means) != len(parameters):
            self.means = [np.zeros_like(parameter) for parameter in parameters]
            self.squares = [np.zeros_like(parameter) for parameter in parameters]
        self.t += 1
        rate = self.initial_rate * math.sqrt(1 - self.beta_2**self.t) / (1 - self.beta_1**self.t)
        arrays = zip(parameters, gradients, self.means, self.squares, strict=True)
        for index, (parameter, gradient, mean, square) in enumerate(arrays):
            scale = self._descend(parameter, gradient, mean, square, rate)
            if pull is not None:
                pull.shrink(index, parameter, rate / scale, n)

    def _descend(self, parameter: Floats, gradient: Floats, mean: Floats, square: Floats, rate: float) -> Floats:
        mean *= self.beta_1
        mean += (1 - self.beta_1) * gradient
        square *= self.beta_2
        square += (1 - self.beta_2) * gradient**2
        scale: Floats = np.sqrt(square)
        scale += self.epsilon
        parameter -= rate * mean / scale
        return scale

    def end_epoch(self, n_seen: int) -> None:
        """Do nothing: Adam has no schedule."""

    def slow_down(self) -> bool:
        """Give up: Adam has no schedule."""
        return False
