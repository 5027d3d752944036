"""The training of a network: epochs of a stochastic solver, or L-BFGS-B, until nothing improves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches, shuffle

from sktransfer.transfer.callbacks import find_stacklevel
from sktransfer.transfer.networks import Floats, Objective, Parameters, Pull
from sktransfer.transfer.optimizers import SGD, Adam
from sktransfer.transfer.perceptron_settings import Settings

STOPPED = 99  # scipy's status of a minimisation that its callback has stopped


@dataclass(frozen=True, slots=True)
class Rows:
    """What a network is trained on."""

    X: Any  # array or sparse matrix (n, n_features)
    y: Floats  # (n, n_outputs)
    sample_weight: Floats | None  # (n,)

    def take(self, index: slice | npt.NDArray[np.intp]) -> Rows:
        """Return some of the rows."""
        weight = None if self.sample_weight is None else self.sample_weight[index]
        return Rows(self.X[index], self.y[index], weight)

    def weigh(self) -> float:
        """Return n, the sum of the sample weights."""
        return float(len(self.y) if self.sample_weight is None else self.sample_weight.sum())


@dataclass
class Progress:
    """What a training has come to, over all calls that continued it."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # on the validation set of early stopping
    best_loss: float = np.inf
    best_score: float = -np.inf
    stalled: int = 0  # epochs without improvement
    loss: float = np.nan
    n_iter: int = 0  # of the last call
    n_seen: int = 0

    def add_loss(self, loss: float, tol: float) -> None:
        """Compare the loss of an epoch with the best before it."""
        self.losses.append(loss)
        self.stalled = self.stalled + 1 if loss > self.best_loss - tol else 0
        self.best_loss = min(self.best_loss, loss)

    def add_score(self, loss: float, score: float, tol: float) -> bool:
        """Compare the score after an epoch with the best before it; True if it is the best now."""
        self.losses.append(loss)
        self.scores.append(score)
        self.stalled = self.stalled + 1 if score < self.best_score + tol else 0
        if score > self.best_score:
            self.best_score = score
            return True
        return False

    def add_iteration(self, loss: float) -> None:
        """Note the loss of an iteration of L-BFGS-B, which judges the improvement itself."""
        self.losses.append(loss)
        self.loss, self.best_loss = loss, min(self.best_loss, loss)
        self.n_iter += 1


class Watch(Protocol):
    """Who looks on while a network is trained."""

    def begin(self) -> None:
        """Note that an epoch begins, unless one is running."""

    def end(self, parameters: Parameters, progress: Progress) -> bool:
        """Note that the epoch has ended; True stops the training."""

    def say(self, message: str) -> None:
        """Pass a message on, if messages are wanted."""


