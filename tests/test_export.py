import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
from conftest import IMAGENET, Builder, encode, photo, save_backbone, small_classifier
from PIL import Image, ImageOps
from sklearn import (
    calibration,
    compose,
    decomposition,
    ensemble,
    feature_selection,
    linear_model,
    neighbors,
    neural_network,
    preprocessing,
    svm,
    tree,
)
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union

import sktransfer
from sktransfer import (
    AdaptedClassifier,
    PretrainedFeatureExtractor,
    TransferLogisticRegression,
    TransferMLPClassifier,
    TransferMLPRegressor,
    TransferRidge,
    export_onnx,
    make_image_block,
)
from sktransfer.export.support import TESTED
from sktransfer.exported import ExportedModel

N = 48
AS_IT_IS = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **IMAGENET}
scale = preprocessing.StandardScaler


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return str(save_backbone(tmp_path_factory.mktemp("export") / "small", small_classifier(), AS_IT_IS))


@pytest.fixture(scope="module")
def many():
    """Photos of 32 x 32 pixels, which are the network's own size."""
    return [photo(seed, 32, 32) for seed in range(N)]


@pytest.fixture(scope="module")
def labels(many):
    brightness = [pixels.mean() for pixels in many]
    return np.array(["dark", "grün", "light"], dtype=object)[
        np.digitize(brightness, np.quantile(brightness, [0.4, 0.7]))
    ]


def run(path, **feeds):
    """Outputs of a file by name, by onnxruntime alone."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


def agree(pipeline, X, outputs):
    """Whether outputs are the pipeline's own: labels exactly, numbers within 1e-5."""
    if "value" in outputs:
        expected = np.asarray(pipeline.predict(X))
        return np.allclose(outputs["value"], expected, rtol=1e-5, atol=1e-5)
    name, method = ("probabilities", "predict_proba") if "probabilities" in outputs else ("scores", "decision_function")
    expected = getattr(pipeline, method)(X)
    same = outputs["label"].tolist() == pipeline.predict(X).tolist()
    return same and outputs[name].shape == expected.shape and np.allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


def embed_then(network, *steps, **options):
    return make_pipeline(PretrainedFeatureExtractor(network, **options), *steps)


BOOSTING = ensemble.HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=4)
SOFT = [("a", linear_model.LogisticRegression()), ("b", tree.DecisionTreeClassifier(max_depth=2))]
CLASSIFIERS = [
    linear_model.LogisticRegression(),
    linear_model.LogisticRegressionCV(Cs=2, cv=2, l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy"),
    linear_model.Perceptron(),
    linear_model.RidgeClassifier(),
    linear_model.RidgeClassifierCV(),
    LinearDiscriminantAnalysis(),
    svm.LinearSVC(),
    svm.SVC(),
    svm.SVC(kernel="poly", coef0=1),
    svm.SVC(kernel="linear"),
    svm.SVC(kernel="sigmoid"),
    svm.NuSVC(nu=0.2),
    neural_network.MLPClassifier(hidden_layer_sizes=(5,), max_iter=20),
    neighbors.KNeighborsClassifier(),
    tree.DecisionTreeClassifier(),
    ensemble.RandomForestClassifier(11, max_depth=3),
    ensemble.ExtraTreesClassifier(10),
    ensemble.GradientBoostingClassifier(n_estimators=4),
    BOOSTING,
    calibration.CalibratedClassifierCV(svm.SVC(), cv=2),
    calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2, method="temperature"),
    calibration.CalibratedClassifierCV(neighbors.KNeighborsClassifier(3), cv=2, method="temperature"),
    calibration.CalibratedClassifierCV(ensemble.GradientBoostingClassifier(n_estimators=3), cv=2, ensemble=False),
    ensemble.VotingClassifier(SOFT, voting="soft", weights=[1, 2]),
    TransferLogisticRegression(scaler=scale()),
    TransferMLPClassifier(hidden_layer_sizes=(5,), max_iter=20),
]
REGRESSORS = [
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    linear_model.RidgeCV(),
    linear_model.Lasso(0.01),
    linear_model.LassoCV(cv=2, alphas=3),
    linear_model.ElasticNet(0.01),
    linear_model.ElasticNetCV(cv=2, alphas=3),
    linear_model.BayesianRidge(),
    svm.LinearSVR(),
    svm.SVR(),
    svm.NuSVR(),
    neural_network.MLPRegressor(hidden_layer_sizes=(5,), max_iter=20),
    neighbors.KNeighborsRegressor(),
    tree.DecisionTreeRegressor(),
    ensemble.RandomForestRegressor(8),
    ensemble.ExtraTreesRegressor(8),
    ensemble.GradientBoostingRegressor(n_estimators=4),
    ensemble.HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=4),
    ensemble.HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=4, loss="poisson"),
    TransferRidge(),
    TransferMLPRegressor(hidden_layer_sizes=(5,), max_iter=20),
]
TRANSFORMERS = [
    scale(),
    preprocessing.MinMaxScaler(),
    preprocessing.MaxAbsScaler(),
    preprocessing.RobustScaler(),
    preprocessing.Normalizer(),
    preprocessing.FunctionTransformer(),
    decomposition.PCA(3, whiten=True),
    decomposition.TruncatedSVD(3),
    feature_selection.VarianceThreshold(),
    feature_selection.SelectKBest(k=4),
    feature_selection.SelectPercentile(percentile=40),
    feature_selection.SelectFromModel(linear_model.LogisticRegression()),
    SimpleImputer(),
    make_union(scale(), decomposition.PCA(2)),
]


