import dataclasses
import os
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import IMAGENET, Builder, photo, small_classifier
from onnx import TensorProto, helper, numpy_helper

from sktransfer import BackboneError, Preprocessing
from sktransfer.graph import INPUT_NAME, plan_graph
from sktransfer.network import load_model

IMAGENET_224 = Preprocessing.from_preset("imagenet", (224, 224))
P32 = Preprocessing((32, 32), 36, mean=tuple(IMAGENET["image_mean"]), std=tuple(IMAGENET["image_std"]))
PIXELS = np.stack([photo(seed, 32, 32) for seed in range(3)])


def open_session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model, feeds, outputs=None):
    return open_session(model).run(outputs, feeds)


def run_each(model, name, batches, outputs=None):
    """The first output for the batches of the input `name`, one run after the other."""
    session = open_session(model)
    return np.concatenate([session.run(outputs, {name: batch})[0] for batch in batches])


def plan(tmp_path, model, preprocessing=P32, **options):
    path = tmp_path / "backbone.onnx"
    onnx.save(model, path)
    return plan_graph(path, os.urandom(8).hex(), preprocessing, **options)


def embed(tmp_path, model, preprocessing=P32, pixels=PIXELS, **options):
    return embed_with(plan(tmp_path, model, preprocessing, **options), pixels)


def embed_with(graph, pixels):
    embedding_model = graph.build_model()
    onnx.checker.check_model(embedding_model)
    rows = [pixels[i : i + 1] for i in range(len(pixels))] if graph.frozen_batch else [pixels]
    vectors = run_each(embedding_model, INPUT_NAME, rows)
    assert vectors.shape == (len(pixels), graph.n_features)
    assert vectors.dtype == np.float32
    return vectors


