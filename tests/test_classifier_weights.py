"""A network's own classifier as numbers: every form of head, what is refused, and the labels."""

import dataclasses
import json

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import Builder, photo, save_backbone, small_classifier
from onnx import TensorProto, helper, numpy_helper
from sklearn.pipeline import make_pipeline
from test_graph import PIXELS, frozen_classifier, he_normal, light_path
from test_layers import quantize, residual_network

from sktransfer import (
    Backbone,
    BackboneError,
    Preprocessing,
    PretrainedFeatureExtractor,
    TransferLogisticRegression,
    extract,
    load_backbone,
)

IMAGES = [photo(seed) for seed in range(5)]


def stack(weights):
    """Coefficients (k, d) and intercepts (k,)."""
    pairs = list(weights.values())
    return np.stack([coefficients for coefficients, _ in pairs]), np.array([intercept for _, intercept in pairs])


def assert_reproduces(backbone, images=IMAGES, tolerance=1e-5):
    """The weights over the default embeddings give what onnxruntime computes as logits."""
    coefficients, intercepts = stack(load_backbone(backbone).classifier_weights())
    logits = extract(images, backbone, layer="logits", n_jobs=1)
    found = extract(images, backbone, n_jobs=1) @ coefficients.T + intercepts
    assert coefficients.dtype == np.float64
    assert found.shape == logits.shape
    assert np.abs(found - logits).max() <= tolerance * np.abs(logits).max()


def trunk(b, dtype=np.float32):
    """A map (n, 8, 8, 8) behind a ReLU."""
    x = b.node("Relu", b.conv("input", 3, 6, stride=2, dtype=dtype))
    return b.node("Relu", b.conv(x, 6, 8, stride=2, dtype=dtype), output="map")


def pooled(b):
    return b.node("GlobalAveragePool", trunk(b), output="pooled")


def flat(b):
    return b.node("Flatten", pooled(b))


def scaled_gemm(b):
    return b.node("Gemm", flat(b), b.weight(5, 8), b.weight(5), transB=1, alpha=0.5, beta=3.0)


def matmul_and_bias(b):
    return b.node("Add", b.weight(5), b.node("MatMul", b.node("Dropout", flat(b)), b.weight(8, 5)))


def matmul_of_a_transposed_weight(b):
    return b.node("MatMul", flat(b), b.node("Transpose", b.weight(5, 8), perm=[1, 0]))


def convolution(b):
    return b.node("Flatten", b.conv(pooled(b), 8, 5, kernel=1))


def convolution_and_softmax_over_channels(b):
    return b.node("Softmax", b.node("Identity", b.conv(b.node("Dropout", pooled(b)), 8, 5, kernel=1)), axis=1)


def convolution_before_pooling(b):
    x = b.node("GlobalAveragePool", b.conv(trunk(b), 8, 5, kernel=1))
    return b.node("Softmax", b.node("Flatten", x))


def temperature(b):
    x = b.node("Div", b.gemm(flat(b), 8, 5), b.constant(np.float32(0.25)))
    return b.node("Softmax", b.node("Sub", x, b.weight(5)))


def scaled_embedding(b):
    return b.gemm(b.node("Mul", flat(b), b.constant(np.float32(7))), 8, 5)


def reshape_by_the_graph(b, tensor="map"):
    """TorchScript's x.view(y.size(0), -1), with the size of an earlier tensor."""
    x = pooled(b)
    n = b.node("Gather", b.node("Shape", tensor), b.constant(np.int64(0)))
    target = b.node("Concat", b.node("Unsqueeze", n, b.constant(np.array([0]))), b.constant(np.array([8])), axis=0)
    return b.node("Softmax", b.gemm(b.node("Reshape", x, target), 8, 5))


def reshape_by_the_image(b):
    return reshape_by_the_graph(b, "input")


def half_behind_a_cast(b):
    half = b.node("Cast", b.weight(8, 5, dtype=np.float16), to=TensorProto.FLOAT)
    return b.node("Gemm", flat(b), half)


def constant_node(b):
    values = numpy_helper.from_array(b.rng.standard_normal((8, 5)).astype(np.float32))
    return b.node("MatMul", flat(b), b.node("Constant", value=values))


def flattened_map(b):
    return b.node("Softmax", b.gemm(b.node("Flatten", trunk(b)), 8 * 8 * 8, 5))


def channels_last(b):
    x = b.node("Transpose", trunk(b), perm=[0, 2, 3, 1])
    return b.gemm(b.node("ReduceMean", x, axes=[1, 2], keepdims=0), 8, 5)