def name_of(estimator):
    return type(estimator).__name__


def check_classifier(network, many, y, path, *steps):
    pipeline = embed_then(network, *steps).fit(many, y)
    export_onnx(pipeline, path)
    assert agree(pipeline, many, run(path, image=np.stack(many)))


FAST = ("LogisticRegression", "MLPClassifier", "HistGradientBoostingClassifier", "TransferLogisticRegression")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", [e for e in CLASSIFIERS if name_of(e) in FAST], ids=name_of)
def test_a_file_gives_the_labels_and_probabilities_of_its_pipeline(network, many, labels, tmp_path, estimator):
    check_classifier(network, many, labels, tmp_path / "a.onnx", scale(), estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_classifier_is_exported_exactly(network, many, labels, tmp_path, estimator, n_classes):
    y = labels if n_classes == 3 else (labels == "dark").astype(int)
    check_classifier(network, many, y, tmp_path / "a.onnx", scale(), estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", REGRESSORS, ids=name_of)
def test_every_regressor_is_exported_exactly(network, many, tmp_path, estimator):
    y = np.array([pixels.mean() for pixels in many])
    check_classifier(network, many, y, tmp_path / "a.onnx", scale(), estimator)


@pytest.mark.slow
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=name_of)
def test_every_transformer_is_exported_exactly(network, many, labels, tmp_path, transformer):
    check_classifier(network, many, labels, tmp_path / "a.onnx", transformer, linear_model.LogisticRegression())


def test_what_needs_no_check_is_what_the_tests_compare():
    compared = {name_of(estimator) for estimator in (*CLASSIFIERS, *REGRESSORS, *TRANSFORMERS)}
    tables = {"Pipeline", "ColumnTransformer", "OneHotEncoder", "OrdinalEncoder"}  # below
    assert {name for name in compared if not name.startswith("Transfer")} | tables == set(TESTED)


@pytest.mark.parametrize("y", [[True, False], [3.0, 7.0], [-1, 5], ["a", "b"]], ids=str)
def test_labels_of_any_kind_come_back(network, many, tmp_path, y):
    pipeline = embed_then(network, linear_model.LogisticRegression()).fit(many[:8], y * 4)
    export_onnx(pipeline, tmp_path / "a.onnx", check=many)
    assert run(tmp_path / "a.onnx", image=np.stack(many))["label"].tolist() == pipeline.predict(many).tolist()


@pytest.mark.parametrize("loss", ["log_loss", "hinge"])
def test_what_scikit_learn_computes_in_float32_needs_a_check(network, many, labels, tmp_path, loss):
    pipeline = embed_then(network, scale(), linear_model.SGDClassifier(loss=loss)).fit(many, labels)
    report = export_onnx(pipeline, tmp_path / "a.onnx", check=many, tolerance=1e-3)
    assert report.label_agreement == 1.0


def test_labels_that_are_neither_texts_nor_whole_numbers_are_refused(network, many, tmp_path):
    pipeline = embed_then(network, linear_model.LogisticRegression()).fit(
        many[:8], np.array([1, b"x"] * 4, dtype=object).astype(str)
    )
    pipeline[-1].classes_ = np.array([b"1", b"x"], dtype=object)
    with pytest.raises(ValueError, match="Class labels must be strings or whole numbers. Got"):
        export_onnx(pipeline, tmp_path / "a.onnx")


# -- wrappers ---------------------------------------------------------------------------------------------------------


def wrap(kind, network):
    pipeline = embed_then(network, scale(), linear_model.LogisticRegression())
    if kind == "search":
        return GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1]}, cv=2)
    if kind == "calibrated pipeline":
        return calibration.CalibratedClassifierCV(embed_then(network, scale(), svm.LinearSVC()), cv=2)
    if kind == "union":
        small = PretrainedFeatureExtractor(network)
        both = FeatureUnion([("one", small), ("two", make_pipeline(small, decomposition.PCA(2)))])
        return make_pipeline(both, linear_model.LogisticRegression())
    return ensemble.VotingClassifier([("a", pipeline), ("b", pipeline)], voting="soft")


