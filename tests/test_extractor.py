import pickle

import joblib
import numpy as np
import pytest
from conftest import encode, photo, save_backbone, small_classifier
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sktransfer.session
from sktransfer import BackboneError, Preprocessing, PretrainedFeatureExtractor, extract, release_sessions
from sktransfer.session import forward_passes


@pytest.fixture
def extractor(backbone_file):
    return PretrainedFeatureExtractor(backbone_file, n_jobs=1)


@pytest.fixture
def dark_and_bright():
    """Forty images of two classes that any network tells apart."""
    images = [photo(seed) // 4 + (seed % 2) * 150 for seed in range(40)]
    return [image.astype(np.uint8) for image in images], np.arange(40) % 2


def test_transform_equals_extract(extractor, backbone_file, photo_files):
    np.testing.assert_array_equal(extractor.fit_transform(photo_files), extract(photo_files, backbone_file))


def test_fit_reads_no_image_and_runs_nothing(extractor):
    before = forward_passes()
    extractor.fit(["does/not/exist.jpg"])
    assert forward_passes() == before


def test_transform_changes_nothing_on_the_estimator(extractor, photo_files):
    before = dict(vars(extractor.fit(photo_files)))
    extractor.transform(photo_files)
    assert vars(extractor) == before


@pytest.mark.parametrize(
    "head", [LogisticRegression(), MLPClassifier((8,), solver="lbfgs", max_iter=2000, random_state=0)]
)
def test_grid_search_runs_each_image_once_and_finds_the_classes(extractor, dark_and_bright, head):
    images, y = dark_and_bright
    pipeline = make_pipeline(extractor, StandardScaler(), head)
    name = "logisticregression__C" if isinstance(head, LogisticRegression) else "mlpclassifier__alpha"
    before = forward_passes()
    search = GridSearchCV(pipeline, {name: [0.1, 1.0]}, cv=5, error_score="raise").fit(images, y)
    assert forward_passes() - before == len(images)
    assert search.best_score_ > 0.9


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_cross_validation_in_parallel_gives_the_same_scores(own_backbone_file, workers, dark_and_bright, backend):
    images, y = dark_and_bright
    extractor = PretrainedFeatureExtractor(own_backbone_file, n_jobs=1)
    pipeline = make_pipeline(extractor, StandardScaler(), LogisticRegression())
    alone = cross_val_score(pipeline, images, y, cv=4, error_score="raise")
    with joblib.parallel_backend(backend, n_jobs=2):
        np.testing.assert_array_equal(cross_val_score(pipeline, images, y, cv=4, error_score="raise"), alone)


def test_a_pickle_is_small_and_gives_the_same_vectors(extractor, photo_files):
    expected = extractor.fit_transform(photo_files)
    content = pickle.dumps(extractor)
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content).transform(photo_files), expected)
    np.testing.assert_array_equal(clone(extractor).fit_transform(photo_files), expected)


def test_clones_share_one_session(extractor, photos, monkeypatch):
    release_sessions()
    opened = []
    real = sktransfer.session.EmbeddingSession.__init__
    monkeypatch.setattr(
        sktransfer.session.EmbeddingSession, "__init__", lambda self, *args: (opened.append(1), real(self, *args))[1]
    )
    for image in photos:
        clone(extractor).fit_transform([image])
    assert len(opened) == 1


def test_names_carry_the_backbone_and_the_column(extractor, photo_files):
    pd = pytest.importorskip("pandas")
    names = extractor.fit(photo_files).get_feature_names_out()
    assert names[[0, -1]].tolist() == ["small_0", "small_7"]
    frame = pd.DataFrame({"front": photo_files, "背面": photo_files})
    two = clone(extractor).set_params(add_indicator=True).fit(frame)
    assert two.get_feature_names_out()[[0, 8, 16, 17]].tolist() == [
        "front_small_0", "背面_small_0", "front_missing", "背面_missing"
    ]  # fmt: skip
    assert two.feature_names_in_.tolist() == ["front", "背面"]
    assert two.transform(frame).shape == (6, 18)


