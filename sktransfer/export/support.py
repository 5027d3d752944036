"""Which estimators are exported without a look at data, and which not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sktransfer.export.inverses import InverseTarget
from sktransfer.export.plain import Affine
from sktransfer.extractor import PretrainedFeatureExtractor

# Estimators of scikit-learn whose exported form the test suite compares with them.
TESTED = frozenset(
    [
        "Pipeline", "ColumnTransformer", "FeatureUnion", "FunctionTransformer",
        "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "Normalizer", "PCA", "TruncatedSVD",
        "VarianceThreshold", "SelectKBest", "SelectPercentile", "SelectFromModel", "SimpleImputer", "OneHotEncoder",
        "OrdinalEncoder", "LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis",
        "LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "SVC", "NuSVC", "MLPClassifier",
        "KNeighborsClassifier", "DecisionTreeClassifier", "RandomForestClassifier", "ExtraTreesClassifier",
        "GradientBoostingClassifier", "HistGradientBoostingClassifier", "CalibratedClassifierCV", "VotingClassifier",
        "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "BayesianRidge",
        "LinearSVR", "SVR", "NuSVR", "MLPRegressor", "KNeighborsRegressor", "DecisionTreeRegressor",
        "RandomForestRegressor", "ExtraTreesRegressor", "GradientBoostingRegressor", "HistGradientBoostingRegressor",
    ]
)  # fmt: skip
_OURS = (PretrainedFeatureExtractor, Affine, InverseTarget)


def _has_rare(encoder: Any) -> bool:
    return encoder.max_categories is not None or encoder.min_frequency is not None


def _has_several_labels(classifier: Any) -> bool:
    kind = getattr(getattr(classifier, "_label_binarizer", None), "y_type_", "")
    return isinstance(getattr(classifier, "classes_", None), list) or kind.startswith("multilabel")


_SVC_CONDITION = 'decision_function_shape="ovr", break_ties=False and probability=False'


def _scores_each_class(machine: Any) -> bool:
    ties = len(machine.classes_) == 2 or (machine.decision_function_shape == "ovr" and not machine.break_ties)
    return ties and not hasattr(machine, "predict_proba")


_CONDITIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "KNeighborsClassifier": (lambda e: e.weights == "uniform", 'weights="uniform"'),
    "KNeighborsRegressor": (lambda e: e.weights == "uniform", 'weights="uniform"'),
    "GradientBoostingClassifier": (lambda e: e.init is None or e.init == "zero", "init=None"),
    "GradientBoostingRegressor": (lambda e: e.init is None or e.init == "zero", "init=None"),
    "SVC": (_scores_each_class, _SVC_CONDITION),
    "NuSVC": (_scores_each_class, _SVC_CONDITION),
    "FunctionTransformer": (lambda e: e.func is None, "func=None"),
    "SGDClassifier": (lambda e: e.loss != "modified_huber", 'another loss than "modified_huber"'),
    "OneHotEncoder": (lambda e: not _has_rare(e), "max_categories=None and min_frequency=None"),
    "OrdinalEncoder": (lambda e: not _has_rare(e), "max_categories=None and min_frequency=None"),
    "SimpleImputer": (lambda e: not e.add_indicator, "add_indicator=False"),
}
# What skl2onnx would convert to something else, whatever the data.
_REFUSED = {
    "TunedThresholdClassifierCV": "its threshold is lost: export its estimator_, and apply best_threshold_ yourself",
    "FixedThresholdClassifier": "its threshold is lost: export its estimator_, and apply the threshold yourself",
    "MultiOutputClassifier": "it has several labels a row: export one estimator for each",
    "ClassifierChain": "it has several labels a row: export one estimator for each",
}


def refuse_unsupported(parts: Iterable[Any], *, checked: bool) -> None:
    """Refuse what cannot be exported, and without a check what has not been compared with scikit-learn.

    Raises
    ------
    ValueError
        Names the estimator and the way out.
    """
    for part in parts:
        if isinstance(part, PretrainedFeatureExtractor) and part.views == "five_crop":
            raise ValueError(
                'A PretrainedFeatureExtractor can be exported only with views="center" or "flip", which are made from '
                "the centre crop. Got views='five_crop' instead; set another one and fit again."
            )
        if isinstance(part, (str, *_OURS)):
            continue
        name = type(part).__name__
        if name in _REFUSED:
            raise ValueError(f"{name} cannot be exported: {_REFUSED[name]}.")
        holds, condition = _CONDITIONS.get(name, (lambda _: True, ""))
        if not holds(part):
            raise ValueError(f"{name} can be exported only with {condition}. Got {part!r} instead.")
        if _has_several_labels(part):
            raise ValueError(f"{name} must have one label a row to be exported. Got several instead.")
        known = name in TESTED and type(part).__module__.startswith("sklearn.")
        if not known and not checked:
            raise ValueError(
                f"{name} has not been compared with its exported form by sktransfer's tests. Pass check=X with rows "
                "like those that it will see: the file is kept only if it agrees on all of them."
            )