@pytest.mark.parametrize("kind", ["search", "calibrated pipeline", "union", "voting pipelines"])
def test_pipelines_within_other_estimators_are_exported_with_one_network(network, many, labels, tmp_path, kind):
    estimator = wrap(kind, network).fit(many, labels)
    export_onnx(estimator, tmp_path / "a.onnx")
    assert agree(estimator, many, run(tmp_path / "a.onnx", image=np.stack(many)))
    nodes = onnx.load(tmp_path / "a.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == 2  # those of one network


def test_a_frozen_estimator_is_opened(network, many, labels, tmp_path):
    head = linear_model.LogisticRegression().fit(sktransfer.extract(many, network), labels)
    pipeline = embed_then(network, FrozenEstimator(head)).fit(many, labels)
    assert export_onnx(pipeline, tmp_path / "a.onnx", check=many).label_agreement == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"func": np.log1p, "inverse_func": np.expm1},
        {"func": np.sqrt, "inverse_func": np.square},
        {"transformer": scale()},
        {"transformer": preprocessing.MinMaxScaler()},
    ],
    ids=["log1p", "sqrt", "StandardScaler", "MinMaxScaler"],
)
def test_a_transformed_target_comes_back(network, many, tmp_path, options):
    y = np.array([pixels.mean() for pixels in many])
    inner = embed_then(network, linear_model.Ridge())
    estimator = compose.TransformedTargetRegressor(inner, **options).fit(many, y)
    export_onnx(estimator, tmp_path / "a.onnx")
    found = run(tmp_path / "a.onnx", image=np.stack(many))["value"]
    np.testing.assert_allclose(found, estimator.predict(many), rtol=1e-5)


def test_a_target_without_a_way_back_is_refused(network, many, tmp_path):
    inner = embed_then(network, linear_model.Ridge())
    estimator = compose.TransformedTargetRegressor(inner, func=np.arcsinh, inverse_func=np.sinh).fit(many, range(N))
    with pytest.raises(ValueError, match="inverse_func must be one of np.exp, .* Got <ufunc 'sinh'> instead"):
        export_onnx(estimator, tmp_path / "a.onnx")


@pytest.mark.parametrize("method", ["standardize", "coral", "subspace", "auto"])
def test_adapted_estimators_are_exported(network, many, labels, tmp_path, method):
    domain = np.where(np.arange(N) % 2, -1, 1)
    known = np.where(domain < 0, None, labels)
    embeddings = sktransfer.extract(many, network)
    adapted = AdaptedClassifier(linear_model.LogisticRegression(), method).fit(embeddings, known, sample_domain=domain)
    extractor = PretrainedFeatureExtractor(network).fit(many)
    pipeline = Pipeline([("extractor", extractor), ("head", adapted)])
    export_onnx(pipeline, tmp_path / "a.onnx")
    assert agree(pipeline, many, run(tmp_path / "a.onnx", image=np.stack(many)))


def test_a_pipeline_of_transformers_gives_features(network, many, tmp_path):
    pipeline = embed_then(network, decomposition.PCA(3)).fit(many)
    export_onnx(pipeline, tmp_path / "a.onnx", check=many)
    found = run(tmp_path / "a.onnx", image=np.stack(many))["features"]
    np.testing.assert_allclose(found, pipeline.transform(many), atol=1e-5)


def test_several_values_a_row_are_exported(network, many, tmp_path):
    y = np.random.default_rng(0).random((N, 3))
    pipeline = embed_then(network, linear_model.Ridge()).fit(many, y)
    export_onnx(pipeline, tmp_path / "a.onnx")
    found = run(tmp_path / "a.onnx", image=np.stack(many))["value"]
    np.testing.assert_allclose(found, pipeline.predict(many), rtol=1e-5)


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(many):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "unread": 0,
            "photo": many,
            "price": rng.normal(1_700_000_000, 1e5, N),  # float32 would lose it
            "rooms": rng.integers(1, 5, N),
            "a town": rng.choice(["Köln", "Rom", "New York"], N),
        }
    )


def table_feeds(table, **more):
    return {
        "photo": np.stack([np.zeros((32, 32, 3), np.uint8) if one is None else one for one in table["photo"]]),
        "price": table[["price"]].to_numpy(),
        "rooms": table[["rooms"]].to_numpy(float),
        "a town": table[["a town"]].to_numpy(dtype=object),
        **more,
    }


def table_pipeline(block, head):
    numbers = make_pipeline(SimpleImputer(), scale())
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore")
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), encoder)
    columns = compose.make_column_transformer((block, "photo"), (numbers, ["price", "rooms"]), (texts, ["a town"]))
    return make_pipeline(columns, head)