def test_columns_without_names_are_numbered(extractor, photo_files):
    table = np.array([photo_files, photo_files], dtype=object).T
    names = extractor.fit(table).get_feature_names_out()
    assert (len(names), names[0], names[8]) == (16, "x0_small_0", "x1_small_0")
    assert extractor.transform(table).shape == (6, 16)
    assert extractor.get_feature_names_out(["front", "back"])[8] == "back_small_0"
    with pytest.raises(ValueError, match="should have length equal to number of features"):
        extractor.get_feature_names_out(["front"])


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_set_output_gives_named_frames(extractor, photo_files, output):
    pytest.importorskip(output)
    frame = extractor.set_output(transform=output).fit_transform(photo_files)
    assert list(frame.columns) == [f"small_{i}" for i in range(8)]
    assert len(frame) == 6


def test_column_transformer_passes_a_series_or_a_frame(extractor, photo_files):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"photo": photo_files, "size": np.arange(6.0), "label": list("ababab")})
    expected = extractor.fit_transform(photo_files)
    for columns in ("photo", ["photo"]):
        mixed = make_column_transformer((clone(extractor), columns), (StandardScaler(), ["size"]))
        vectors = mixed.fit_transform(frame)
        np.testing.assert_array_equal(vectors[:, :8].astype(np.float32), expected)
        assert len(mixed.get_feature_names_out()) == 9


def test_changed_bytes_behind_the_same_name_are_refused(extractor, backbone_file, photo_files, tmp_path):
    extractor.fit(photo_files)
    save_backbone(tmp_path / "small", small_classifier(seed=1))
    with pytest.raises(BackboneError, match=r"must be the one seen by fit, small \(graph .* fit again\.$"):
        extractor.transform(photo_files)
    assert np.isfinite(extractor.fit_transform(photo_files)).all()


def test_a_changed_layer_is_refused_until_fit(extractor, photo_files):
    extractor.fit(photo_files).set_params(layer="logits")
    with pytest.raises(BackboneError, match="fit again"):
        extractor.transform(photo_files)


def test_an_alias_keeps_the_meaning_it_had_in_fit():
    fitted = PretrainedFeatureExtractor().fit([photo(0)])
    assert (fitted.backbone_, fitted.device_) == ("tiny-v1", "cpu")
    assert fitted.get_feature_names_out()[0] == "tiny-v1_0"
    assert fitted.transform([photo(0)]).shape == (1, 256)


def test_another_number_of_columns_is_refused(extractor, photo_files):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": photo_files, "b": photo_files})
    extractor.fit(frame)
    with pytest.raises(ValueError, match="The feature names should match|X has 1 features"):
        extractor.transform(frame[["a"]])
    extractor.fit(frame.to_numpy(dtype=object))
    with pytest.raises(ValueError, match="X has 1 features, but PretrainedFeatureExtractor is expecting 2"):
        extractor.transform(photo_files)


def test_preprocessing_may_be_given_as_a_preset_or_an_object(backbone_file, photo_files):
    own = PretrainedFeatureExtractor(backbone_file).fit_transform(photo_files)
    tf = PretrainedFeatureExtractor(backbone_file, preprocessing="tf").fit_transform(photo_files)
    same = Preprocessing((32, 32), 36, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    given = PretrainedFeatureExtractor(backbone_file, preprocessing=same).fit_transform(photo_files)
    np.testing.assert_array_equal(given, own)
    assert np.abs(tf - own).max() > 0.01


def test_html_and_text_representations_exist(extractor):
    assert "PretrainedFeatureExtractor" in extractor._repr_html_()
    assert repr(PretrainedFeatureExtractor()) == "PretrainedFeatureExtractor()"


def test_pipelines_of_bytes_survive_cross_validation(extractor, dark_and_bright):
    images, y = dark_and_bright
    pipeline = make_pipeline(extractor, StandardScaler(), LogisticRegression())
    scores = cross_val_score(pipeline, [encode(image) for image in images], y, cv=3, error_score="raise")
    assert scores.mean() > 0.9