HEADS = [
    scaled_gemm, matmul_and_bias, matmul_of_a_transposed_weight, convolution,
    convolution_and_softmax_over_channels, convolution_before_pooling, temperature, scaled_embedding,
    reshape_by_the_graph, reshape_by_the_image, half_behind_a_cast, constant_node, flattened_map, channels_last,
]  # fmt: skip


def save_head(folder, head, shape=("n", 3, 32, 32)):
    b = Builder()
    return save_backbone(folder, b.model([head(b)], shape))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_form_of_head_reproduces_the_logits(tmp_path, head):
    assert_reproduces(save_head(tmp_path, head))


@pytest.mark.parametrize("head", [scaled_gemm, convolution, convolution_before_pooling, flattened_map])
def test_a_file_for_one_image_a_run_is_read_as_well(tmp_path, head):
    assert_reproduces(save_head(tmp_path, head, (1, 3, 32, 32)))


def test_reshapes_that_state_one_image_are_freed_or_run_one_by_one(tmp_path):
    assert_reproduces(save_backbone(tmp_path / "thawed", frozen_classifier()))
    b = Builder()
    x = b.node("Concat", b.node("Flatten", pooled(b)), b.weight(1, 2), axis=1)  # for one image only
    assert_reproduces(save_backbone(tmp_path / "frozen", b.model([b.gemm(x, 10, 5)], (1, 3, 32, 32))))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
def test_every_opset_is_read(tmp_path, opset):
    assert_reproduces(save_backbone(tmp_path, small_classifier(opset=opset)))


def test_the_weights_are_those_of_the_file_to_the_last_bit(tmp_path):
    model = small_classifier()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    coefficients, intercepts = stack(load_backbone(save_backbone(tmp_path, model)).classifier_weights())
    np.testing.assert_array_equal(coefficients.astype(np.float32), stored[gemm.input[1]].T)
    np.testing.assert_array_equal(intercepts, stored[gemm.input[2]])


def test_a_small_weight_beside_a_large_bias_keeps_its_digits(tmp_path):
    b = Builder()
    weight = b.rng.uniform(1e-6, 2e-6, (8, 5)).astype(np.float32)
    x = b.node("Gemm", flat(b), b.constant(weight), b.constant(np.full(5, 1e3, np.float32)))
    coefficients, _ = stack(load_backbone(save_backbone(tmp_path, b.model([x]))).classifier_weights())
    np.testing.assert_allclose(coefficients, weight.T, rtol=1e-6)


def test_a_network_in_float16_is_read_without_rounding(tmp_path):
    b = Builder()
    x = b.node("Flatten", b.node("GlobalAveragePool", trunk(b, np.float16)))
    weight, bias = b.weight(8, 5, dtype=np.float16), b.weight(5, dtype=np.float16)
    model = b.model([b.node("Gemm", x, weight, bias)], elem_type=TensorProto.FLOAT16)
    path = save_backbone(tmp_path, model)
    coefficients, _ = stack(load_backbone(path).classifier_weights())
    np.testing.assert_allclose(coefficients, numpy_helper.to_array(b.weights[-2]).T, rtol=1e-12)
    assert_reproduces(path, tolerance=5e-3)


def test_embedding_and_logits_that_are_both_outputs_need_not_follow_each_other(tmp_path):
    b = Builder()
    x = trunk(b)
    features = b.node("Flatten", b.node("GlobalAveragePool", x), output="features")
    logits = b.node("Flatten", b.node("GlobalAveragePool", b.conv(x, 8, 5, kernel=1)), output="logits")
    assert_reproduces(save_backbone(tmp_path, b.model([logits, features])))


def test_an_int8_file_gives_its_logits_but_for_their_rounding(tmp_path):
    model = quantize(residual_network(), tmp_path / "int8.onnx", "QDQ")
    assert_reproduces(save_backbone(tmp_path, model), PIXELS, tolerance=0.01)  # those that ranges were measured on


@pytest.mark.parametrize(
    ("form", "found"), [("QOperator", "no linear classifier"), ("dynamic", "DynamicQuantizeLinear between")]
)
def test_heads_that_compute_in_integers_are_refused(tmp_path, form, found):
    path = save_backbone(tmp_path, quantize(residual_network(), tmp_path / "int8.onnx", form))
    with pytest.raises(BackboneError, match=found):
        load_backbone(path).classifier_weights()


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_of_int8_are_dequantised(tmp_path, per_channel):  # onnxruntime rounds the embedding, too, for them
    b = Builder()
    whole = b.rng.integers(-128, 128, (8, 5)).astype(np.int8)
    scale = np.linspace(0.01, 0.05, 5, dtype=np.float32) if per_channel else np.float32(0.01)
    zero = np.arange(5, dtype=np.int8) if per_channel else np.int8(3)
    x = b.node("MatMul", flat(b), b.node("DequantizeLinear", *map(b.constant, (whole, scale, zero))))
    coefficients, _ = stack(load_backbone(save_backbone(tmp_path, b.model([x]))).classifier_weights())
    np.testing.assert_allclose(coefficients.T, (whole - zero.astype(np.float64)) * scale, rtol=1e-12)