@pytest.mark.parametrize("head", [CLASSIFIERS[0], ensemble.GradientBoostingClassifier(n_estimators=4)], ids=name_of)
def test_a_table_with_photos_is_exported(network, table, labels, tmp_path, head):
    columns = compose.make_column_transformer(
        (make_pipeline(PretrainedFeatureExtractor(network), scale()), "photo"),
        (scale(), ["price"]),
        (preprocessing.OneHotEncoder(handle_unknown="ignore"), ["rooms", "a town"]),
    )
    pipeline = make_pipeline(columns, head).fit(table, labels)
    export_onnx(pipeline, tmp_path / "a.onnx", check=table)
    feeds = table_feeds(table, rooms=table[["rooms"]].to_numpy())
    assert agree(pipeline, table, run(tmp_path / "a.onnx", **feeds))


@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_unknown_categories_are_all_zeros_in_the_file_too(network, table, labels, tmp_path):
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore", drop="if_binary")
    columns = compose.make_column_transformer((PretrainedFeatureExtractor(network), ["photo"]), (encoder, ["a town"]))
    pipeline = make_pipeline(columns, linear_model.LogisticRegression()).fit(table, labels)
    export_onnx(pipeline, tmp_path / "a.onnx")
    elsewhere = table.assign(**{"a town": "Oslo"})
    feeds = {name: value for name, value in table_feeds(elsewhere).items() if name in ("photo", "a town")}
    assert agree(pipeline, elsewhere, run(tmp_path / "a.onnx", **feeds))


def test_ordinal_codes_are_exported(network, table, labels, tmp_path):
    encoder = preprocessing.OrdinalEncoder()
    columns = compose.make_column_transformer((PretrainedFeatureExtractor(network), ["photo"]), (encoder, ["a town"]),
                                              ("passthrough", ["price"]))  # fmt: skip
    pipeline = make_pipeline(columns, tree.DecisionTreeClassifier()).fit(table, labels)
    assert export_onnx(pipeline, tmp_path / "a.onnx", check=table).label_agreement == 1.0


@pytest.mark.parametrize("policy", ["nan", "zero"])
def test_a_missing_photo_is_an_input_of_the_file(network, table, labels, tmp_path, policy):
    table.loc[table.index[::5], "photo"] = None
    block = make_image_block(network, n_components=3, missing_images=policy)
    pipeline = table_pipeline(block, linear_model.LogisticRegression()).fit(table, labels)
    export_onnx(pipeline, tmp_path / "a.onnx", check=table)
    feeds = table_feeds(table, has_image=table["photo"].notna().to_numpy())
    assert agree(pipeline, table, run(tmp_path / "a.onnx", **feeds))


def test_empty_cells_of_a_table_are_imputed_by_the_file(network, table, labels, tmp_path):
    table.loc[table.index[3], "price"] = np.nan
    table.loc[table.index[4], "a town"] = np.nan
    pipeline = table_pipeline(make_image_block(network, n_components=3), linear_model.LogisticRegression())
    pipeline.fit(table, labels)
    assert export_onnx(pipeline, tmp_path / "a.onnx", check=table).max_difference < 1e-5


def test_two_columns_of_photos_go_through_one_network(network, table, labels, tmp_path):
    table["back"] = table["photo"].to_list()[::-1]
    table.loc[table.index[2], "back"] = None
    front = make_pipeline(PretrainedFeatureExtractor(network), scale())
    columns = compose.make_column_transformer((front, ["photo"]), (make_image_block(network, 2), ["photo", "back"]))
    pipeline = make_pipeline(columns, linear_model.LogisticRegression()).fit(table, labels)
    export_onnx(pipeline, tmp_path / "a.onnx", check=table)
    model = onnx.load(tmp_path / "a.onnx")
    inputs = ["photo", "back", "has_image_photo", "has_image_back"]
    assert [entry.name for entry in model.graph.input] == inputs
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 2


def test_every_column_of_photos_keeps_its_root_and_its_range_of_pixels(network, many, labels, tmp_path):
    for side, photos in (("front", many), ("back", many[::-1])):
        (tmp_path / side).mkdir()
        for index, pixels in enumerate(photos):
            (tmp_path / side / f"{index}.png").write_bytes(encode(Image.fromarray(pixels)))
    extractors = [(PretrainedFeatureExtractor(network, root=tmp_path / side), [side]) for side in ("front", "back")]
    extractors.append((PretrainedFeatureExtractor(network, pixel_range=(0, 510)), ["array"]))
    names = [f"{index}.png" for index in range(N)]
    frame = pd.DataFrame({"front": names, "back": names, "array": [2 * one.astype(np.uint16) for one in many]})
    pipeline = make_pipeline(compose.make_column_transformer(*extractors), scale(), linear_model.LogisticRegression())
    report = export_onnx(pipeline.fit(frame, labels), tmp_path / "a.onnx", check=frame)
    assert report.max_difference < 1e-5


