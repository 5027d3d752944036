"""An exported file needs onnxruntime and nothing of ours: in a bare process, in Node and in a browser."""

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from conftest import encode, photo
from PIL import ExifTags, Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sktransfer import Preprocessing, PretrainedFeatureExtractor
from sktransfer.geometry import INPUT_NAME, OUTPUT_NAME, build_geometry_model
from sktransfer.images import decode_content

SCRIPTS = Path(__file__).parent / "web"
PAGE = Path(__file__).parent.parent / "examples" / "web" / "index.html"
PACKAGES = ["onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0", "playwright-core@1.65.1"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLASSES = np.array(["cat", "dog", "été"])
HEADS = {
    "logistic": LogisticRegression(),
    "calibrated": CalibratedClassifierCV(SVC(), ensemble=False),
    "trees": GradientBoostingClassifier(n_estimators=5, random_state=0),
}
TYPES = {"float32": "float32", "float64": "float64", "int64": "int64", "uint8": "uint8", "bool": "bool"}

needs_node = pytest.mark.skipif(not shutil.which("npm"), reason="Node.js and npm are not installed")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


def export_onnx(pipeline, path, include_resize=True):
    # STAND-IN until sktransfer.export_onnx is there
    import onnx
    import onnx.compose
    import onnx.version_converter
    from skl2onnx import to_onnx

    from sktransfer.backbones import load_backbone
    from sktransfer.graph import INPUT_NAME as PIXELS
    from sktransfer.graph import plan_graph

    extractor, head = pipeline[0], pipeline[1:]
    backbone = load_backbone(extractor.backbone)
    graph = plan_graph(backbone.path, backbone.digest, backbone.preprocessing)
    embedding = onnx.version_converter.convert_version(graph.build_model(), 18)
    embedding.ir_version = 8
    options = {id(head[-1]): {"zipmap": False}}
    import warnings

    warnings.simplefilter("ignore")
    last = to_onnx(
        head, np.zeros((1, graph.n_features), np.float32), options=options, target_opset={"": 18, "ai.onnx.ml": 3}
    )
    last = onnx.compose.add_prefix(last, "head_", rename_inputs=False, rename_outputs=False)
    last.ir_version = 8
    model = onnx.compose.merge_models(embedding, last, io_map=[("sktransfer_embedding", last.graph.input[0].name)])
    before = build_geometry_model(backbone.preprocessing)
    model = onnx.compose.merge_models(before, model, io_map=[(OUTPUT_NAME, PIXELS)])
    for node in model.graph.node:
        node.input[:] = ["image" if name == INPUT_NAME else name for name in node.input]
    model.graph.input[0].name = "image"
    metadata = {"inputs": {"image": {"resize_included": True}}, "classes": pipeline.classes_.tolist()}
    onnx.helper.set_model_props(model, {"sktransfer": json.dumps(metadata)})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pipelines of several shapes, each exported with the resize in the file."""
    folder = tmp_path_factory.mktemp("exported")
    pixels, y = np.stack([photo(seed) for seed in range(30)]), CLASSES[np.arange(30) % 3]
    for name, head in HEADS.items():
        extractor = PretrainedFeatureExtractor(n_jobs=1, cache_dir=None)
        pipeline = make_pipeline(extractor, StandardScaler(), head).fit(pixels, y)
        export_onnx(pipeline, folder / f"{name}.onnx", include_resize=True)
    return folder


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


def run_python(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def as_json(array):
    return {"type": TYPES.get(array.dtype.name, "string"), "dims": array.shape, "data": array.ravel().tolist()}


def assert_same(answer, expected):
    assert list(answer["label"]) == expected["label"].tolist()
    probabilities = np.reshape(answer["probabilities"], expected["probabilities"].shape)
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)


BARE = """
import sys
for name in ("sktransfer", "sklearn", "skl2onnx", "onnx", "PIL"):
    sys.modules[name] = None  # an import of it fails
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
outputs = session.run(["label", "probabilities"], dict(numpy.load(sys.argv[2])))
print(json.dumps({"label": outputs[0].tolist(), "probabilities": outputs[1].tolist()}))
"""


@pytest.mark.parametrize("name", HEADS)
def test_a_process_without_sktransfer_and_scikit_learn_runs_the_file(files, tmp_path, name):
    feeds = {"image": np.stack([photo(seed, 60, 45) for seed in range(20)])}
    np.savez(tmp_path / "feeds.npz", **feeds)
    command = [sys.executable, "-I", "-c", BARE, str(files / f"{name}.onnx"), str(tmp_path / "feeds.npz")]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert_same(answer, run_python(files / f"{name}.onnx", feeds))


def run_node(node_folder, library, paths, feeds):
    """The outputs of each file, run in Node by onnxruntime-node (native) or onnxruntime-web (WebAssembly)."""
    inputs = {name: as_json(feed) for name, feed in feeds.items()}
    task = {"library": library, "cases": [{"model": str(path), "feeds": inputs} for path in paths]}
    return run_script(node_folder, "run_node.cjs", task)


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("library", ["onnxruntime-node", "onnxruntime-web"])
def test_node_gives_what_python_gives(files, node_folder, library):
    feeds = {"image": np.stack([photo(seed, 60, 45) for seed in range(20)])}
    paths = [files / f"{name}.onnx" for name in HEADS]
    for path, answer in zip(paths, run_node(node_folder, library, paths, feeds), strict=True):
        assert_same(answer, run_python(path, feeds))


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("library", ["onnxruntime-node", "onnxruntime-web"])
def test_node_resizes_to_the_same_pixels_as_python(node_folder, library, tmp_path):
    feeds = {INPUT_NAME: np.random.default_rng(0).integers(0, 256, (2, 300, 91, 3), dtype=np.uint8)}
    paths = [tmp_path / f"{resample}.onnx" for resample in ("bilinear", "bicubic", "nearest")]
    for path in paths:
        onnx.save(build_geometry_model(Preprocessing(crop=(40, 60), resize=50, resample=path.stem)), path)
    for path, answer in zip(paths, run_node(node_folder, library, paths, feeds), strict=True):
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
def test_the_page_shows_what_python_gives_for_every_file_dropped_on_it(files, open_page, tmp_path):
    pictures = [photo(seed, *size) for seed, size in enumerate([(60, 45), (300, 400), (90, 500)])]
    paths = [tmp_path / f"photo{index}.png" for index in range(len(pictures))]
    for path, pixels in zip(paths, pictures, strict=True):
        path.write_bytes(encode(pixels))
    models = [files / f"{name}.onnx" for name in HEADS]
    answer = open_page(None, *(path for model in models for path in (model, *paths)))
    shown = iter(answer["shown"][1:])
    for model in models:
        assert next(shown)["status"] == "Ready."
        for pixels in pictures:
            assert_rows(next(shown)["rows"], run_python(model, {"image": pixels[None]}))


def assert_rows(rows, expected):
    """What the page shows of one photo is what Python gives, the likeliest class first."""
    assert rows[0][0] == expected["label"][0]
    probabilities = dict(rows)
    np.testing.assert_allclose([probabilities[name] for name in CLASSES], expected["probabilities"][0], atol=1e-4)


@browser_test
def test_the_page_turns_photos_upright_and_puts_transparency_over_white(files, open_page, tmp_path):
    pixels = photo(0, 64, 96)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter clockwise
    (tmp_path / "turned.jpg").write_bytes(encode(pixels, "JPEG", quality=95, exif=exif))
    (tmp_path / "veiled.png").write_bytes(encode(np.dstack([pixels, photo(1, 64, 96)[..., 0]])))
    paths = [tmp_path / "turned.jpg", tmp_path / "veiled.png"]
    answer = open_page(files / "logistic.onnx", *paths)
    assert answer["trouble"] == []
    for path, shown in zip(paths, answer["shown"][1:], strict=True):
        upright = np.asarray(decode_content(path.read_bytes(), None))
        assert_rows(shown["rows"], run_python(files / "logistic.onnx", {"image": upright[None]}))


def write_model(path, inputs, metadata):
    """A file whose value is the mean of the pixels, times `has_image`."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        mean (uint8[n, h, w, 3] image, {inputs}) => (float[n] value) {{
          axes = Constant <value_ints = [1, 2, 3]> ()
          pixels = Cast <to = 1> (image)
          mean = ReduceMean <keepdims = 0> (pixels, axes)
          there = Cast <to = 1> (has_image)
          value = Mul (mean, there)
        }}""")
    onnx.helper.set_model_props(model, metadata and {"other": "é" * 200, "sktransfer": json.dumps(metadata)})
    onnx.save(model, path)
    return path


@browser_test
def test_the_page_says_why_it_cannot_take_a_file(open_page, tmp_path):
    whole, pixels = {"inputs": {"image": {"resize_included": True}}}, {"inputs": {"image": {"resize_included": False}}}
    (tmp_path / "photo.png").write_bytes(encode(np.full((5, 7, 3), 100, np.uint8)))
    (tmp_path / "notes.txt").write_text("no photo")
    dropped = {
        tmp_path / "photo.png": "There is no model yet.",
        write_model(tmp_path / "other.onnx", "bool[n] has_image", {}): "This file was not written by sktransfer.",
        write_model(tmp_path / "fixed.onnx", "bool[n] has_image", pixels): "Export the model with include_resize=True.",
        write_model(tmp_path / "table.onnx", "bool[n] has_image, float[n, 1] age, string[n, 1] town", whole): (
            "This page has photos only, and the model wants age, town as well."
        ),
        write_model(tmp_path / "mean.onnx", "bool[n] has_image", whole): "Ready.",
        tmp_path / "notes.txt": "notes.txt is not a photo.",
    }
    shown = open_page(None, *dropped, tmp_path / "photo.png")["shown"]
    assert shown[0]["status"] == "There is no model.onnx beside this page. Choose one below."
    assert [one["status"] for one in shown[1:-1]] == list(dropped.values())
    assert shown[-1]["rows"] == [["100.000", None]]


def test_the_page_is_short_and_knows_no_other_host():
    text = PAGE.read_text("utf-8")
    assert len(text.splitlines()) < 150
    assert "//" not in re.sub(r"^.*;  // .*$|^ *// .*$", "", text, flags=re.MULTILINE)
