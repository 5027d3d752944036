"""An exported file runs in Node and in a browser as it does in Python; test_export.py has the bare process."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pandas as pd
import pytest
from conftest import encode, photo
from PIL import ExifTags, Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from sktransfer import Preprocessing, PretrainedFeatureExtractor, TransferLogisticRegression, export_onnx
from sktransfer.geometry import INPUT_NAME, OUTPUT_NAME, build_geometry_model
from sktransfer.images import decode_content

SCRIPTS = Path(__file__).parent / "web"
PAGE = Path(__file__).parent.parent / "examples" / "web" / "index.html"
PACKAGES = ["onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0", "playwright-core@1.65.1"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TYPES = {"float32", "float64", "int64", "uint8", "bool"}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
needs_node = pytest.mark.skipif(not shutil.which("npm"), reason="Node.js and npm are not installed")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
libraries = pytest.mark.parametrize("library", ["onnxruntime-node", "onnxruntime-web"])

HEADS = {
    "logistic": [StandardScaler(), LogisticRegression()],
    "calibrated": [CalibratedClassifierCV(SVC(), ensemble=False)],
    "perceptron": [StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0)],
    "trees": [GradientBoostingClassifier(n_estimators=5, random_state=0)],
    "components": [PCA(8, random_state=0), LogisticRegression()],
    "selected": [VarianceThreshold(), SelectKBest(k=20), LogisticRegression()],
    "ours": [TransferLogisticRegression()],
    "missing": [SimpleImputer(), LogisticRegression()],
    "scores": [LinearSVC()],
    "value": [Ridge()],
    "features": [StandardScaler()],
}


def make_table(n_rows):
    """Photos, a number and a text of each row, and the class that it has."""
    rng = np.random.default_rng(0)
    pixels = [photo(seed, 60, 45) for seed in range(n_rows)]
    table = {"photo": pixels, "age": rng.normal(size=n_rows), "town": rng.choice(["Oslo", "Łódź"], n_rows)}
    return pd.DataFrame(table), np.array(["cat", "dog", "été"])[np.arange(n_rows) % 3]


def build_pipeline(name, cache_dir):
    policy = "nan" if name == "missing" else "error"
    extractor = PretrainedFeatureExtractor(n_jobs=1, cache_dir=cache_dir, missing_images=policy)
    if name != "table":
        return make_pipeline(extractor, *HEADS[name])
    columns = [("photos", extractor, ["photo"]), ("towns", OneHotEncoder(), ["town"]), ("age", "passthrough", ["age"])]
    return make_pipeline(ColumnTransformer(columns), LogisticRegression())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file of a pipeline by its name, with or without the resize in it."""
    folder, (table, classes) = tmp_path_factory.mktemp("exported"), make_table(60)

    @functools.cache
    def export(name, include_resize=True):
        X = table if name == "table" else list(table["photo"])
        y = {"value": table["age"], "missing": np.arange(60) % 3}.get(name, classes)
        pipeline = build_pipeline(name, folder).fit(X, y)
        return export_onnx(pipeline, folder / f"{name}_{include_resize}.onnx", include_resize=include_resize).path

    return export


def make_feeds(name, n_rows):
    """What the file of a pipeline takes of `make_table`; every third photo is missing where one may be."""
    table, _ = make_table(n_rows)
    pixels = np.stack(list(table["photo"]))
    if name == "table":
        return {"photo": pixels, **{column: table[[column]].to_numpy() for column in ("age", "town")}}
    return {"image": pixels, **({"has_image": np.arange(n_rows) % 3 > 0} if name == "missing" else {})}


def run_python(path, feeds):
    """The outputs of a file by their names; `feeds` may hold more than it takes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {entry.name: feeds[entry.name] for entry in session.get_inputs()}
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, taken), strict=True))


def assert_same(answer, expected):
    """The labels are identical, and the other outputs within 1e-4."""
    assert answer.keys() == expected.keys()
    for name, values in expected.items():
        if name == "label":
            assert list(answer[name]) == values.tolist()
        else:
            np.testing.assert_allclose(np.reshape(answer[name], values.shape), values, atol=1e-4)


@pytest.fixture(scope="session")
def node_folder():
    """A folder with the npm packages, without their install scripts: these want hosts that need not be reachable."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", *PACKAGES]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        yield Path(folder)


