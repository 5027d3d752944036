"""What the perceptrons for classification and regression share: their fit, from a source or from nothing."""

from __future__ import annotations

import math
import warnings

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sktransfer.transfer.callbacks import CallbackSupportMixin, EpochTasks, find_stacklevel
from sktransfer.transfer.coordinates import Coordinates, check_sample_weight, choose_coordinates
from sktransfer.transfer.held import Held
from sktransfer.transfer.networks import Objective, compute_outputs, draw_parameters
from sktransfer.transfer.optimizers import SGD, Adam
from sktransfer.transfer.perceptron_layers import Entrance, Layers
from sktransfer.transfer.perceptron_settings import STOCHASTIC_SOLVERS, read_settings, resolve
from sktransfer.transfer.perceptron_sources import count_frozen, find_network, inherit
from sktransfer.transfer.training import Progress, Rows, Stochastic, train_with_lbfgs


def has_stochastic_solver(estimator):
    """Tell whether an estimator can be fitted by parts, for ``available_if``."""
    solver = resolve(estimator, "solver")
    if solver not in STOCHASTIC_SOLVERS:
        raise AttributeError(f'partial_fit needs a solver that takes batches, "adam" or "sgd". Got {solver!r} instead.')
    return True


class EpochWatch:
    """Looks on while an estimator is trained: prints if it is verbose, and tells its callbacks."""

    def __init__(self, estimator, layers, tasks):
        self._estimator, self._layers, self._tasks = estimator, layers, tasks

    def begin(self):
        """Begin an epoch, unless one is running."""
        if self._tasks is not None:
            self._tasks.begin()

    def end(self, parameters, progress):
        """End the epoch; True if a callback asks to stop."""
        if self._tasks is None:
            return False
        return self._tasks.end(lambda: self._attributes(parameters, progress))

    def say(self, message):
        """Print a message if the estimator is verbose."""
        if self._estimator.verbose:
            print(message)  # noqa: T201

    def _attributes(self, parameters, progress):
        coefs, intercepts = self._layers.express([array.copy() for array in parameters])
        return {"coefs_": coefs, "intercepts_": intercepts, "n_iter_": progress.n_iter, "loss_": progress.loss}


