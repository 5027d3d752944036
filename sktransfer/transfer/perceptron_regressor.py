"""TransferMLPRegressor: a multilayer perceptron for numbers that starts from a fitted one."""

from __future__ import annotations

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from sktransfer.transfer.callbacks import with_callbacks
from sktransfer.transfer.multilayer import MultilayerPerceptron, has_stochastic_solver
from sktransfer.transfer.perceptron_sources import Outputs


class TransferMLPRegressor(RegressorMixin, MultilayerPerceptron):
    r"""Multilayer perceptron for numbers that starts from a fitted one, and is pulled to it.

    ``MLPRegressor.fit`` discards the weights of an earlier fit, those of a network that was pickled and loaded too.
    This regressor begins where its source has arrived, with other outputs if need be, and says by one number how far
    it may move. Without a source it is scikit-learn's MLPRegressor: the same `random_state` gives the same weights.

    Parameters
    ----------
    source : estimator or None, default=None
        A fitted MLPClassifier, MLPRegressor, TransferMLPClassifier or TransferMLPRegressor, or a pipeline or search
        that ends in one. Affine steps in front of it (scalers, projections, selections) are folded into its first
        layer, so X must be the features in front of them. Where these differ much in scale, training is slow: give
        `scaler`; or put the source's own steps in front of this estimator, frozen, and pass the rest,
        ``make_pipeline(FrozenEstimator(pipeline[:-1]), TransferMLPRegressor(pipeline[-1]))``, as steps that are not
        affine must be. The source is never changed, and ``clone`` keeps it by reference, in a ``FrozenEstimator``.
        A classifier, or a regressor with another loss or number of outputs, gives its hidden
        layers. With None there is no transfer.
    transfer : {"parameters", "structure", "features"}, default="parameters"
        "parameters": start from the source's weights and be pulled to them. "structure": take over its layers' sizes
        and its parameters, draw new weights, no pull. "features": its hidden layers stay as they are, and a new output
        layer is trained on what they give, which is computed once.
    source_weight : float >= 0 or list of floats >= 0, default=1.0
        How strongly the weights are pulled to the source's, in the units of `alpha`; a list has one number for each
        layer of weights, from the features to the outputs. 0 only starts there; 1e12 keeps a layer as it is. Used by
        ``transfer="parameters"``.
    scaler : transformer or None, default=None
        What X is scaled with before the training, such as ``StandardScaler()``: the objective (see Notes) then holds
        for weights of scaled features, to which the source's are converted. ``coefs_[0]`` and ``intercepts_[0]`` are
        converted back, so that they take X as it is. A scaler in front of this estimator in a Pipeline would instead
        meet weights of other coordinates. It must be affine and have ``inverse_transform``. `fit` fits it to X,
        `partial_fit` to the rows of its first call, unless it is frozen, as in ``FrozenEstimator(pipeline[:-1])``.
        Hidden layers that ``transfer="features"`` keeps take X as it is.
    loss : {"squared_error", "poisson"} or None, default=None
        Half the squared error; or half the Poisson deviance, with exp at the output and y >= 0. This and all further
        parameters up to `max_fun` are, if None, those of the source, or without one scikit-learn's defaults, which are
        named here. "squared_error".
    hidden_layer_sizes : int >= 1, sequence of them or None, default=None
        Units of each hidden layer; () is none. (100,). One that differs from the source's is refused, unless
        ``transfer="structure"``.
    activation : {"identity", "logistic", "tanh", "relu"} or None, default=None
        Of the hidden layers. "relu". One that differs from the source's is refused, as above.
    solver : {"lbfgs", "sgd", "adam"} or None, default=None
        L-BFGS-B on all rows, or descent by batches. "adam".
    alpha : float >= 0 or None, default=None
        Strength of the penalty on squared weights. 0.0001.
    batch_size : int >= 1, "auto" or None, default=None
        Rows a step of "sgd" and "adam". "auto", 200 or as many as there are.
    learning_rate : {"constant", "invscaling", "adaptive"} or None, default=None
        Schedule of "sgd": `learning_rate_init`; that divided by t ** `power_t` after t rows; or a fifth whenever
        nothing improves. "constant".
    learning_rate_init : float > 0 or None, default=None
        Learning rate of "sgd" and "adam". 0.001.
    power_t : float >= 0 or None, default=None
        Exponent of "invscaling". 0.5.
    max_iter : int >= 1 or None, default=None
        Epochs of "sgd" and "adam" or iterations of "lbfgs", at most. 200.
    shuffle : bool or None, default=None
        Shuffle the rows before each epoch. True.
    tol : float >= 0 or None, default=None
        Less than this is no improvement of the loss or score; for "lbfgs", the largest gradient at the end. 0.0001.
    momentum : float from 0 to 1 or None, default=None
        Of "sgd". 0.9.
    nesterovs_momentum : bool or None, default=None
        Of "sgd". True.
    early_stopping : bool or None, default=None
        Set `validation_fraction` of the rows aside, stop "sgd" and "adam" when the R² there no longer improves,
        and keep the best weights. False.
    validation_fraction : float >= 0 and < 1 or None, default=None
        Share of the rows set aside. 0.1.
    beta_1, beta_2 : float >= 0 and < 1 or None, default=None
        Decay of the moments of "adam". 0.9 and 0.999.
    epsilon : float > 0 or None, default=None
        Of "adam". 1e-8.
    n_iter_no_change : int >= 1, infinity or None, default=None
        Epochs without improvement that end the training. 10.
    max_fun : int >= 1 or None, default=None
        Evaluations by "lbfgs", at most. 15000.
    random_state : int, RandomState or None, default=None
        Of new weights, the validation set and the order of the rows.
    verbose : bool or int, default=False
        Print the loss of each epoch.
    warm_start : bool, default=False
        Let `fit` go on from its own weights, as long as the outputs are as many; the pull is to the source still.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (n_in, n_out)
        Weights of each layer, frozen ones too, of X's precision.
    intercepts_ : list of ndarray of shape (n_out,)
        Biases of each layer.
    scaler_ : transformer or None
        The fitted `scaler`, which `partial_fit` goes on with.
    loss_ : float
        Objective (see Notes) at the end: of "sgd" and "adam" its mean over the batches of the last epoch.
    loss_curve_ : list of float
        Objective after each epoch or iteration, over all calls that continued the training.
    best_loss_ : float or None
        The lowest of them; None with early stopping.
    validation_scores_ : list of float or None
        R² on the validation set after each epoch; None without early stopping.
    best_validation_score_ : float or None
        The highest of them.
    n_iter_ : int
        Epochs or iterations of the last call.
    t_ : int
        Rows seen by "sgd" and "adam", counted once an epoch.
    n_layers_ : int
        Layers of units, with features and outputs.
    n_outputs_ : int
        Columns of y.
    activation_ : str
        Of the hidden layers.
    out_activation_ : str
        "identity", or "exp" of ``loss="poisson"``.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Their names, where X was a frame with string names.

    See Also
    --------
    TransferMLPClassifier : The same for classes.

    Notes
    -----
    With weights :math:`W_l` and biases :math:`b_l` of layer :math:`l`, and :math:`n` the sum of the sample weights,

    .. math:: \frac{1}{n} \sum_i s_i \, \mathrm{loss}_i + \frac{1}{n} \Big( \frac{\alpha}{2} \sum_l \|W_l\|^2
              + \frac{1}{2} \sum_l \lambda_l \|(W_l, b_l) - (W_l^0, b_l^0)\|^2 \Big)

    is minimised, where :math:`s_i` is the sample weight, loss the sum over the outputs, :math:`\lambda_l` the
    `source_weight` and 0 marks the source: the L2-SP penalty of [1]_. Of "sgd" and "adam" each step sees this of its
    batch, as in scikit-learn; they take the pull as a proximal step [2]_, with the step size of each weight, so that no
    `source_weight` is too large. With "features" there is no pull, and the sums are over the
    output layer; what that gains and loses is measured in [3]_.

    Of several outputs scikit-learn up to 1.9 states the mean of the squared errors and descends their sum
    (scikit-learn's issue 8349). Here both are the sum: steps are the same, `loss_curve_` and what `tol` means are not.

    References
    ----------
    .. [1] Li, Grandvalet and Davoine (2018), Explicit inductive bias for transfer learning with convolutional
       networks, ICML, section 3. :arxiv:`1802.01483`
    .. [2] Parikh and Boyd (2014), Proximal algorithms, Foundations and Trends in Optimization 1 (3), section 4.2.
    .. [3] Yosinski, Clune, Bengio and Lipson (2014), How transferable are features in deep neural networks?, NeurIPS.
       :arxiv:`1411.1792`

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> from sktransfer.transfer import TransferMLPRegressor
    >>> random = np.random.RandomState(0)
    >>> X = random.uniform(-2, 2, (300, 3))
    >>> y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]
    >>> source = MLPRegressor(hidden_layer_sizes=(30,), activation="tanh", solver="lbfgs", max_iter=2000,
    ...                       tol=1e-2, random_state=0).fit(X, y)

    Elsewhere the same curve is measured in other units, and only twenty times:

    >>> head = TransferMLPRegressor(source, source_weight=0.1).fit(X[:20], 2 * y[:20] + 1)
    >>> scratch = TransferMLPRegressor(source, transfer="structure", random_state=0).fit(X[:20], 2 * y[:20] + 1)
    >>> bool(head.score(X[20:], 2 * y[20:] + 1) > scratch.score(X[20:], 2 * y[20:] + 1) + 0.2)
    True
    """

    def __init__(
        self,
        source=None,
        *,
        transfer="parameters",
        source_weight=1.0,
        scaler=None,
        loss=None,
        hidden_layer_sizes=None,
        activation=None,
        solver=None,
        alpha=None,
        batch_size=None,
        learning_rate=None,
        learning_rate_init=None,
        power_t=None,
        max_iter=None,
        shuffle=None,
        tol=None,
        momentum=None,
        nesterovs_momentum=None,
        early_stopping=None,
        validation_fraction=None,
        beta_1=None,
        beta_2=None,
        epsilon=None,
        n_iter_no_change=None,
        max_fun=None,
        random_state=None,
        verbose=False,
        warm_start=False,
    ):
        self.source = source
        self.transfer = transfer
        self.source_weight = source_weight
        self.scaler = scaler
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.tol = tol
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    @with_callbacks
    def fit(self, X, y, sample_weight=None):
        """Train the network on a task, from the source on.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            float32 is trained in float32, everything else in float64.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Numbers, for ``loss="poisson"`` >= 0.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights >= 0; None is 1.

        Returns
        -------
        self : TransferMLPRegressor

        Raises
        ------
        ValueError
            If a parameter is out of its range, the source is no network, takes other features or has other layers, the
            scaler is not affine, or the weights diverge.
        TypeError
            If the scaler is no transformer with ``inverse_transform``.
        NotFittedError
            If the source is not fitted.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` ends the training.
        """
        return self._fit(X, y, sample_weight)

    @available_if(has_stochastic_solver)
    def partial_fit(self, X, y, sample_weight=None):
        """Train the network on some rows, for one epoch; the first call starts from the source.

        Only with the solvers "sgd" and "adam", and without early stopping. After `fit` or the first call the scaler
        stays as it is.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,) or None, default=None

        Returns
        -------
        self : TransferMLPRegressor

        Raises
        ------
        ValueError
            As in `fit`.
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X):
        """Return the prediction for each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._decode(self._compute(X))

    def _read(self, X, y, settings, *, fresh, **_):
        """Return X, y, targets (n_samples, n_outputs) and what the outputs stand for."""
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            multi_output=True,
            y_numeric=True,
            dtype=[np.float64, np.float32],
            reset=fresh,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if settings.loss == "poisson" and y.min() < 0:
            raise ValueError(f'y must be >= 0 for loss="poisson". Got {y.min():g} as its smallest value.')
        targets = y.reshape(len(y), -1).astype(X.dtype, copy=False)
        activation = "exp" if settings.loss == "poisson" else "identity"
        return X, y, targets, Outputs(activation, targets.shape[1], None)

    def _weigh(self, _y, sample_weight, **_):
        return sample_weight

    def _decode(self, outputs):
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def _rate(self, truth, predicted, sample_weight):
        return r2_score(truth, predicted, sample_weight=sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
