"""PyTorch's exporters write one network in many ways; the embedding must be the network's own features in all."""

import contextlib
import io
import itertools
import warnings

import numpy as np
import pytest
from conftest import IMAGENET, photo
from test_graph import assert_same, run_each

from sktransfer import Preprocessing
from sktransfer.graph import INPUT_NAME, plan_graph

torch = pytest.importorskip("torch", reason="the tests on exported networks need torch")
pytest.importorskip("onnxscript", reason="the tests on exported networks need onnxscript")

from torch_networks import NETWORKS, build_network  # noqa: E402  (needs torch)

TORCHSCRIPT, DYNAMO = "torchscript", "dynamo"
OPSETS = {TORCHSCRIPT: (11, 13, 17, 20), DYNAMO: (18, 25)}  # the last: the newest that exporter and runtime both know
FAST = {(TORCHSCRIPT, 17, "dynamic"), (TORCHSCRIPT, 11, "static"), (DYNAMO, 18, "dynamic")}
FIRST_OPSET = {"vit_torchvision": 14}  # of torch's own attention, exported through TorchScript
FAST_NAMES = {  # of the others, every network is fast
    (DYNAMO, 18, "dynamic"): {"convnext", "vit_class_token"},
    (TORCHSCRIPT, 11, "static"): {
        "headless_tokens", "inception", "mobilenet_v1", "resnet_basic", "shufflenet", "squeezenet", "swin", "vgg_bn",
        "vit_mean",
    },
}  # fmt: skip


def list_exports():
    """Every network, exporter, opset and batch; slow are those that the fast ones nearly cover."""
    versions = [(exporter, opset) for exporter, opsets in OPSETS.items() for opset in opsets]
    for (exporter, opset), batch, name in itertools.product(versions, ("dynamic", "static"), NETWORKS):
        if exporter == DYNAMO or opset >= FIRST_OPSET.get(name, 0):
            version = (exporter, opset, batch)
            fast = version in FAST and name in FAST_NAMES.get(version, NETWORKS)
            yield pytest.param(name, exporter, opset, batch, marks=() if fast else pytest.mark.slow)


def export(name, path, exporter, opset, batch):
    """Write the network `name` to `path`, without the exporters' own warnings and messages."""
    net, size = build_network(name)
    images = torch.zeros(2 if batch == "dynamic" else 1, 3, size, size)
    if exporter == TORCHSCRIPT:
        options = {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}} if batch == "dynamic" else None}
    else:
        options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},) if batch == "dynamic" else None}
        options |= {"verbose": False, "external_data": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (images,),
            path,
            input_names=["input"],
            output_names=["output"],
            opset_version=opset,
            dynamo=exporter == DYNAMO,
            **options,
        )


@pytest.fixture(scope="session")
def exports(tmp_path_factory, one_registry):
    """Exports a network once, and gives the path of the file."""
    folder = tmp_path_factory.mktemp("exports")

    def find(*case):
        path = folder / f"{'-'.join(map(str, case))}.onnx"
        if not path.is_file():
            export(case[0], path, *case[1:])
        return path

    return find


def own_features(name, pixels, preprocessing):
    """What the network itself computes from pixels that were normalised on the host."""
    net, _ = build_network(name)
    x = (pixels * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    with torch.inference_mode():
        return net.features(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32))).numpy()


def embed(path, pixels, preprocessing):
    graph = plan_graph(path, path.stem, preprocessing)
    model = graph.build_model()
    batches = [pixels[i : i + 1] for i in range(len(pixels))] if graph.frozen_batch else [pixels]
    return run_each(model, INPUT_NAME, batches)


@pytest.mark.parametrize(("name", "exporter", "opset", "batch"), list(list_exports()))
def test_the_embedding_of_an_exported_network_is_its_own_features(exports, name, exporter, opset, batch):
    _, size = build_network(name)
    preprocessing = Preprocessing((size, size), mean=tuple(IMAGENET["image_mean"]), std=tuple(IMAGENET["image_std"]))
    pixels = np.stack([photo(seed, size, size) for seed in range(3)])
    expected = own_features(name, pixels, preprocessing)
    vectors = embed(exports(name, exporter, opset, batch), pixels, preprocessing)
    assert vectors.shape == expected.shape
    assert_same(vectors, expected, 1e-4)