def test_a_column_of_the_table_that_is_no_number_is_named(network, table, labels, tmp_path):
    columns = compose.make_column_transformer((PretrainedFeatureExtractor(network), ["photo"]), (scale(), ["price"]))
    export_onnx(make_pipeline(columns, linear_model.LogisticRegression()).fit(table, labels), tmp_path / "a.onnx")
    cells = {"photo": table["photo"], "price": ["3", "cheap", *table["price"][2:]]}
    with pytest.raises(ValueError, match="price must be a number in every row. Got 'cheap' in row 1 instead"):
        ExportedModel(tmp_path / "a.onnx").predict(cells)


# -- backbones --------------------------------------------------------------------------------------------------------


def test_a_backbone_that_takes_one_image_a_run_makes_such_a_file(many, labels, tmp_path):
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 4, stride=2))
    x = b.node("Reshape", x, b.constant(np.array([1, 16 * 16 * 4], dtype=np.int64)))
    shape = b.node("Reshape", x, b.constant(np.array([2, 512], dtype=np.int64)))
    model = b.model([b.gemm(b.node("ReduceMax", shape, axes=[0], keepdims=1), 512, 3)], (1, 3, 32, 32))
    pipeline = embed_then(str(save_backbone(tmp_path / "frozen", model, AS_IT_IS)), linear_model.LogisticRegression())
    report = export_onnx(pipeline.fit(many[:12], labels[:12]), tmp_path / "a.onnx", check=many[:12])
    assert report.label_agreement == 1.0
    assert run(tmp_path / "a.onnx", image=many[0][None])["label"].shape == (1,)


OPSETS = [9, 13, 21, *([23] if int(ort.__version__.split(".")[1]) >= 23 else [])]


@pytest.mark.parametrize("opset", OPSETS)
def test_backbones_of_any_operator_set_are_joined(many, labels, tmp_path, opset):
    model = small_classifier(opset=opset, ir_version=11 if opset > 22 else 8)
    file = str(save_backbone(tmp_path / "other", model, AS_IT_IS))
    pipeline = embed_then(file, scale(), linear_model.LogisticRegression()).fit(many, labels)
    assert export_onnx(pipeline, tmp_path / "a.onnx", check=many).max_difference < 1e-5


def test_networks_of_two_sizes_need_the_resize_in_the_file(network, many, labels, tmp_path):
    config = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24},
              "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    other = str(save_backbone(tmp_path / "other", small_classifier(1, ("n", 3, 24, 24)), config))
    both = make_union(PretrainedFeatureExtractor(network), PretrainedFeatureExtractor(other))
    pipeline = make_pipeline(both, linear_model.LogisticRegression()).fit(many, labels)
    with pytest.raises(ValueError, match="must take photos of one size. Got 2 instead; pass include_resize=True"):
        export_onnx(pipeline, tmp_path / "a.onnx")
    report = export_onnx(pipeline, tmp_path / "a.onnx", check=many, include_resize=True, tolerance=0.01)
    assert report.label_agreement == 1.0


def test_a_file_with_the_resize_takes_photos_of_any_size(network, labels, tmp_path):
    photos = [photo(seed, 60, 80 + seed) for seed in range(N)]
    pipeline = embed_then(network, scale(), linear_model.LogisticRegression(C=0.1)).fit(photos, labels)
    report = export_onnx(pipeline, tmp_path / "a.onnx", check=photos, include_resize=True, tolerance=0.01)
    assert report.label_agreement == 1.0
    found = run(tmp_path / "a.onnx", image=photos[5][None])["probabilities"]
    np.testing.assert_allclose(found, pipeline.predict_proba(photos[5:6]), atol=0.01)


def test_another_file_behind_the_backbone_is_refused(many, labels, tmp_path):
    file = str(save_backbone(tmp_path / "mine", small_classifier()))
    pipeline = embed_then(file, linear_model.LogisticRegression()).fit(many, labels)
    save_backbone(tmp_path / "mine", small_classifier(7))
    with pytest.raises(sktransfer.BackboneError, match="must be the one seen by fit"):
        export_onnx(pipeline, tmp_path / "a.onnx")


