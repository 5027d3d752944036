"""On real backbones and photos; skipped where SKTRANSFER_ASSETS is unset."""

import contextlib
import csv
import time
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
from conftest import run_process
from PIL import Image, ImageOps
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_graph import assert_same
from test_graph import by_hand as activations_by_hand

from sktransfer import PretrainedFeatureExtractor, extract, load_backbone
from sktransfer.exceptions import ImageReadError
from sktransfer.extraction import plan_extraction
from sktransfer.images import decode_content, quiet_decoder
from sktransfer.session import forward_passes

MODELS = [
    "squeezenet1.1", "squeezenet1.1_winml_fp16", "mobilenetv1_0.25_128", "mobilenetv2_features", "resnet18_layer3",
    "resnet50v2_stage3", "inception_v3_mixed8",
]  # fmt: skip
LARGE = ("resnet50v2_stage3", "inception_v3_mixed8")
FOLDS = StratifiedGroupKFold(5, shuffle=True, random_state=0)


def mark_large(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in names]


@pytest.fixture(scope="module")
def clothing(assets):
    table = pd.read_csv(assets / "datasets" / "clothing" / "images.csv")
    paths = [str(assets / "datasets" / "clothing" / "images" / f"{name}.jpg") for name in table["image"]]
    return paths, table["label"].to_numpy(), table["sender_id"].to_numpy()


def by_hand(paths, preprocessing, folder, output):
    """Photos one by one through onnxruntime, normalised on the host."""
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    vectors = []
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        x = preprocessing.resize_and_crop(image) * np.float32(preprocessing.scale)
        x = (x - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
        vectors += session.run([output], {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})
    return np.concatenate(vectors)


@pytest.mark.parametrize("name", mark_large(name for name in MODELS if name != "squeezenet1.1_winml_fp16"))
def test_the_default_embedding_is_the_features_output(assets, clothing, name):
    folder = assets / "models" / name
    paths = clothing[0][:3]
    expected = by_hand(paths, load_backbone(folder).preprocessing, folder, "features")
    assert_same(extract(paths, folder), expected, 1e-5)


def test_the_float16_export_with_a_frozen_batch_gives_its_last_map(assets, clothing):
    folder = assets / "models" / "squeezenet1.1_winml_fp16"
    graph = plan_extraction(folder).graph
    assert (graph.n_features, graph.cuts[0].pooling, graph.frozen_batch) == (512, "avg", False)
    photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in clothing[0][:3]]
    pixels = np.stack([graph.preprocessing.resize_and_crop(image) for image in photos])
    maps = activations_by_hand(onnx.load(folder / "model.onnx"), "fire9/concat_1", graph.preprocessing,
                               dtype=np.float16, pixels=pixels)  # fmt: skip
    assert_same(extract(clothing[0][:3], folder), maps.mean((2, 3)), 2e-3)


@pytest.mark.parametrize("name", mark_large(MODELS))
def test_batches_order_and_threads_change_no_bit(assets, clothing, name):
    folder, paths = assets / "models" / name, clothing[0][:6]
    alone = np.concatenate([extract([path], folder, cache_dir=None, n_jobs=1) for path in paths])
    for options in ({"n_jobs": 2}, {"n_jobs": 3, "batch_size": 4}, {"n_jobs": 1, "batch_size": 6}):
        np.testing.assert_array_equal(extract(paths[::-1], folder, cache_dir=None, **options)[::-1], alone)


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("mobilenetv1_0.25_128", 0.44),
        pytest.param("mobilenetv2_features", 0.64, marks=pytest.mark.slow),
        pytest.param("squeezenet1.1", 0.47, marks=pytest.mark.slow),
        pytest.param("resnet18_layer3", 0.55, marks=pytest.mark.slow),
        pytest.param("resnet50v2_stage3", 0.63, marks=pytest.mark.slow),
        pytest.param("inception_v3_mixed8", 0.72, marks=pytest.mark.slow),
    ],
)
def test_logistic_regression_on_clothing(assets, clothing, name, accuracy):
    paths, labels, senders = clothing
    pipeline = make_pipeline(
        PretrainedFeatureExtractor(assets / "models" / name), StandardScaler(), LogisticRegression(C=0.01, max_iter=300)
    )
    before = forward_passes()
    scores = cross_val_score(pipeline, paths, labels, groups=senders, cv=FOLDS, error_score="raise")
    assert forward_passes() - before == len(paths)
    assert scores.mean() >= accuracy