def by_hand(model, tensor, preprocessing=P32, nhwc=False, dtype=np.float32, pixels=PIXELS):
    """The activations of `tensor`, from pixels normalised on the host and one image a run."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    if tensor not in {value.name for value in model.graph.output}:
        model.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    order = [2, 1, 0] if preprocessing.channel_order == "BGR" else [0, 1, 2]
    x = (pixels[..., order] * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    x = (x if nhwc else x.transpose(0, 3, 1, 2)).astype(dtype)
    name = next(v.name for v in model.graph.input if v.name not in {w.name for w in model.graph.initializer})
    return run_each(model, name, [x[i : i + 1] for i in range(len(x))], [tensor]).astype(np.float32)


def assert_same(vectors, expected, tolerance=1e-5):
    expected = expected.reshape(len(expected), -1)
    distance = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert distance.max() <= tolerance


def test_the_penultimate_activation_is_found_before_the_classifier(tmp_path):
    model = small_classifier()
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_every_opset_from_seven_gives_the_embedding(tmp_path, opset):
    model = small_classifier(opset=opset)
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_older_opsets_are_refused(tmp_path):
    with pytest.raises(BackboneError, match="must use ONNX opset 7 or newer. Got opset 6"):
        plan(tmp_path, small_classifier(opset=6))


def test_bgr_and_other_scales_go_through_the_graph(tmp_path):
    caffe = Preprocessing((32, 32), scale=1.0, mean=(103.9, 116.8, 123.7), std=(57.0, 58.0, 59.0), channel_order="BGR")
    model = small_classifier()
    assert_same(embed(tmp_path, model, caffe), by_hand(model, "vector", caffe))


def test_nhwc_input_is_recognised(tmp_path):
    b = Builder()
    x = b.node("Relu", b.conv(b.node("Transpose", "input", perm=[0, 3, 1, 2]), 3, 6))
    model = b.model([b.node("Flatten", b.node("GlobalAveragePool", x), output="out")], ("n", 32, 32, 3))
    assert_same(embed(tmp_path, model), by_hand(model, "out", nhwc=True))


def test_dynamic_height_and_width_take_the_size_of_the_crop(tmp_path):
    model = small_classifier(shape=("n", 3, "h", "w"))
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_float16_weights_and_inputs(tmp_path):
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 6, dtype=np.float16), output="relu")
    x = b.node("Flatten", b.node("GlobalAveragePool", x), output="features")
    model = b.model([x], elem_type=TensorProto.FLOAT16)
    assert_same(embed(tmp_path, model), by_hand(model, "features", dtype=np.float16), 2e-3)


def test_initializers_listed_as_inputs(tmp_path):
    model = small_classifier(ir_version=3, opset=9)
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_external_data_beside_the_file(tmp_path):
    model = small_classifier()
    expected = by_hand(model, "vector")
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = plan_graph(path, "x", P32)
    assert_same(run(graph.build_model(), {INPUT_NAME: PIXELS})[0], expected)


def frozen_classifier(middle=False):
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, stride=2), output="map")
    if middle:
        x = b.node("Reshape", x, b.constant(np.array([1, 2, 4, 16, 16])))
        x = b.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = b.node("Reshape", x, b.constant(np.array([1, 8, 16, 16])), output="shuffled")
    x = b.node("GlobalAveragePool", x, output="pool")
    x = b.node("Reshape", x, b.constant(np.array([1, 8])))
    return b.model([b.node("Softmax", b.gemm(x, 8, 5))], (1, 3, 32, 32))


def test_a_frozen_reshape_behind_the_cut_does_not_freeze_the_batch(tmp_path):
    model = frozen_classifier()
    assert not plan(tmp_path, model).frozen_batch
    assert_same(embed(tmp_path, model), by_hand(model, "pool"))


def test_a_frozen_reshape_in_the_middle_is_freed(tmp_path):
    model = frozen_classifier(middle=True)
    assert plan(tmp_path, model).batching == "thawed"
    assert_same(embed(tmp_path, model), by_hand(model, "pool"))


def test_what_cannot_be_freed_is_run_one_by_one(tmp_path):
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8, stride=2))
    x = b.node("Concat", x, b.weight(1, 8, 16, 16), axis=1)  # for one image only
    model = b.model([b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x), output="pool"), 16, 5)], (1, 3, 32, 32))
    assert plan(tmp_path, model).frozen_batch
    assert_same(embed(tmp_path, model), by_hand(model, "pool"))


def test_a_batch_frozen_at_four_is_refused(tmp_path):
    b = Builder()
    x = b.node("Concat", b.conv("input", 3, 8, stride=2), b.weight(4, 8, 16, 16), axis=1)
    model = b.model([b.node("Flatten", b.node("GlobalAveragePool", x))], (4, 3, 32, 32))
    with pytest.raises(BackboneError, match="frozen at 4 images a run"):
        plan(tmp_path, model)


def headless(activation):
    """Ends in a 1x1 convolution with an activation and global pooling, like MobileNet without its classifier."""
    b = Builder()
    x = b.conv(b.node("Relu", b.conv("input", 3, 6)), 6, 16, kernel=1)
    x = (
        b.node("Clip", x, b.constant(np.float32(0)), b.constant(np.float32(6)))
        if activation == "Clip"
        else (b.node("Relu", x))
    )
    return b, b.node("GlobalAveragePool", x, output="pool")


@pytest.mark.parametrize("activation", ["Clip", "Relu"])
def test_the_output_of_a_headless_network_is_the_embedding(tmp_path, activation):
    b, pool = headless(activation)
    model = b.model([b.node("Flatten", pool, output="output")])
    assert_same(embed(tmp_path, model), by_hand(model, "output"))


def test_squeezenets_convolutional_classifier_is_recognised_by_its_softmax(tmp_path):
    b, pool = headless("Relu")
    model = b.model([b.node("Softmax", b.node("Flatten", pool))])
    graph = plan(tmp_path, model)
    assert (graph.n_features, graph.cuts[0].pooling) == (6, "avg")
    assert_same(embed(tmp_path, model), by_hand(model, "relu1").mean((2, 3)))


def test_a_headless_network_that_ends_in_relu_keeps_its_last_layer(tmp_path):
    b = Builder()
    x = b.node("Flatten", b.node("Relu", b.conv("input", 3, 4, stride=2)))
    model = b.model([b.node("Relu", b.gemm(x, 4 * 16 * 16, 7), output="fc7")])
    assert_same(embed(tmp_path, model), by_hand(model, "fc7"))


def test_vgg_keeps_relu_and_drops_dropout_before_the_classifier(tmp_path):
    b = Builder()
    x = b.node("Flatten", b.node("Relu", b.conv("input", 3, 4, stride=2), output="map"))
    x = b.node("Dropout", b.node("Relu", b.gemm(x, 4 * 16 * 16, 7), output="fc7"))
    model = b.model([b.node("Softmax", b.gemm(x, 7, 5))])
    assert plan(tmp_path, model).layer == "fc7"
    assert_same(embed(tmp_path, model, layer="map", pooling="flatten"), by_hand(model, "map"))


def test_matmul_with_bias_is_a_classifier_too(tmp_path):
    b = Builder()
    x = b.node("ReduceMean", b.node("Relu", b.conv("input", 3, 8)), axes=[2, 3], keepdims=0, output="mean")
    x = b.node("Add", b.node("MatMul", x, b.weight(8, 5)), b.weight(5))
    model = b.model([x])
    assert_same(embed(tmp_path, model), by_hand(model, "mean"))


def test_a_map_as_the_only_output_is_averaged(tmp_path):
    b = Builder()
    model = b.model([b.node("Relu", b.conv("input", 3, 6, stride=2), output="map")])
    assert_same(embed(tmp_path, model), by_hand(model, "map").mean((2, 3)))


def test_a_reshape_of_tokens_is_kept(tmp_path):
    b = Builder()
    x = b.node("Reshape", b.conv("input", 3, 6, stride=2), b.constant(np.array([0, 6, 256])))
    x = b.node("ReduceMax", x, axes=[2], keepdims=1)
    model = b.model([b.gemm(b.node("Squeeze", x, b.constant(np.array([2])), output="tokens"), 6, 5)])
    assert_same(embed(tmp_path, model), by_hand(model, "tokens"))


def test_an_output_called_features_wins(tmp_path):
    model = small_classifier()
    model.graph.output.append(helper.make_empty_tensor_value_info("my_features"))
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["my_features"]))
    assert_same(embed(tmp_path, model), by_hand(model, "scores"))


def test_poolings_of_a_named_map_equal_numpy(tmp_path):
    model = small_classifier()
    activations = by_hand(model, "last_relu")
    expected = {
        None: activations.mean((2, 3)),
        "avg": activations.mean((2, 3)),
        "max": activations.max((2, 3)),
        "gem": (np.clip(activations, 1e-6, None) ** 3).mean((2, 3)) ** (1 / 3),
        "flatten": activations,
    }
    for pooling, values in expected.items():
        assert_same(embed(tmp_path, model, layer="last_relu", pooling=pooling), values)
        assert_same(embed(tmp_path, model, layer="last_map", pooling=pooling), values)
        if pooling is not None:  # the cut moves before the network's own pooling
            assert_same(embed(tmp_path, model, pooling=pooling), values)


def test_gem_pooling_before_opset_eleven(tmp_path):
    model = small_classifier(opset=9)
    values = (np.clip(by_hand(model, "last_relu"), 1e-6, None) ** 3).mean((2, 3)) ** (1 / 3)
    assert_same(embed(tmp_path, model, pooling="gem"), values)


def test_logits_are_the_classifiers_output_before_softmax(tmp_path):
    model = small_classifier()
    assert_same(embed(tmp_path, model, layer="logits"), by_hand(model, "scores"))


def test_float16_precision_stays_close(tmp_path):
    model = small_classifier()
    assert_same(embed(tmp_path, model, precision="float16"), by_hand(model, "vector"), 5e-3)


def test_what_comes_behind_the_cut_is_dropped(tmp_path):
    model = plan(tmp_path, small_classifier()).build_model()
    assert "Gemm" not in {node.op_type for node in model.graph.node}
    assert len(model.graph.initializer) == len(small_classifier().graph.initializer) - 2 + 2  # weights out, scale in


def test_an_unknown_layer_names_the_nearest(tmp_path):
    with pytest.raises(BackboneError, match=r"Got 'last_rela' instead; the nearest names are 'last_relu'"):
        plan(tmp_path, small_classifier(), layer="last_rela")


def test_pooling_without_a_map_says_so(tmp_path):
    b = Builder()
    model = b.model([b.gemm(b.node("Flatten", "input"), 3 * 32 * 32, 5)])
    with pytest.raises(BackboneError, match="has none at or before"):
        plan(tmp_path, model, pooling="avg")


def test_files_that_are_no_image_networks_are_refused(tmp_path):
    garbage = tmp_path / "garbage.onnx"
    for content, message in ((b"hello, I am not ONNX", "is not an ONNX file"), (b"", "is not an ONNX file")):
        garbage.write_bytes(content)
        with pytest.raises(BackboneError, match=message):
            load_model(garbage)
    b = Builder()
    with pytest.raises(BackboneError, match="must be a float tensor of rank 4. Got rank 2 instead"):
        plan(tmp_path, b.model([b.gemm("input", 10, 3)], ("n", 10)))
    with pytest.raises(BackboneError, match="must take images of 3 channels"):
        plan(tmp_path, gray_network())


def gray_network():
    b = Builder()
    return b.model([b.conv("input", 1, 4)], ("n", 1, 32, 32))


def test_a_crop_that_does_not_fit_the_network_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"preprocessing\.crop must be \(32, 32\).* Got \(64, 64\) instead"):
        plan(tmp_path, small_classifier(), Preprocessing((64, 64)))


def test_the_digest_changes_with_everything_that_changes_the_vector(tmp_path):
    path = tmp_path / "b.onnx"
    onnx.save(small_classifier(), path)
    other = Preprocessing((32, 32), 36)
    variants = [
        plan_graph(path, "x", P32),
        plan_graph(path, "y", P32),
        plan_graph(path, "x", other),
        plan_graph(path, "x", P32, "last_relu"),
        plan_graph(path, "x", P32, "last_relu", "max"),
        plan_graph(path, "x", P32, None, None, "float16"),
    ]
    assert len({graph.digest for graph in variants}) == len(variants)
    assert plan_graph(path, "x", P32, "vector").digest == variants[0].digest


def light_path(name):
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")
    return os.path.join(folder, f"light_{name}.onnx")


def he_normal(model, seed=0):
    """Replace the constant weights of the package onnx's `light_*` graphs by seeded He-normal ones."""
    rng = np.random.default_rng(seed)
    sizes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = sizes[node.input[0]].tolist()
            scale = np.sqrt(2 / max(1, np.prod(shape[1:]))) if len(shape) > 1 else 0.5
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
            values = np.abs(values) if len(shape) == 1 else values
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