@dataclass(frozen=True, slots=True)
class Stochastic:
    """Training by batches; `parameters` are changed in place."""

    parameters: Parameters
    objective: Objective
    rows: Rows
    settings: Settings
    batch_size: int
    optimizer: SGD | Adam
    progress: Progress
    random: np.random.RandomState
    watch: Watch
    score: Callable[[Parameters], float] | None = None  # on the validation set of early stopping
    incremental: bool = False  # one epoch alone, however far it gets

    def run(self) -> Parameters:
        """Train until nothing improves; return the last parameters, or with a validation set the best."""
        max_iter = 1 if self.incremental else self.settings.max_iter
        self.progress.n_iter = 0
        order = np.arange(len(self.rows.y))
        best = self.parameters if self.score is None else [array.copy() for array in self.parameters]
        try:
            while self.progress.n_iter < max_iter:
                self.watch.begin()
                if self.settings.shuffle:
                    order = shuffle(order, random_state=self.random)
                if self._end_epoch(self._pass(order)):
                    best = [array.copy() for array in self.parameters]
                stop = self.watch.end(self.parameters, self.progress)
                if stop or (self.progress.stalled > self.settings.n_iter_no_change and not self._slow_down()):
                    break
            else:
                if not self.incremental:
                    _warn_of_limit(f"{max_iter} epochs")
        except KeyboardInterrupt:
            message = "The training was interrupted: the weights are those of that moment."
            warnings.warn(message, stacklevel=find_stacklevel())
        return best

    def _pass(self, order: npt.NDArray[np.intp]) -> float:
        """Go through all batches once; return the mean of their objectives, over rows."""
        total, n_rows = 0.0, 0
        for part in gen_batches(len(order), self.batch_size):
            batch = self.rows.take(order[part] if self.settings.shuffle else part)
            n = batch.weigh()
            if n == 0:  # all of its rows have weight 0: nothing to learn
                continue
            loss, gradients = self.objective.evaluate(self.parameters, batch.X, batch.y, batch.sample_weight)
            total, n_rows = total + loss * len(batch.y), n_rows + len(batch.y)
            self.optimizer.step(self.parameters, gradients, self.objective.pull, n)
        return total / n_rows

    def _end_epoch(self, loss: float) -> bool:
        """Note a pass; True if the score on the validation set is the best so far."""
        progress, tol = self.progress, self.settings.tol
        progress.loss = loss
        progress.n_iter += 1
        progress.n_seen += len(self.rows.y)
        self.watch.say(f"Iteration {progress.n_iter}, loss = {loss:.8f}")
        best = False
        if self.score is None:
            progress.add_loss(loss, tol)
        else:
            best = progress.add_score(loss, self.score(self.parameters), tol)
            self.watch.say(f"Validation score: {progress.scores[-1]:f}")
        self.optimizer.end_epoch(progress.n_seen)
        return best

    def _slow_down(self) -> bool:
        what = "Training loss" if self.score is None else "Validation score"
        limits = f"tol={self.settings.tol:f} for {self.settings.n_iter_no_change} consecutive epochs"
        slower = self.optimizer.slow_down()
        self.watch.say(f"{what} did not improve more than {limits}. {'Slowing down' if slower else 'Stopping'}.")
        if slower:
            self.progress.stalled = 0
        return slower


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables z that L-BFGS-B sees, of parameters p = p0 + z / sqrt(1 + w/n).

    That takes the pull out of the condition number, so that any weight converges. Without a pull, z is p.
    """

    shapes: list[tuple[int, ...]]
    origin: Floats | None = None
    units: Floats | float = 1.0

    @classmethod
    def under(cls, pull: Pull | None, parameters: Parameters, n: float) -> Variables:
        """Choose the variables for parameters that are pulled."""
        shapes = [array.shape for array in parameters]
        if pull is None:
            return cls(shapes)
        units = [np.broadcast_to(1 / np.sqrt(1 + w / n), shape) for w, shape in zip(pull.weights, shapes, strict=True)]
        return cls(shapes, _pack(pull.anchors), _pack(units))

    def read(self, parameters: Parameters) -> Floats:
        """Return z for parameters."""
        flat = _pack(parameters)
        return flat if self.origin is None else (flat - self.origin) / self.units

    def express(self, z: Floats) -> Parameters:
        """Return the parameters for z."""
        flat = z if self.origin is None else self.origin + self.units * z
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes, strict=True)]

    def slope(self, gradients: Parameters) -> Floats:
        """Return the gradient with respect to z."""
        return _pack(gradients) * self.units


def train_with_lbfgs(
    parameters: Parameters, objective: Objective, rows: Rows, settings: Settings, progress: Progress, watch: Watch
) -> Parameters:
    """Minimise the objective by L-BFGS-B; return the parameters found."""
    pull, n, last = objective.pull, rows.weigh(), np.nan
    variables = Variables.under(pull, parameters, n)

    def evaluate(z: Floats) -> tuple[float, Floats]:
        nonlocal last
        watch.begin()
        point = variables.express(z)
        last, gradients = objective.evaluate(point, rows.X, rows.y, rows.sample_weight)
        if pull is not None:
            pulls = pull.gradients(point)
            gradients = [gradient + force / n for gradient, force in zip(gradients, pulls, strict=True)]
        return last, variables.slope(gradients)

    def end_iteration(z: Floats) -> None:
        progress.add_iteration(last)
        watch.say(f"Iteration {progress.n_iter}, loss = {last:.8f}")
        if watch.end(variables.express(z), progress):
            raise StopIteration

    progress.n_iter = 0
    options = {"maxfun": settings.max_fun, "maxiter": settings.max_iter, "gtol": settings.tol}
    start = variables.read(parameters)
    result = minimize(evaluate, start, method="L-BFGS-B", jac=True, options=options, callback=end_iteration)
    progress.n_iter, progress.loss = min(int(result.nit), settings.max_iter), float(result.fun)
    progress.best_loss = min(progress.best_loss, progress.loss)  # also where it started at the minimum
    if result.status not in {0, STOPPED}:
        _warn_of_limit(f"{progress.n_iter} iterations of L-BFGS-B ({result.message.strip()})")
    return [array.astype(parameters[0].dtype) for array in variables.express(result.x)]


def _pack(arrays: Parameters) -> Floats:
    return np.concatenate([array.ravel() for array in arrays])


def _warn_of_limit(limit: str) -> None:
    warnings.warn(
        f"The training ended before it converged, after {limit}. Raise max_iter, or scale the features "
        "(scaler=StandardScaler()).",
        ConvergenceWarning,
        stacklevel=find_stacklevel(),
    )
