import functools
import gc
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from threadpoolctl import threadpool_limits

import sktransfer.cache

# What another process executes first where it needs a module, and neither the estimators nor scikit-learn, whose import
# takes seconds.
WITHOUT_ESTIMATORS = f"""
import sys, types
sys.modules["sktransfer"] = types.ModuleType("sktransfer")
sys.modules["sktransfer"].__path__ = {list(sktransfer.__path__)}
"""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def pytest_report_header():
    assets = os.environ.get("SKTRANSFER_ASSETS")
    absent = [name for name in ("ray", "pyspark", "distributed") if importlib.util.find_spec(name) is None]
    return [
        f"SKTRANSFER_ASSETS: {assets or 'unset, so the tests on real models and photos are skipped'}",
        f"not installed, so slow tests on their clusters are skipped: {', '.join(absent) or 'none'}",
    ]


@pytest.fixture(scope="session")
def assets():
    folder = os.environ.get("SKTRANSFER_ASSETS")
    if not folder:
        pytest.skip("SKTRANSFER_ASSETS is unset")
    return Path(folder).resolve()


def pytest_configure(config):
    # The doctests of the package, too, must neither find nor leave anything in the user's own cache.
    config._cache_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["SKTRANSFER_CACHE_DIR"] = config._cache_folder.name


def pytest_collection_finish():
    gc.freeze()  # what the imports made stays, and going through all of it takes half a second each time


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """Problems are small here: threads of the two BLAS libraries of numpy and scipy wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    """A cache of its own for every test."""
    monkeypatch.delenv("SKTRANSFER_DEVICE", raising=False)
    monkeypatch.delenv("SKTRANSFER_CACHE_SIZE", raising=False)
    monkeypatch.setenv("SKTRANSFER_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "sktransfer-embeddings"
    sktransfer.cache.close_all()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def photo(seed, height=40, width=52):
    """A smooth random RGB image, uint8 (height, width, 3)."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, image_format="PNG", **options):
    """The bytes of an image file."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.fixture
def photos():
    return [photo(seed) for seed in range(6)]


@pytest.fixture
def photo_files(tmp_path, photos):
    paths = []
    for index, pixels in enumerate(photos):
        path = tmp_path / f"photo{index}.png"
        path.write_bytes(encode(pixels))
        paths.append(str(path))
    return paths


class Builder:
    """Builds small ONNX graphs: every call appends a node and returns its output's name."""

    def __init__(self, seed=0):
        self.nodes, self.weights, self.rng = [], [], np.random.default_rng(seed)

    def constant(self, array, name=None):
        name = name or f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape, dtype=np.float32):
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.constant((self.rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(dtype))

    def node(self, op_type, *inputs, output=None, **attributes):
        output = output or f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def conv(self, source, inputs, outputs, kernel=3, stride=1, output=None, dtype=np.float32):
        weights = self.weight(outputs, inputs, kernel, kernel, dtype=dtype)
        pads = [kernel // 2] * 4
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self.node("Conv", source, weights, self.weight(outputs, dtype=dtype), output=output, **sizes)

    def gemm(self, source, inputs, outputs, output=None):
        return self.node("Gemm", source, self.weight(inputs, outputs), self.weight(outputs), output=output)

    def model(self, outputs, shape=("n", 3, 32, 32), opset=13, ir_version=8, elem_type=TensorProto.FLOAT):
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("input", elem_type, list(shape))],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", opset)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version))


def small_classifier(seed=0, shape=("n", 3, 32, 32), opset=13, **options):
    """Conv, Relu, Conv, Relu, global pooling, Flatten, Gemm, Softmax: 8 features, 5 classes."""
    b = Builder(seed)
    x = b.node("Relu", b.conv("input", 3, 6, stride=2))
    x = b.node("Relu", b.conv(x, 6, 8, stride=2), output="last_relu")
    x = b.node("Flatten", b.node("GlobalAveragePool", x, output="pooled"), output="vector", axis=1)
    x = b.node("Softmax", b.gemm(x, 8, 5, output="scores"), output="probabilities")
    return b.model([x], shape, opset, **options)


def save_backbone(folder, model, config=None, name="model.onnx"):
    """Write a model and its preprocessor_config.json; returns the path of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / name)
    if config is None:
        config = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, **IMAGENET}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder / name


@pytest.fixture
def backbone_file(tmp_path):
    """A small classifier on disk, 32x32 input, 8 features."""
    return str(save_backbone(tmp_path / "small", small_classifier()))


@pytest.fixture
def embed(backbone_file):
    """`extract` with the small classifier and one thread."""

    def call(images, **options):
        return sktransfer.extract(images, backbone_file, **{"n_jobs": 1, **options})

    return call


@pytest.fixture(scope="session")
def worker_folder(tmp_path_factory):
    """Workers of joblib take seconds to start and keep the environment of that moment: all tests share them."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)
    yield tmp_path_factory.mktemp("workers")
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def counting_log(worker_folder, monkeypatch):
    """Where `counting` writes, in the workers, too."""
    monkeypatch.setenv("COUNTING_LOG", str(worker_folder / "rows.log"))
    (worker_folder / "rows.log").write_text("")
    return worker_folder / "rows.log"


@pytest.fixture
def workers(worker_folder, counting_log, cache_folder, monkeypatch):
    """The cache folder that the workers know, which other tests have filled: see own_backbone_file."""
    monkeypatch.setenv("SKTRANSFER_CACHE_DIR", str(worker_folder / "cache"))


@pytest.fixture
def own_backbone_file(tmp_path, request):
    """A small classifier that no other test has, so that no embedding of it is in any cache."""
    seed = int.from_bytes(hashlib.sha256(request.node.nodeid.encode()).digest()[:4])
    return str(save_backbone(tmp_path / "own", small_classifier(seed)))


def run_process(code, *arguments, **environment):
    """What another process prints that needs no estimator."""
    command = [sys.executable, "-c", WITHOUT_ESTIMATORS + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


@pytest.fixture(scope="session")
def one_registry():
    """PyTorch's exporter would read the source of all its operators anew for every network, a third of its time."""
    registry = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that plays the Hugging Face Hub; see hub_server.Server."""
    from hub_server import serve

    yield from serve(monkeypatch, tmp_path)


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Run ``sktransfer`` as a user does; returns exit code, stdout, stderr."""

    def call(*arguments):
        import sktransfer.cli

        monkeypatch.setattr(sys, "argv", ["sktransfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            sktransfer.cli.main()
            sys.exit(0)
        return (caught.value.code, *capfd.readouterr())

    return call