def test_rounding_that_stands_for_a_relu_is_refused(tmp_path):
    b = Builder()
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(0))
    x = b.node("QuantizeLinear", b.conv(trunk(b), 8, 5, kernel=1), scale, zero)
    x = b.node("GlobalAveragePool", b.node("DequantizeLinear", x, scale, zero))
    path = save_backbone(tmp_path, b.model([b.node("Softmax", b.node("Flatten", x))]))
    with pytest.raises(BackboneError, match="replaces a Relu between them instead; take its float32 original"):
        load_backbone(path).classifier_weights()


def squeezenet(b):
    x = b.node("GlobalAveragePool", b.node("Relu", b.conv(trunk(b), 8, 5, kernel=1)))
    return b.node("Softmax", b.node("Flatten", x))


def mean_of_a_part(b):
    x = b.node("AveragePool", b.conv(trunk(b), 8, 5, kernel=1), kernel_shape=[7, 7], strides=[2, 2])  # of 8 x 8
    return b.node("Softmax", b.node("Flatten", x))


def bilinear(b):
    x = b.node("Add", flat(b), b.constant(np.float32(0)))
    return b.node("Softmax", b.node("Mul", b.gemm(x, 8, 5), b.node("ReduceMean", x, axes=[1])))


def without_classifier(b):
    return b.node("Identity", flat(b), output="features")


def projection(b):
    return b.gemm(flat(b), 8, 5, output="image_embeds")


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (squeezenet, "must be a linear function of its embedding. Got Relu between them instead; fit a classifier on"),
        (bilinear, "Got another function between them"),
        (mean_of_a_part, "Got another function between them"),
        (without_classifier, "has no linear classifier over its embedding; fit one on the embeddings"),
        (projection, "has no linear classifier over its embedding; fit one on the embeddings"),
    ],
)
def test_what_is_no_linear_head_is_refused_in_a_sentence(tmp_path, head, sentence):
    with pytest.raises(BackboneError, match=sentence):
        load_backbone(save_head(tmp_path, head)).classifier_weights()


def test_a_head_that_cannot_be_computed_is_named(tmp_path):
    b = Builder()
    scale, zero = b.constant(np.full(3, 0.1, np.float32)), b.constant(np.full(3, 128, np.uint8))  # for 5 channels
    x = b.node("DequantizeLinear", b.node("QuantizeLinear", b.gemm(flat(b), 8, 5), scale, zero), scale, zero)
    path = save_backbone(tmp_path, b.model([b.node("Softmax", x)]))
    with pytest.raises(BackboneError, match=r"QuantizeLinear \(node ''\) of .* could not be computed"):
        load_backbone(path).classifier_weights()


def test_another_default_layer_is_refused_with_the_way_out(backbone_file):
    backbone = dataclasses.replace(load_backbone(backbone_file), layer="last_relu")
    assert len(backbone.classifier_weights()) == 5  # the map whose mean is the penultimate activation
    with pytest.raises(
        BackboneError, match=r"embedding is the layer 'relu1' here; dataclasses.replace\(backbone, layer"
    ):
        dataclasses.replace(backbone, layer="relu1").classifier_weights()
    assert len(dataclasses.replace(backbone, layer="vector").classifier_weights()) == 5


def test_the_embedded_backbone_has_named_classes():
    assert_reproduces("default")
    weights = load_backbone("default").classifier_weights()
    assert (len(weights), next(iter(weights))) == (200, "goldfish, Carassius auratus")


def test_a_backbone_of_unknown_preprocessing_has_its_weights_too(tmp_path):
    path = tmp_path / "bare.onnx"
    onnx.save(small_classifier(), path)
    assert list(load_backbone(path).classifier_weights()) == [0, 1, 2, 3, 4]


def test_a_file_that_has_changed_since_is_refused(tmp_path):
    backbone = load_backbone(save_backbone(tmp_path, small_classifier()))
    save_backbone(tmp_path, small_classifier(seed=1))
    with pytest.raises(BackboneError, match="the file has changed since"):
        backbone.classifier_weights()