def run_script(node_folder, name, task):
    """What one of our scripts prints, run by Node beside the packages."""
    shutil.copy(SCRIPTS / name, node_folder)
    (node_folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(["node", name, "task.json"], cwd=node_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_json(array):
    element = array.dtype.name if array.dtype.name in TYPES else "string"
    return {"type": element, "dims": array.shape, "data": array.ravel().tolist()}


def run_node(node_folder, library, cases):
    """The outputs of files, run in Node by onnxruntime-node (native) or onnxruntime-web (WebAssembly)."""
    asked = [
        {"model": str(path), "feeds": {name: as_json(feed) for name, feed in feeds.items()}} for path, feeds in cases
    ]
    return run_script(node_folder, "run_node.cjs", {"library": library, "cases": asked})


@pytest.mark.slow
@needs_node
@libraries
def test_node_gives_what_python_gives(exported, node_folder, library):
    cases = [(exported(name), make_feeds(name, 20)) for name in [*HEADS, "table"]]
    for (path, feeds), answer in zip(cases, run_node(node_folder, library, cases), strict=True):
        assert_same(answer, run_python(path, feeds))


@pytest.mark.slow
@needs_node
@libraries
def test_node_resizes_to_the_same_pixels_as_python(node_folder, library, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 300, 91, 3), dtype=np.uint8)
    cases = [(tmp_path / f"{resample}.onnx", {INPUT_NAME: pixels}) for resample in ("bilinear", "bicubic", "nearest")]
    for path, _ in cases:
        onnx.save(build_geometry_model(Preprocessing(crop=(40, 60), resize=50, resample=path.stem)), path)
    for (path, feeds), answer in zip(cases, run_node(node_folder, library, cases), strict=True):
        assert answer[OUTPUT_NAME] == run_python(path, feeds)[OUTPUT_NAME].ravel().tolist()


@pytest.fixture
def open_page(node_folder, tmp_path):
    """Serve the page beside a model, drop files on it in Chromium; returns what it showed and asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "node_modules").symlink_to(node_folder / "node_modules")
    shutil.copy(PAGE, folder)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def call(model, *dropped):
        if model:
            shutil.copy(model, folder / "model.onnx")
        url = f"http://127.0.0.1:{server.server_port}/"
        task = {"url": url, "files": [str(path) for path in dropped], "executable": CHROMIUM}
        answer = run_script(node_folder, "drive_page.cjs", task)
        assert all(request.startswith((f"GET {url}", "GET data:")) for request in answer["requests"])
        return answer

    yield call
    server.shutdown()
    server.server_close()


def browser_test(function):
    return pytest.mark.slow(needs_node(needs_chromium(function)))


@browser_test
def test_the_page_shows_what_python_gives_for_every_file_dropped_on_it(exported, open_page, tmp_path):
    pictures = {tmp_path / f"{size}.png": photo(size, size, 400 - size) for size in (20, 190, 350)}
    for path, pixels in pictures.items():
        path.write_bytes(encode(pixels))
    models = [exported(name) for name in ("calibrated", "trees", "missing", "scores", "value")]
    answer = open_page(None, *(path for model in models for path in (model, *pictures)))
    shown = iter(answer["shown"][1:])
    for model in models:
        assert next(shown)["status"] == "Ready."
        for pixels in pictures.values():
            assert_rows(next(shown)["rows"], model, pixels)


def assert_rows(rows, model, pixels):
    """What the page shows of one photo is what Python gives, the likeliest class first."""
    outputs = run_python(model, {"image": pixels[None], "has_image": np.array([True])})
    first = rows[0][0]
    if "value" in outputs:
        assert float(first) == pytest.approx(outputs["value"][0], abs=1e-4)
    else:
        assert first == str(outputs["label"][0])
    if "probabilities" in outputs:
        probabilities = [dict(rows)[str(name)] for name in read_classes(model)]
        np.testing.assert_allclose(probabilities, outputs["probabilities"][0], atol=1e-4)


def read_classes(model):
    """The classes that a file states."""
    entries = onnx.load(model).metadata_props
    return next(json.loads(entry.value)["classes"] for entry in entries if entry.key == "sktransfer")


@browser_test
def test_the_page_turns_photos_upright_and_puts_transparency_over_white(exported, open_page, tmp_path):
    pixels = photo(0, 64, 96)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter clockwise
    (tmp_path / "turned.jpg").write_bytes(encode(pixels, "JPEG", quality=95, exif=exif))
    (tmp_path / "veiled.png").write_bytes(encode(np.dstack([pixels, photo(1, 64, 96)[..., 0]])))
    paths = [tmp_path / "turned.jpg", tmp_path / "veiled.png"]
    answer = open_page(exported("logistic"), *paths)
    assert answer["trouble"] == []
    for path, shown in zip(paths, answer["shown"][1:], strict=True):
        assert_rows(shown["rows"], exported("logistic"), np.asarray(decode_content(path.read_bytes(), None)))


@browser_test
def test_the_page_says_why_it_cannot_take_a_file(exported, open_page, tmp_path):
    (tmp_path / "photo.png").write_bytes(encode(photo(0)))
    (tmp_path / "notes.txt").write_text("no photo")
    onnx.save(build_geometry_model(Preprocessing(crop=(8, 8))), tmp_path / "other.onnx")
    dropped = {
        tmp_path / "photo.png": "There is no model yet.",
        tmp_path / "other.onnx": "This file was not written by sktransfer.",
        exported("logistic", include_resize=False): "Export the model with include_resize=True.",
        exported("table"): "This page has one photo, and the model wants age, town as well.",
        exported("features"): "This model gives features and predicts nothing.",
        exported("logistic"): "Ready.",
        tmp_path / "notes.txt": "notes.txt is not a photo.",
    }
    shown = open_page(None, *dropped)["shown"]
    assert shown[0]["status"] == "There is no model.onnx beside this page. Choose one below."
    assert [one["status"] for one in shown[1:]] == list(dropped.values())


def test_the_page_is_short_and_knows_no_other_host():
    text = PAGE.read_text("utf-8")
    assert len(text.splitlines()) < 150
    assert "//" not in re.sub(r"^.*;  // .*$|^ *// .*$", "", text, flags=re.MULTILINE)