@pytest.mark.slow
def test_tuned_mlp_on_clothing(assets, clothing):
    paths, labels, senders = clothing
    extractor = PretrainedFeatureExtractor(assets / "models" / "mobilenetv2_features")
    pipeline = make_pipeline(extractor, StandardScaler(), MLPClassifier((256,), max_iter=20, random_state=0))
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [0.1, 1.0, 10.0]}, cv=FOLDS, error_score="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(paths, labels, groups=senders)
    assert search.best_score_ >= 0.64


NASTY = """
import csv, warnings, numpy as np
from sktransfer.extraction import extract
with open(sys.argv[2] + "/manifest.csv", encoding="utf-8") as file:
    names = [row["file"] for row in csv.DictReader(file)]
warnings.simplefilter("ignore")
options = {"cache_dir": None, "broken_images": "nan", "return_report": True, "n_jobs": 2}
vectors, report = extract(names, sys.argv[1], root=sys.argv[2], **options)
np.save(sys.argv[3], vectors)
report.to_pickle(sys.argv[4])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss begins with that of the parent
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.fixture(scope="module")
def nasty(assets, tmp_path_factory):
    """Rows of the manifest, vectors, report and standard output of a process of their own."""
    folder, output = assets / "datasets" / "nasty", tmp_path_factory.mktemp("nasty")
    files = output / "vectors.npy", output / "report.pickle"
    printed = run_process(NASTY, assets / "models" / "mobilenetv1_0.25_128", folder, *files)
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file)), np.load(files[0]), pd.read_pickle(files[1]), printed


def test_nasty_files_are_embedded_or_named(nasty):
    rows, vectors, report, printed = nasty
    assert printed.strip().isdigit()  # and no word of any library
    failed = set(report["row"])
    assert np.array_equal(np.flatnonzero(np.isnan(vectors).any(axis=1)), sorted(failed))
    assert (report["reason"].str.len() > 8).all()
    loads = {index for index, row in enumerate(rows) if row["outcome"] == "loads"}
    refused = {rows[index]["file"] for index in loads & failed}
    assert refused == {
        "pillow/10ct_32bit_128.tiff",  # float pixels of -3.1..3.1: their scale has to be given
        "pillow/broken_data_stream.png",  # these two raise in the first load() and not in a second one,
        "pillow/truncated_end_chunk.png",  # which is what the manifest seems to have counted
    }
    assert not set(range(len(rows))) - loads - failed, "a vector for a file that does not load"


def test_nasty_files_take_less_than_a_gigabyte_and_stay_in_order(assets, nasty):
    rows, vectors, _, printed = nasty
    assert int(printed) < 1e9
    assert len(vectors) == len(rows) == 496
    some = [row for row in range(0, 496, 31) if not np.isnan(vectors[row]).any()]
    model, names = assets / "models" / "mobilenetv1_0.25_128", [rows[row]["file"] for row in some]
    alone = extract(names, model, root=assets / "datasets" / "nasty", cache_dir=None, n_jobs=1)
    np.testing.assert_array_equal(vectors[some], alone)


@pytest.mark.slow
def test_no_nasty_file_takes_long(assets):
    folder = assets / "datasets" / "nasty"
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    for name in names:
        start = time.thread_time()
        with quiet_decoder(), contextlib.suppress(ImageReadError):
            decode_content((folder / name).read_bytes(), None)
        assert time.thread_time() - start < 5, name


MEMORY = """
import os
from sktransfer.extraction import extract
from sktransfer.session import release_sessions
model, folder, *photos = sys.argv[1:]
names = [f"{folder}/{row}.jpg" for row in range(10_000)]
for row, name in enumerate(names):
    os.symlink(photos[row % len(photos)], name)
for n in (1_000, 10_000):
    size = extract(names[:n], model).nbytes
    release_sessions()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss begins with that of the parent
    print(int(status["VmHWM"].split()[0]) * 1024 - size)
"""


@pytest.mark.slow
def test_peak_memory_is_flat_in_the_number_of_references(assets, clothing, tmp_path):
    printed = run_process(MEMORY, assets / "models" / "mobilenetv1_0.25_128", tmp_path, *clothing[0][:200])
    small, large = map(int, printed.split())
    assert large - small < 50e6