def test_the_file_states_where_it_comes_from(network, many, labels, tmp_path):
    pipeline = embed_then(network, linear_model.LogisticRegression()).fit(many, labels)
    export_onnx(pipeline, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    stated = json.loads({entry.key: entry.value for entry in model.metadata_props}["sktransfer"])
    assert stated["classes"] == ["dark", "grün", "light"]
    assert stated["inputs"]["image"]["preprocessing"]["crop"] == [32, 32]
    assert stated["backbones"][0]["sha256"] == sktransfer.load_backbone(network).digest
    assert stated["versions"]["scikit-learn"] == __import__("sklearn").__version__


# -- what is refused --------------------------------------------------------------------------------------------------


class Tripled(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return 3 * X


class Constant(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self


def refuse(network, many, labels, path, match, *steps, **options):
    pipeline = embed_then(network, *steps).fit(many, labels)
    with pytest.raises(ValueError, match=match):
        export_onnx(pipeline, path, **options)
    assert not path.exists()


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (calibration.CalibratedClassifierCV(svm.LinearSVC(), method="isotonic", cv=2), '"sigmoid" or "temperature"'),
        (
            neighbors.KNeighborsClassifier(weights="distance"),
            'KNeighborsClassifier can be exported only with weights="un',
        ),
        (ensemble.VotingClassifier(SOFT), "A VotingClassifier must have voting=\"soft\". Got 'hard'"),
        (svm.SVC(decision_function_shape="ovo"), 'SVC can be exported only with decision_function_shape="ovr"'),
        (Constant(), "Constant has not been compared with its exported form .* Pass check=X"),
    ],
    ids=lambda value: name_of(value) if hasattr(value, "fit") else "",
)
def test_what_would_not_be_exact_is_refused(network, many, labels, tmp_path, head, match):
    refuse(network, many, labels, tmp_path / "a.onnx", match, head)


@pytest.mark.parametrize(
    "step",
    [
        preprocessing.PolynomialFeatures(),
        preprocessing.PowerTransformer(),
        preprocessing.QuantileTransformer(n_quantiles=9),
    ],
    ids=name_of,
)
def test_other_converters_of_skl2onnx_serve_with_a_check(network, many, labels, tmp_path, step):
    pipeline = embed_then(network, decomposition.PCA(3), step, scale(), linear_model.LogisticRegression())
    report = export_onnx(pipeline.fit(many, labels), tmp_path / "a.onnx", check=many)
    assert report.label_agreement == 1.0


def test_a_tuned_threshold_is_refused_for_it_would_be_lost(network, many, labels, tmp_path):
    inner = TunedThresholdClassifierCV(linear_model.LogisticRegression(), cv=2)
    refuse(network, many, labels == "dark", tmp_path / "a.onnx", "its threshold is lost: export its estimator_", inner)


def test_an_unknown_estimator_is_refused_with_the_reason_even_with_a_check(network, many, labels, tmp_path):
    match = "The pipeline cannot be exported: .*Tripled"
    refuse(network, many, labels, tmp_path / "a.onnx", match, Tripled(), tree.DecisionTreeClassifier(), check=many)


def test_a_file_that_disagrees_is_not_kept(network, many, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_model.LogisticRegression, "predict_proba", lambda self, X: np.full((len(X), 3), 1 / 3))
    (tmp_path / "a.onnx").write_bytes(b"an older file")
    pipeline = embed_then(network, linear_model.LogisticRegression()).fit(many, labels)
    with pytest.raises(
        ValueError, match=r"within tolerance=1e-05. The largest .* of the labels .*; nothing was written"
    ):
        export_onnx(pipeline, tmp_path / "a.onnx", check=many)
    assert (tmp_path / "a.onnx").read_bytes() == b"an older file"
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".onnx"] == ["a.onnx"]


def test_a_pipeline_without_photos_is_refused(tmp_path):
    head = linear_model.LogisticRegression().fit([[0], [1]], [0, 1])
    with pytest.raises(
        ValueError, match="must have a PretrainedFeatureExtractor in it. Got a LogisticRegression without"
    ):
        export_onnx(head, tmp_path / "a.onnx")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    for path in (tmp_path / "a.pb", tmp_path / "gone" / "a.onnx"):
        with pytest.raises(ValueError, match="path must be an .onnx file in an existing folder"):
            export_onnx(None, path)