# half a gigabyte of weights, or some hundreds of nodes
LARGE = ("bvlc_alexnet", "densenet121", "inception_v2", "resnet50", "vgg19", "zfnet512")
LIGHT = {  # name: (size of the embedding, tensor before the classifier in the file)
    "bvlc_alexnet": (4096, "r21"),
    "densenet121": (1024, "r908"),
    "inception_v1": (1024, "r138"),
    "inception_v2": (1024, "r505"),
    "resnet50": (2048, "r172"),
    "shufflenet": (544, "r199"),
    "squeezenet": (512, "r60"),
    "vgg19": (4096, "r43"),
    "zfnet512": (1024, "r19"),
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in LIGHT]
)
def classic(request, tmp_path_factory):
    """The name of a network with its model and its plan: both tests share them, since some have 500 MB of weights."""
    model = he_normal(onnx.load(light_path(request.param)))
    folder = tmp_path_factory.mktemp(request.param)
    yield request.param, model, plan(folder, model, IMAGENET_224)
    shutil.rmtree(folder)


def test_classic_networks_give_their_penultimate_activation(classic):
    name, model, graph = classic
    size, tensor = LIGHT[name]
    pixels = photo(0, 224, 224)[None]
    vectors = embed_with(graph, pixels)
    expected = by_hand(model, tensor, IMAGENET_224, pixels=pixels)
    assert vectors.shape == (1, size)
    assert_same(vectors, expected.mean((2, 3)) if name == "squeezenet" else expected)


def test_files_frozen_at_one_image_run_in_batches_and_give_the_same_vectors(classic):
    graph = classic[2]
    assert graph.batching in ("dynamic", "thawed")
    pixels = np.stack([photo(seed, 224, 224) for seed in range(3)])
    together = run(graph.build_model(), {INPUT_NAME: pixels})[0]
    one = dataclasses.replace(graph, batching="frozen").build_model()
    alone = run_each(one, INPUT_NAME, [row[None] for row in pixels])
    np.testing.assert_array_equal(together, alone)
