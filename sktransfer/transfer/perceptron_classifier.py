"""TransferMLPClassifier: a multilayer perceptron for classes that starts from a fitted one."""

from __future__ import annotations

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from sktransfer.transfer.callbacks import with_callbacks
from sktransfer.transfer.coordinates import few_labels
from sktransfer.transfer.multilayer import MultilayerPerceptron, has_stochastic_solver
from sktransfer.transfer.perceptron_settings import is_weight
from sktransfer.transfer.perceptron_sources import Outputs, unused_classes


class TransferMLPClassifier(ClassifierMixin, MultilayerPerceptron):
    r"""Multilayer perceptron that starts from a fitted one, and is pulled to it.

    ``MLPClassifier.fit`` discards the weights of an earlier fit, those of a network that was pickled and loaded too,
    and ``warm_start`` and ``partial_fit`` only accept the same classes. This classifier begins where its source has
    arrived, with other classes if need be, and says by one number how far it may move. Without a source it is
    scikit-learn's MLPClassifier: the same `random_state` gives the same weights.

    Parameters
    ----------
    source : estimator or None, default=None
        A fitted MLPClassifier, MLPRegressor, TransferMLPClassifier or TransferMLPRegressor, or a pipeline or search
        that ends in one. Affine steps in front of it (scalers, projections, selections) are folded into its first
        layer, so X must be the features in front of them. Where these differ much in scale, training is slow: give
        `scaler`; or put the source's own steps in front of this estimator, frozen, and pass the rest,
        ``make_pipeline(FrozenEstimator(pipeline[:-1]), TransferMLPClassifier(pipeline[-1]))``, as steps that are not
        affine must be. The source is never changed, and ``clone`` keeps it by reference, in a ``FrozenEstimator``.
        A regressor gives its hidden layers. With None there is no transfer.
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
    hidden_layer_sizes : int >= 1, sequence of them or None, default=None
        Units of each hidden layer; () is none. This and all further parameters up to `max_fun` are, if None, those of
        the source, or without one scikit-learn's defaults, which are named here. (100,). One that differs from the
        source's is refused, unless ``transfer="structure"``.
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
        Set `validation_fraction` of the rows aside, stop "sgd" and "adam" when the accuracy there no longer improves,
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
    class_weight : dict, "balanced" or None, default=None
        Weight of each label, 1 where a dict names none; "balanced" is inverse to the labels' weighted frequencies. It
        multiplies the sample weights. Not for multilabel y.
    random_state : int, RandomState or None, default=None
        Of new weights, the validation set and the order of the rows.
    verbose : bool or int, default=False
        Print the loss of each epoch.
    warm_start : bool, default=False
        Let `fit` go on from its own weights, as long as the classes are the same; the pull is to the source still.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels; of multilabel y the numbers of its columns.
    unused_source_classes_ : ndarray
        Labels that only the source knows.
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
        Accuracy on the validation set after each epoch; None without early stopping.
    best_validation_score_ : float or None
        The highest of them.
    n_iter_ : int
        Epochs or iterations of the last call.
    t_ : int
        Rows seen by "sgd" and "adam", counted once an epoch.
    n_layers_ : int
        Layers of units, with features and outputs.
    n_outputs_ : int
        Units of the output layer: 1 of two classes.
    activation_ : str
        Of the hidden layers.
    out_activation_ : str
        "softmax"; "logistic" of two classes and multilabel y.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Their names, where X was a frame with string names.

    See Also
    --------
    TransferMLPRegressor : The same for numbers.

    Notes
    -----
    With weights :math:`W_l` and biases :math:`b_l` of layer :math:`l`, and :math:`n` the sum of the sample weights,

    .. math:: \frac{1}{n} \sum_i s_i \, \mathrm{loss}_i + \frac{1}{n} \Big( \frac{\alpha}{2} \sum_l \|W_l\|^2
              + \frac{1}{2} \sum_l \lambda_l \|(W_l, b_l) - (W_l^0, b_l^0)\|^2 \Big)

    is minimised, where :math:`s_i` is the sample weight, loss the log loss, :math:`\lambda_l` the `source_weight` and
    0 marks the source: the L2-SP penalty of [1]_. Of "sgd" and "adam" each step sees this of its batch, as in
    scikit-learn; they take the pull as a proximal step [2]_, with the step size of each weight, so that no
    `source_weight` is too large. Output units are matched by label. Those of new labels are drawn anew and not pulled.
    The one unit w of a source of two classes becomes -w/2 and w/2 where there are more classes here; where there are
    two here and more there, the unit is the difference of both columns, or new if a label is missing there. With
    "features" there is no pull, and the sums are over the output layer; what that gains and loses is measured in [3]_.

    References
    ----------
    .. [1] Li, Grandvalet and Davoine (2018), Explicit inductive bias for transfer learning with convolutional
       networks, ICML, section 3. :arxiv:`1802.01483`
    .. [2] Parikh and Boyd (2014), Proximal algorithms, Foundations and Trends in Optimization 1 (3), section 4.2.
    .. [3] Yosinski, Clune, Bengio and Lipson (2014), How transferable are features in deep neural networks?, NeurIPS.
       :arxiv:`1411.1792`

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sktransfer.transfer import TransferMLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> source = MLPClassifier((32,), learning_rate_init=0.01, batch_size=50, tol=1e-3, random_state=0)
    >>> source = source.fit(X[:800], y[:800])

    To tell the digits 0 to 4 of later writers apart, twenty photos are enough:

    >>> few = y[800:] < 5
    >>> X, y = X[800:][few], y[800:][few]
    >>> head = TransferMLPClassifier(source, random_state=0).fit(X[:20], y[:20])
    >>> head.unused_source_classes_
    array([5, 6, 7, 8, 9])
    >>> scratch = TransferMLPClassifier(source, transfer="structure", random_state=0).fit(X[:20], y[:20])
    >>> bool(head.score(X[20:], y[20:]) > scratch.score(X[20:], y[20:]) + 0.05)
    True
    """

    def __init__(
        self,
        source=None,
        *,
        transfer="parameters",
        source_weight=1.0,
        scaler=None,
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
        class_weight=None,
        random_state=None,
        verbose=False,
        warm_start=False,
    ):
        self.source = source
        self.transfer = transfer
        self.source_weight = source_weight
        self.scaler = scaler
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
        self.class_weight = class_weight
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
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Labels, or a multilabel indicator of 0 and 1.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights >= 0; None is 1.

        Returns
        -------
        self : TransferMLPClassifier

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
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train the network on some rows, for one epoch; the first call starts from the source.

        Only with the solvers "sgd" and "adam", and without early stopping. After `fit` or the first call the scaler
        stays as it is.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that will ever come. Needed in the first call.
        sample_weight : array-like of shape (n_samples,) or None, default=None

        Returns
        -------
        self : TransferMLPClassifier

        Raises
        ------
        ValueError
            As in `fit`, and if classes are missing from the first call or change.
        """
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def predict(self, X):
        """Return the most probable label of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_labels)
        """
        return self._decode(self._compute(X))

    def predict_proba(self, X):
        """Return the probabilities of the labels.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`. Rows add up to 1, but for multilabel y.
        """
        outputs = self._compute(X)
        if len(self.classes_) == 1:
            return np.ones_like(outputs)
        return np.hstack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X):
        """Return the natural logarithms of the probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    @few_labels()
    def _read(self, X, y, _settings, *, fresh, incremental, classes):
        """Return X, y, targets (n_samples, n_outputs) of bool, and what the outputs stand for."""
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, dtype=[np.float64, np.float32], reset=fresh
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        multilabel = type_of_target(y).startswith("multilabel")
        if fresh and incremental and classes is None:
            raise ValueError("classes must be all labels that will come, in the first call of partial_fit. Got None.")
        if fresh:
            binarizer = LabelBinarizer().fit(y if classes is None or multilabel else np.asarray(classes))
            self._label_binarizer, self.classes_ = binarizer, binarizer.classes_
        if classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"classes must be {self.classes_}, those of the first call, or of multilabel y the numbers of its "
                f"columns. Got {classes} instead."
            )
        self._check_labels(y, multilabel, same=not fresh and not incremental)
        self.unused_source_classes_ = unused_classes(self)
        targets = self._label_binarizer.transform(y).astype(bool)
        activation = "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"
        return X, y, targets, Outputs(activation, targets.shape[1], self.classes_)

    def _check_labels(self, y, multilabel, *, same):
        if multilabel != self._label_binarizer.y_type_.startswith("multilabel"):
            kinds = "one label for each row", "a multilabel indicator"
            raise ValueError(
                f"y must be {kinds[not multilabel]}, as it was in the first call. Got {kinds[multilabel]} instead."
            )
        labels = unique_labels(y)
        new = np.setdiff1d(labels, self.classes_)
        if len(new):
            raise ValueError(f"y must hold labels of classes_ alone, {self.classes_}. Got {new} as well.")
        if same and len(labels) < len(self.classes_):
            raise ValueError(
                f"y must hold the classes of the fit that warm_start goes on with, {self.classes_}. "
                f"Got {labels} instead."
            )

    def _weigh(self, y, sample_weight, *, incremental):
        """Multiply the class weights into the sample weights."""
        if self.class_weight is None:
            return sample_weight
        self._check_class_weight(y, incremental=incremental)
        with np.errstate(divide="ignore"):  # of "balanced" and a class all of whose rows have weight 0
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=sample_weight)
        weights = np.where(np.isinf(weights), 0, weights)[np.searchsorted(self.classes_, y)]
        if sample_weight is not None:
            weights *= sample_weight
        if not weights.any():
            raise ValueError(
                f"class_weight and sample_weight must leave some row a weight above zero. Got zero for all {len(y)} "
                "instead."
            )
        return weights

    def _check_class_weight(self, y, *, incremental):
        balanced = isinstance(self.class_weight, str) and self.class_weight == "balanced"
        if not balanced and not (
            isinstance(self.class_weight, dict) and all(map(is_weight, self.class_weight.values()))
        ):
            raise ValueError(
                f'class_weight must be None, "balanced" or a dict of finite numbers >= 0. Got {self.class_weight!r} '
                "instead."
            )
        if y.ndim == 2:
            raise ValueError(f"class_weight must be None for multilabel y. Got {self.class_weight!r} instead.")
        if balanced and incremental:
            raise ValueError(
                'class_weight must be None or a dict for partial_fit, which does not see all rows. Got "balanced" '
                "instead: compute_class_weight of sklearn.utils.class_weight gives its weights."
            )

    def _decode(self, outputs):
        return self._label_binarizer.inverse_transform(outputs)

    def _rate(self, truth, predicted, sample_weight):
        return accuracy_score(truth, predicted, sample_weight=sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