@pytest.mark.parametrize("labels", [list("abcde"), np.array(list("abcde")), pd.Index(list("abcde"))])
def test_labels_name_the_outputs_in_their_order(backbone_file, labels):
    backbone = load_backbone(backbone_file)
    assert list(backbone.classifier_weights()) == [0, 1, 2, 3, 4]
    named, numbered = backbone.classifier_weights(labels), backbone.classifier_weights()
    assert list(named) == list("abcde")
    np.testing.assert_array_equal(stack(named)[0], stack(numbered)[0])


@pytest.mark.parametrize(
    ("labels", "got"),
    [(["a", "b"], "Got 2 instead"), (list("abcda"), "Got 'a' 2 times instead"), ("abcde", "Got 'abcde'"), (5, "Got 5")],
)
def test_labels_that_do_not_fit_are_refused(backbone_file, labels, got):
    with pytest.raises(ValueError, match=f"labels must be 5 different class labels, one for each output of .*{got}"):
        load_backbone(backbone_file).classifier_weights(labels)


@pytest.mark.parametrize("folder", ["", "onnx"])
def test_classes_are_read_from_a_configuration_beside_the_file(tmp_path, folder):
    path = save_backbone(tmp_path / folder, small_classifier())
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): f"class {i}" for i in range(5)}}))
    assert list(load_backbone(path).classifier_weights()) == [f"class {i}" for i in range(5)]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): "crane" for i in range(5)}}))
    assert list(load_backbone(path).classifier_weights()) == [0, 1, 2, 3, 4]


def test_unreadable_classes_are_an_error_unless_labels_are_given(tmp_path):
    model = small_classifier()
    helper.set_model_props(model, {"sktransfer.classes": "not JSON"})
    backbone = load_backbone(save_backbone(tmp_path, model))
    with pytest.raises(BackboneError, match="classes that .* states cannot be read: JSONDecodeError.*pass labels="):
        backbone.classifier_weights()
    assert list(backbone.classifier_weights(list("vwxyz"))) == list("vwxyz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v1", "shufflenet"])
def test_classic_networks_are_read(tmp_path, name):
    path = tmp_path / "model.onnx"
    onnx.save(he_normal(onnx.load(light_path(name))), path)
    backbone = Backbone(name, path, preprocessing=Preprocessing.from_preset("imagenet", (224, 224)))
    assert len(backbone.classifier_weights()) == 1000
    assert_reproduces(backbone, IMAGES[:2])


# -- real networks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clothing(assets):
    return sorted((assets / "datasets" / "clothing" / "images").glob("*.jpg"))[:5]


def test_the_weights_of_mobilenet_are_its_own(assets, clothing):
    folder = assets / "models" / "mobilenetv1_0.25_128"
    assert_reproduces(folder, clothing)
    stored = {tensor.name: tensor for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    coefficients, intercepts = stack(load_backbone(folder).classifier_weights())
    expected = numpy_helper.to_array(stored["m0_op28.weight"])[:, :, 0, 0]
    np.testing.assert_array_equal(coefficients.astype(np.float32), expected)
    np.testing.assert_array_equal(intercepts, numpy_helper.to_array(stored["m0_op28.bias"]))


@pytest.mark.parametrize("name", ["squeezenet1.1", "squeezenet1.1_winml_fp16"])
def test_squeezenet_has_a_relu_before_its_pooling_and_is_refused(assets, name):
    with pytest.raises(BackboneError, match="Got Relu between them instead"):
        load_backbone(assets / "models" / name).classifier_weights()


@pytest.mark.parametrize("name", ["mobilenetv2_features", "resnet18_layer3", "inception_v3_mixed8"])
def test_networks_without_their_classifier_say_so(assets, name):
    with pytest.raises(BackboneError, match="has no linear classifier over its embedding"):
        load_backbone(assets / "models" / name).classifier_weights()


def test_a_head_behind_the_extractor_starts_from_the_networks_own_classifier():
    weights = load_backbone("default").classifier_weights()
    logits = extract(IMAGES, layer="logits")
    labels = list(weights)
    own = [labels[column] for column in logits.argmax(axis=1)]
    rest = [label for label in labels[:3] if label not in own]  # a target needs two classes
    head = TransferLogisticRegression(weights, source_weight=1e9)
    pipeline = make_pipeline(PretrainedFeatureExtractor(), head).fit(IMAGES + IMAGES[: len(rest)], own + rest)
    assert pipeline.predict(IMAGES).tolist() == own
    assert len(head.unused_source_classes_) == len(weights) - len(head.classes_)