class MultilayerPerceptron(CallbackSupportMixin, BaseEstimator):
    """Network that starts from a source; its subclasses say what its outputs stand for."""

    source = Held()

    def _fit(self, X, y, sample_weight, *, incremental=False, classes=None):
        self._check_source()  # before its parameters are read
        settings = read_settings(self)
        if incremental and settings.early_stopping:
            raise ValueError("early_stopping must be False for partial_fit, which sees a part of the rows. Got True.")
        fresh = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y, targets, outputs = self._read(X, y, settings, fresh=fresh, incremental=incremental, classes=classes)
        if sample_weight is not None:
            sample_weight = check_sample_weight(sample_weight, X.shape[0])
        weights = self._weigh(y, sample_weight, incremental=incremental)
        random = check_random_state(self.random_state)
        frozen = count_frozen(self, settings)
        entrance, scaled = self._scale(X, raw=frozen > 0, keep=incremental and not fresh)
        parameters, pull = self._start(X, outputs, settings, random, fresh, entrance)
        tasks = None if incremental else self._begin_tasks(X, y, weights, settings)
        self._train(Layers(parameters, entrance, frozen), pull, Rows(scaled, targets, weights), settings, random, tasks)
        return self

    def _check_source(self):
        if self.source is not None and find_network(self.source)[0] is self:
            raise ValueError(
                "source must be another estimator. Got the estimator itself: pass copy.deepcopy(estimator), or set "
                "warm_start=True to go on from its own weights."
            )

    def _scale(self, X, *, raw, keep):
        """Return the coordinates of the training, and X in them; raw ones for frozen layers."""
        names = getattr(self, "feature_names_in_", None)
        if keep:
            scaler = None if self.scaler_ is None else FrozenEstimator(self.scaler_)
            coordinates, scaled = choose_coordinates(scaler, X, names)
        else:
            coordinates, scaled = choose_coordinates(self.scaler, X, names)
            self.scaler_, self._optimizer = coordinates.scaler, None  # what that has gathered holds in the old ones
        if raw:
            coordinates, scaled = Coordinates(), X
        return Entrance(coordinates, X.shape[1], scaled.shape[1]), scaled.astype(X.dtype, copy=False)

    def _start(self, X, outputs, settings, random, fresh, entrance):
        """Return the first weights, or where the training goes on the present ones, and the pull to the source."""
        inheritance = inherit(self, X, outputs, entrance)
        sizes = [X.shape[1], *settings.hidden_layer_sizes, outputs.size]
        if fresh:
            if inheritance is None:
                parameters = draw_parameters(random, [entrance.n_scaled, *sizes[1:]], settings.activation, X.dtype)
            else:
                parameters = inheritance.start(random, settings.activation, X.dtype)
            entrance.leave(parameters, X.dtype)  # refuses a scaler that is not affine before the training
            self._progress = Progress()
        else:
            own = [self.coefs_[0].shape[0], *(weights.shape[1] for weights in self.coefs_)]
            if own != sizes:
                raise ValueError(f"warm_start and partial_fit go on with layers of {own} units. Got {sizes} instead.")
            parameters = entrance.enter(self.coefs_ + self.intercepts_, self.coefs_[0].dtype)
        self.activation_, self.out_activation_ = settings.activation, outputs.activation
        self.n_layers_, self.n_outputs_ = len(sizes), outputs.size
        if inheritance is None or self.transfer == "features":
            return parameters, None
        return parameters, inheritance.pull(self.source_weight, X.dtype)

    def _train(self, layers, pull, rows, settings, random, tasks):
        """Train the layers that are not frozen; by parts (and without callbacks) if there are no tasks."""
        rows = Rows(layers.compute_features(rows.X, settings.activation), rows.y, rows.sample_weight)
        objective = Objective(settings.activation, self.out_activation_, settings.alpha, pull)
        watch = EpochWatch(self, layers, tasks)
        if settings.solver == "lbfgs":
            parameters = train_with_lbfgs(layers.trained, objective, rows, settings, self._progress, watch)
        else:
            training = self._plan(layers.trained, objective, rows, settings, random, watch, incremental=tasks is None)
            parameters = training.run()
        if not all(np.isfinite(array).all() for array in parameters):
            raise ValueError(
                "The weights must stay finite, and did not. Scale the features (scaler=StandardScaler()), or "
                "lower learning_rate_init."
            )
        self.coefs_, self.intercepts_ = layers.express(parameters)
        self._report(early_stopping=settings.early_stopping and settings.solver != "lbfgs")
        if tasks is not None:
            tasks.close()

    def _begin_tasks(self, X, y, sample_weight, settings):
        spare = settings.solver == "lbfgs"  # it looks ahead of its last iteration
        return EpochTasks(self, X, y, sample_weight, settings.max_iter + spare)

    def _plan(self, parameters, objective, rows, settings, random, watch, *, incremental):
        """Set up the training of a stochastic solver."""
        kind = SGD if settings.solver == "sgd" else Adam
        if not incremental or not isinstance(self._optimizer, kind):
            if kind is SGD:
                self._optimizer = SGD(
                    settings.learning_rate_init,
                    settings.learning_rate,
                    settings.momentum,
                    settings.nesterovs_momentum,
                    settings.power_t,
                )
            else:
                self._optimizer = Adam(settings.learning_rate_init, settings.beta_1, settings.beta_2, settings.epsilon)
        score = None
        if settings.early_stopping:
            rows, held_out = self._split(rows, settings, random)
            score = self._scorer(objective, held_out)
        size = self._batch_size(settings, len(rows.y))
        return Stochastic(
            parameters,
            objective,
            rows,
            settings,
            size,
            self._optimizer,
            self._progress,
            random,
            watch,
            score,
            incremental,
        )

    def _split(self, rows, settings, random):
        """Set rows aside for early stopping."""
        fraction, n_rows = settings.validation_fraction, len(rows.y)
        n_held_out = math.ceil(fraction * n_rows)
        if not 2 <= n_held_out < n_rows:
            raise ValueError(
                f"The validation set of early stopping must have 2 rows or more, and leave some. Got {n_held_out} of "
                f"{n_rows} instead: change validation_fraction, or set early_stopping=False."
            )
        # a single column of classes alone, as in scikit-learn
        stratify = self._decode(rows.y) if is_classifier(self) and rows.y.shape[1] == 1 else None
        split = train_test_split(np.arange(n_rows), random_state=random, test_size=fraction, stratify=stratify)
        train, held_out = (rows.take(index) for index in split)
        if not (train.weigh() and held_out.weigh()):
            raise ValueError(
                "sample_weight must be above zero for rows of the validation set of early stopping, and for others. "
                "Got zero for all of the former or the latter instead: set early_stopping=False."
            )
        return train, held_out

    def _scorer(self, objective, held_out):
        """Return the score on the validation set as a function of the parameters; NaN where they diverge."""
        activations = objective.activation, objective.out_activation
        truth = self._decode(held_out.y)

        def score(parameters):
            outputs = compute_outputs(held_out.X, parameters, *activations)
            if not np.isfinite(outputs).all():
                return np.nan
            return float(self._rate(truth, self._decode(outputs), held_out.sample_weight))

        return score

    def _batch_size(self, settings, n_rows):
        if settings.batch_size == "auto":
            return min(200, n_rows)
        if self.batch_size is not None and settings.batch_size > n_rows:
            warnings.warn(
                f"batch_size must be {n_rows} at most, the number of rows. Got {self.batch_size}; {n_rows} is used.",
                stacklevel=find_stacklevel(),
            )
        return min(settings.batch_size, n_rows)

    def _report(self, *, early_stopping):
        """Set the attributes that say how the training went."""
        progress = self._progress
        self.n_iter_, self.t_ = progress.n_iter, progress.n_seen
        self.loss_, self.loss_curve_ = progress.loss, progress.losses
        self.best_loss_ = None if early_stopping else progress.best_loss
        self.validation_scores_ = progress.scores if early_stopping else None
        self.best_validation_score_ = progress.best_score if early_stopping else None

    def _compute(self, X):
        """Return the outputs of the fitted network, (n, n_outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return compute_outputs(X, self.coefs_ + self.intercepts_, self.activation_, self.out_activation_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