def test_without_skl2onnx_the_pip_line_is_said(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(sktransfer.MissingExtraError, match=r'skl2onnx.*pip install "sktransfer\[export\]"'):
        export_onnx(embed_then(network), tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["label", "probabilities", "sktransfer_x"])
def test_columns_with_the_names_of_outputs_are_refused(network, table, labels, tmp_path, name):
    columns = compose.make_column_transformer((PretrainedFeatureExtractor(network), ["photo"]), (scale(), [name]))
    frame = table.rename(columns={"price": name})
    pipeline = make_pipeline(columns, linear_model.LogisticRegression()).fit(frame, labels)
    with pytest.raises(ValueError, match=f"other than label, probabilities and sktransfer_…. Got '{name}' instead"):
        export_onnx(pipeline, tmp_path / "a.onnx")


def test_the_first_of_several_features_can_be_treated_alone(network, many, labels, tmp_path):
    columns = compose.ColumnTransformer([("one", scale(), [0]), ("rest", decomposition.PCA(2), slice(1, 8))])
    pipeline = embed_then(network, columns, linear_model.LogisticRegression()).fit(many, labels)
    assert export_onnx(pipeline, tmp_path / "a.onnx", check=many).max_difference < 1e-5


def test_a_column_read_in_two_ways_is_refused(network, table, labels, tmp_path):
    extractor = PretrainedFeatureExtractor(network)
    encoder = preprocessing.OneHotEncoder()
    columns = compose.make_column_transformer((extractor, ["photo"]), (encoder, ["rooms"]), (scale(), ["rooms"]))
    pipeline = make_pipeline(columns, linear_model.LogisticRegression()).fit(table, labels)
    with pytest.raises(ValueError, match="Column 3 must be read in one way. Got integer and number instead"):
        export_onnx(pipeline, tmp_path / "a.onnx")


# -- a file at work ---------------------------------------------------------------------------------------------------


@pytest.fixture
def file(network, many, labels, tmp_path):
    pipeline = embed_then(network, scale(), linear_model.LogisticRegression()).fit(many, labels)
    export_onnx(pipeline, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_rows_that_cannot_be_read_are_named_and_the_others_predicted(file, many):
    found = ExportedModel(file).predict({"image": [many[0], "gone.png", many[1], None]})
    assert [(failure.row, failure.missing) for failure in found.failures] == [(1, False), (3, True)]
    assert found.outputs["label"].tolist()[1] == ""
    assert np.isnan(found.outputs["probabilities"][3]).all()
    assert np.isfinite(found.outputs["probabilities"][[0, 2]]).all()


def test_other_files_are_refused(network, tmp_path):
    with pytest.raises(ValueError, match="must be a file that export_onnx wrote, of format 1. It states none instead"):
        ExportedModel(network)
    with pytest.raises(ValueError, match="must be an .onnx file. There is no"):
        ExportedModel(tmp_path / "gone.onnx")
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x08torn")
    with pytest.raises(ValueError, match="onnxruntime cannot open"):
        ExportedModel(tmp_path / "torn.onnx")


def test_every_row_is_predicted_alone_so_that_threads_change_nothing(file, many):
    one = ExportedModel(file).predict({"image": many}, n_jobs=1).outputs["probabilities"]
    four = ExportedModel(file).predict({"image": many}, n_jobs=4).outputs["probabilities"]
    np.testing.assert_array_equal(one, four)


@pytest.fixture
def folder(tmp_path, many):
    for index in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{index}.png").write_bytes(encode(Image.fromarray(many[index])))
    return tmp_path / "photos"


def test_the_command_predicts_photos_and_folders(file, folder, run_command, tmp_path):
    code, out, _ = run_command("predict", file, folder, folder / "0.png", "--quiet")
    assert code == 0
    lines = out.strip().splitlines()
    assert lines[0] == "path,label,probability"
    assert lines[5] == lines[1]
    code, _, err = run_command("predict", file, folder, "-o", tmp_path / "all.csv", "--every-class", "-q")
    frame = pd.read_csv(tmp_path / "all.csv")
    assert "4 rows written" in err
    assert list(frame.columns[3:]) == ["probability_dark", "probability_grün", "probability_light"]


def test_the_command_says_which_photos_failed_and_exits_with_1(file, folder, run_command):
    (folder / "5.png").write_bytes(b"torn")
    code, out, err = run_command("predict", file, folder, "-q")
    assert code == 1
    assert out.strip().splitlines()[-1].startswith(f"{folder / '5.png'},,,")
    assert "Row 4" in err


def test_the_command_predicts_a_table(network, table, labels, tmp_path, run_command, folder):
    columns = compose.make_column_transformer((PretrainedFeatureExtractor(network), ["photo"]), (scale(), ["price"]))
    export_onnx(make_pipeline(columns, linear_model.LogisticRegression()).fit(table, labels), tmp_path / "a.onnx")
    rows = pd.DataFrame({"photo": ["0.png", "1.png"], "price": table["price"][:2]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    code, out, _ = run_command("predict", tmp_path / "a.onnx", tmp_path / "rows.csv", "--root", folder, "-q")
    assert code == 0
    assert len(out.strip().splitlines()) == 3
    code, _, err = run_command("predict", tmp_path / "a.onnx", folder, "-q")
    assert "a.onnx takes a table with the columns photo, price. Got photos instead" in err


def test_the_command_exports_saved_pipelines(network, many, labels, tmp_path, run_command, folder):
    import joblib
    from skops.io import dump

    pipeline = embed_then(network, scale(), linear_model.LogisticRegression()).fit(many, labels)
    dump(pipeline, tmp_path / "a.skops")
    code, out, _ = run_command("export", tmp_path / "a.skops", "-o", tmp_path / "a.onnx", "--check", folder)
    assert code == 0
    assert "Compared on 4 rows: the labels are the same, the largest difference is" in out
    joblib.dump(pipeline, tmp_path / "a.joblib")
    code, _, err = run_command("export", tmp_path / "a.joblib", "-o", tmp_path / "b.onnx")
    assert "can run any code when it is loaded. Pass --trusted" in err
    code, out, _ = run_command("export", tmp_path / "a.joblib", "-o", tmp_path / "b.onnx", "--trusted")
    assert "image → label, probabilities" in out


def test_the_command_loads_no_foreign_types_unless_they_are_trusted(tmp_path, run_command):
    from skops.io import dump

    dump(Tripled(), tmp_path / "a.skops")
    _, _, err = run_command("export", tmp_path / "a.skops", "-o", tmp_path / "a.onnx")
    assert "holds types that neither skops nor sktransfer vouches for: test_export.Tripled" in err


# -- elsewhere --------------------------------------------------------------------------------------------------------

BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sktransfer", "sklearn", "skl2onnx", "onnx", "PIL", "scipy", "pandas"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy as np, onnxruntime as ort
feeds = dict(np.load("feeds.npz", allow_pickle=True))
for number in range(int(sys.argv[1])):
    session = ort.InferenceSession(f"{number}.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs = [output.name for output in session.get_outputs()]
    rows = [session.run(None, {name: feeds[name][i : i + 1] for name in names}) for i in range(len(feeds[names[0]]))]
    np.savez(f"{number}.npz", **{name: np.concatenate(values) for name, values in zip(outputs, zip(*rows))})
"""


@pytest.fixture(scope="module")
def clothes():
    """200 photos with a table and labels: real ones where they are, else made ones."""
    import os

    folder = os.environ.get("SKTRANSFER_ASSETS")
    rng = np.random.default_rng(0)
    if folder:
        rows = pd.read_csv(f"{folder}/datasets/clothing/images.csv")
        rows = rows[rows["label"].isin(["T-Shirt", "Shoes", "Pants", "Longsleeve"])][:200]
        images = [f"{folder}/datasets/clothing/images/{name}.jpg" for name in rows["image"]]
        labels = rows["label"].to_numpy(object)
    else:
        images, labels = [photo(seed, 90, 120) for seed in range(200)], rng.choice(["a", "b", "c"], 200).astype(object)
    return pd.DataFrame({
        "image": images,
        "price": rng.normal(20, 5, 200),
        "town": rng.choice(["Köln", "Rom"], 200),
        "label": labels,
    })  # fmt: skip


def make_shapes():
    """Pipelines of twelve shapes."""
    heads = [
        [linear_model.LogisticRegression(max_iter=500)],
        [scale(), calibration.CalibratedClassifierCV(svm.SVC(), cv=2)],
        [scale(), neural_network.MLPClassifier((32,), max_iter=60, random_state=0)],
        [ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0)],
        [scale(), decomposition.PCA(16), linear_model.LogisticRegression(max_iter=500)],
        [feature_selection.VarianceThreshold(), feature_selection.SelectKBest(k=40), scale(), svm.LinearSVC()],
        [TransferLogisticRegression(scaler=scale())],
        [scale(), ensemble.RandomForestClassifier(50, random_state=0)],
        [scale(), neighbors.KNeighborsClassifier()],
        [ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0)],
        [preprocessing.Normalizer(), AdaptedClassifier(linear_model.LogisticRegression(C=10, max_iter=500))],
    ]
    columns = compose.make_column_transformer(
        (make_image_block(n_components=16), "image"),
        (scale(), ["price"]),
        (preprocessing.OneHotEncoder(), ["town"]),
    )
    alone = [make_pipeline(PretrainedFeatureExtractor(), *steps) for steps in heads]
    return [*alone, make_pipeline(columns, linear_model.LogisticRegression(max_iter=500))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Features .* are constant")
def test_pipelines_of_twelve_shapes_agree_in_a_process_without_sktransfer_and_scikit_learn(clothes, tmp_path):
    shapes, train = make_shapes(), np.arange(200) % 2 == 0
    X = [clothes["image"].tolist()] * (len(shapes) - 1) + [clothes]
    for number, (pipeline, rows) in enumerate(zip(shapes, X, strict=True)):
        some = rows[train] if rows is clothes else clothes["image"][train].tolist()
        pipeline.fit(some, clothes["label"][train])
        export_onnx(pipeline, tmp_path / f"{number}.onnx")
    geometry = sktransfer.load_backbone("default").preprocessing
    photos = [
        Image.open(one).convert("RGB") if isinstance(one, str) else Image.fromarray(one) for one in clothes["image"]
    ]
    feeds = {"image": np.stack([geometry.resize_and_crop(ImageOps.exif_transpose(one)) for one in photos]),
             "price": clothes[["price"]].to_numpy(), "town": clothes[["town"]].to_numpy(object),
             "has_image": np.ones(200, bool)}  # fmt: skip
    np.savez(tmp_path / "feeds.npz", **feeds)
    subprocess.run([sys.executable, "-I", "-c", BARE, str(len(shapes))], cwd=tmp_path, check=True)
    for number, (pipeline, rows) in enumerate(zip(shapes, X, strict=True)):
        outputs = dict(np.load(tmp_path / f"{number}.npz", allow_pickle=True))
        assert agree(pipeline, rows, outputs), (number, pipeline)
