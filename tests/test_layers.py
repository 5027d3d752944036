"""Where a backbone is cut: stages, maps, tokens, several layers, quantised networks, and what it all costs."""

import logging

import numpy as np
import onnx
import pytest
from conftest import Builder, photo, save_backbone, small_classifier
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from test_graph import LIGHT, P32, PIXELS, assert_same, by_hand, embed, light_path, plan

from sktransfer import BackboneError, Preprocessing, PretrainedFeatureExtractor, extract, load_backbone
from sktransfer.costs import count_macs, list_layers
from sktransfer.network import Network, load_model
from sktransfer.session import forward_passes

IMAGENET = Preprocessing.from_preset("imagenet", (224, 224))


def network_of(model, preprocessing=P32):
    return Network(model, "test.onnx", preprocessing)


def light_network(name):
    return network_of(onnx.load(light_path(name)), IMAGENET)


def aliases(network):
    return {alias: row for row in list_layers(network) for alias in row.aliases}


def residual_network(opset=13):
    """A stem, two stages of one residual block each, 16 features, 5 classes."""
    b = Builder()
    x = b.node("MaxPool", b.node("Relu", b.conv("input", 3, 8, stride=2)), kernel_shape=[2, 2], strides=[2, 2])
    for outputs, name in ((8, "first"), (16, "second")):
        stride = 1 if name == "first" else 2
        branch = b.conv(b.node("Relu", b.conv(x, 8, outputs, stride=stride)), outputs, outputs)
        x = b.node("Relu", b.node("Add", branch, b.conv(x, 8, outputs, 1, stride)), output=name)
    x = b.node("Flatten", b.node("GlobalAveragePool", x, output="pool"), output="vector")
    return b.model([b.node("Softmax", b.gemm(x, 16, 5, output="scores"))], opset=opset)


def test_the_stages_of_resnet50_end_where_its_paper_says():
    # He et al. 2016, arXiv:1512.03385, table 1: conv2_x to conv5_x
    found = aliases(light_network("resnet50"))
    shapes = [found[f"stage{number}"].shape for number in (1, 2, 3, 4)]
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert "stage5" not in found
    assert found["last_map"] == found["stage4"]
    assert (found["penultimate"].n_features, found["logits"].n_features) == (2048, 1000)


@pytest.mark.parametrize(
    ("name", "published"),
    # torchvision.models, "GFLOPS" (multiply-adds) of resnet50, vgg19, squeezenet1_1, densenet121
    [("resnet50", 4.09e9), ("vgg19", 19.63e9), ("squeezenet", 0.35e9), ("densenet121", 2.83e9)],
)
def test_multiplications_are_those_that_are_published(name, published):
    network = light_network(name)
    assert count_macs(network, network.model.graph.node) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", LIGHT)
def test_every_alias_works_on_classic_networks(name):
    rows = list_layers(light_network(name))
    found = {alias: row for row in rows for alias in row.aliases}
    assert {"stage1", "last_map", "penultimate", "logits"} <= set(found)
    costs = [row.macs for row in rows]
    assert costs == sorted(costs)
    assert found["logits"].macs >= found["penultimate"].macs >= found["last_map"].macs >= found["stage1"].macs


def test_every_alias_works_on_the_embedded_backbone():
    backbone = load_backbone("default")
    found = aliases(network_of(load_model(backbone.path), backbone.preprocessing))
    assert {f"stage{i}" for i in (1, 2, 3, 4)} | {"last_map", "penultimate", "logits"} == set(found)
    for alias, row in found.items():
        assert extract([photo(0)], layer=alias).shape == (1, row.n_features)


def test_a_widened_map_inside_the_next_block_is_not_the_end_of_a_stage():
    b = Builder()
    x = b.node("Relu", b.conv("input", 3, 8))
    x = b.node("Add", b.conv(b.node("Relu", b.conv(x, 8, 24, 1)), 24, 8, 1), x, output="block")
    wide = b.node("Relu", b.conv(x, 8, 24, 1), output="widened")
    x = b.node("Relu", b.conv(wide, 24, 16, stride=2))
    model = b.model([b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 16, 5)])
    assert aliases(network_of(model))["stage1"].name == "block"


def test_two_averaged_classifiers_have_what_both_see(tmp_path):
    b = Builder()
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv("input", 3, 8))), output="features_of_both")
    heads = [b.gemm(b.node("Mul", x, b.weight(8)), 8, 5) for _ in range(2)]
    model = b.model([b.node("Div", b.node("Add", *heads), b.constant(np.float32(2)), output="scores")])
    assert_same(embed(tmp_path, model), by_hand(model, "features_of_both"))


def test_the_only_value_of_an_axis_taken_by_its_index_is_a_reshape(tmp_path):
    b = Builder()
    x = b.node("GlobalAveragePool", b.node("Relu", b.conv("input", 3, 8)), output="pool")
    x = b.conv(x, 8, 5, kernel=1)
    for _ in range(2):
        x = b.node("Gather", x, b.constant(np.array(0)), axis=2)
    model = b.model([x])
    assert_same(embed(tmp_path, model), by_hand(model, "pool"))


def test_a_stage_is_its_map_averaged(tmp_path):
    model = residual_network()
    for layer, tensor in (("stage1", "first"), ("stage2", "second"), ("last_map", "second")):
        assert_same(embed(tmp_path, model, layer=layer), by_hand(model, tensor).mean((2, 3)))
    assert_same(embed(tmp_path, model, layer="logits"), by_hand(model, "scores"))


def test_average_maximum_and_generalised_mean_of_one_map(tmp_path):
    model = residual_network()
    values = by_hand(model, "second").astype(np.float64)
    expected = {
        "avg": values.mean((2, 3)),
        "max": values.max((2, 3)),
        "gem": (np.maximum(values, 1e-6) ** 3).mean((2, 3)) ** (1 / 3),  # Radenović et al. 2018, equation 3
        "flatten": values,
    }
    vectors = {pooling: embed(tmp_path, model, pooling=pooling) for pooling in expected}
    for pooling, value in expected.items():
        assert_same(vectors[pooling], value)
    assert not np.allclose(vectors["avg"], vectors["max"])
    assert not np.allclose(vectors["avg"], vectors["gem"], rtol=1e-3)


def test_pooling_goes_back_to_the_map_before_a_vector(tmp_path):
    model = residual_network()
    assert_same(embed(tmp_path, model, layer="vector", pooling="max"), by_hand(model, "second").max((2, 3)))
    assert_same(embed(tmp_path, model, layer="stage1", pooling="max"), by_hand(model, "first").max((2, 3)))


def test_pooling_without_any_map_is_refused(tmp_path):
    b = Builder()
    x = b.node("Relu", b.gemm(b.node("Flatten", "input"), 3072, 8))
    model = b.model([b.gemm(x, 8, 5)])
    with pytest.raises(BackboneError, match=r"pooling needs a map .* has none at or before 'relu2'; use pooling=None"):
        plan(tmp_path, model, pooling="avg")


def test_several_layers_are_concatenated_and_computed_in_one_pass(tmp_path):
    path = save_backbone(tmp_path / "residual", residual_network())
    names = ["stage1", "penultimate", "logits"]
    parts = np.hstack([extract([photo(0)], path, layer=name) for name in names])
    before = forward_passes()
    together = extract([photo(0)], path, layer=names)
    assert (together.shape, forward_passes() - before) == ((1, 8 + 16 + 5), 1)
    np.testing.assert_array_equal(together, parts)
    pooled = extract([photo(0)], path, layer=("stage1", "stage2"), pooling="max")
    assert_same(pooled, np.hstack([extract([photo(0)], path, layer=n, pooling="max") for n in ("stage1", "stage2")]))


@pytest.mark.parametrize("layer", [[], [None], 3, ["stage1", 2]])
def test_layers_that_are_no_names_are_refused(layer):
    with pytest.raises(ValueError, match="layer must be None, a name or a list of names. Got"):
        extract([photo(0)], layer=layer)


def test_a_grid_over_backbones_and_layers(tmp_path):
    paths = [str(save_backbone(tmp_path / str(opset), residual_network(opset))) for opset in (13, 15)]
    pipeline = make_pipeline(PretrainedFeatureExtractor(), KNeighborsClassifier(1))
    grid = {
        "pretrainedfeatureextractor__backbone": [*paths, "default"],
        "pretrainedfeatureextractor__layer": ["stage1", ["stage1", "stage2"], "penultimate", "logits"],
    }
    photos = [photo(seed) for seed in range(8)]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(photos, [0, 1] * 4)
    assert len(search.cv_results_["params"]) == 12


def test_a_stage_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(BackboneError, match=r"has stage1 to stage2\. Got 'stage3' instead"):
        plan(tmp_path, residual_network(), layer="stage3")
    with pytest.raises(BackboneError, match=r"has no stages\. Got 'stage1' instead"):
        plan(tmp_path, vision_transformer(), layer="stage1")


def test_a_network_without_a_classifier_has_no_logits(tmp_path):
    b = Builder()
    model = b.model([b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv("input", 3, 6))))])
    with pytest.raises(BackboneError, match='has no classifier, and so no layer "logits"'):
        plan(tmp_path, model, layer="logits")


# -- tokens and channels-last maps ------------------------------------------------------------------------------------


def vision_transformer(class_token=True, head=False):
    """Patches of 8x8 pixels, a class token, one mixing layer and LayerNormalization; tokens (n, 17, 12)."""
    b = Builder()
    size = {"kernel_shape": [8, 8], "strides": [8, 8]}
    x = b.node("Conv", "input", b.weight(12, 3, 8, 8), output="patches", **size)
    x = b.node("Transpose", b.node("Reshape", x, b.constant(np.array([0, 12, 16]))), perm=[0, 2, 1])
    if class_token:
        shape = b.node("Concat", b.node("Slice", b.node("Shape", x), b.constant(np.array([0])), b.constant(
            np.array([1]))), b.constant(np.array([1, 12])), axis=0)  # fmt: skip
        x = b.node("Concat", b.node("Expand", b.weight(1, 1, 12), shape), x, axis=1)
    mixed = b.node("MatMul", b.weight(17 if class_token else 16, 17 if class_token else 16), x)
    x = b.node("Add", mixed, x)
    x = b.node("LayerNormalization", x, b.constant(np.ones(12, np.float32)), b.weight(12), axis=-1, output="tokens")
    if head:
        x = b.node("Gather", x, b.constant(np.array(0)), axis=1, output="class_token")
        x = b.gemm(x, 12, 5)
    return b.model([x], opset=17)


def test_of_tokens_the_class_token_is_the_embedding(tmp_path):
    model = vision_transformer()
    assert_same(embed(tmp_path, model), by_hand(model, "tokens")[:, 0])
    model = vision_transformer(head=True)
    assert_same(embed(tmp_path, model), by_hand(model, "class_token"))
    assert_same(embed(tmp_path, model, layer="tokens"), by_hand(model, "class_token"))


def test_without_a_class_token_tokens_are_averaged(tmp_path):
    model = vision_transformer(class_token=False)
    assert_same(embed(tmp_path, model), by_hand(model, "tokens").mean(1))


def test_explicit_pooling_takes_the_tokens_of_the_patches(tmp_path):
    model = vision_transformer(head=True)
    patches = by_hand(model, "tokens")[:, 1:].astype(np.float64)
    assert_same(embed(tmp_path, model, pooling="avg"), patches.mean(1))
    assert_same(embed(tmp_path, model, pooling="max"), patches.max(1))
    assert_same(embed(tmp_path, model, pooling="gem"), (np.maximum(patches, 1e-6) ** 3).mean(1) ** (1 / 3))
    assert_same(embed(tmp_path, model, pooling="flatten"), by_hand(model, "tokens"))


def test_tokens_that_are_pooled_as_channels_first_are_still_tokens(tmp_path):
    source = vision_transformer(class_token=False)
    b = Builder()
    b.nodes, b.weights = list(source.graph.node), list(source.graph.initializer)
    x = b.node("GlobalAveragePool", b.node("Transpose", "tokens", perm=[0, 2, 1]))
    model = b.model([b.gemm(b.node("Flatten", x, output="mean"), 12, 5)], opset=17)
    assert_same(embed(tmp_path, model), by_hand(model, "mean"))
    assert_same(embed(tmp_path, model, pooling="max"), by_hand(model, "tokens").max(1))


def test_a_network_whose_every_size_is_dynamic(tmp_path):
    model = residual_network()
    for size, name in zip(model.graph.input[0].type.tensor_type.shape.dim, "nchw", strict=True):
        size.dim_param = name
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_maps_with_the_channels_last_are_pooled_over_their_pixels(tmp_path):
    b = Builder()
    x = b.node("Transpose", b.node("Relu", b.conv("input", 3, 6, stride=2)), perm=[0, 2, 3, 1])
    model = b.model([b.node("Add", x, b.weight(6), output="map")])
    for pooling, expected in (("avg", by_hand(model, "map").mean((1, 2))), ("max", by_hand(model, "map").max((1, 2)))):
        assert_same(embed(tmp_path, model, pooling=pooling), expected)
    assert_same(embed(tmp_path, model), by_hand(model, "map").mean((1, 2)))


# -- quantised networks -----------------------------------------------------------------------------------------------


class Photos(CalibrationDataReader):
    def __init__(self):
        x = (PIXELS * P32.scale - np.array(P32.mean)) / np.array(P32.std)
        self.batches = iter([{"input": x.transpose(0, 3, 1, 2).astype(np.float32)}])

    def get_next(self):
        return next(self.batches, None)


def quantize(model, path, form):
    onnx.save(model, path.with_suffix(".float.onnx"))
    logging.disable(logging.WARNING)
    try:
        if form == "dynamic":
            quantize_dynamic(path.with_suffix(".float.onnx"), path, weight_type=QuantType.QUInt8)
        else:
            quantize_static(path.with_suffix(".float.onnx"), path, Photos(), quant_format=QuantFormat[form])
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


@pytest.mark.parametrize(
    ("form", "tensor", "scale"),
    [("QDQ", "vector_DequantizeLinear_Output", None), ("QOperator", "vector_quantized", "vector"),
     ("dynamic", "vector", None)],
)  # fmt: skip
def test_quantised_networks_give_the_numbers_before_the_classifier(tmp_path, form, tensor, scale):
    model = quantize(residual_network(), tmp_path / "int8.onnx", form)
    expected = by_hand(model, tensor)
    if scale is not None:
        # Flatten keeps the scale of the pooling before it
        weights = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
        expected = (expected - weights["pool_zero_point"].astype(float)) * weights["pool_scale"]
    assert_same(embed(tmp_path, model), expected)
    assert_same(embed(tmp_path, model), by_hand(residual_network(), "vector"), 0.05)
    assert {"stage1", "stage2", "last_map", "penultimate", "logits"} == set(aliases(network_of(model)))


# -- batches ----------------------------------------------------------------------------------------------------------


def test_shufflenet_is_freed_in_the_middle(tmp_path):
    assert plan(tmp_path, onnx.load(light_path("shufflenet")), IMAGENET).batching == "thawed"


def test_a_transposed_batch_is_not_mixed_up(tmp_path):
    b = Builder()
    x = b.node("Flatten", b.conv("input", 3, 4, stride=4), axis=2)  # (4, 64): no batch comes first any more
    x = b.node("Reshape", b.node("Transpose", x, perm=[1, 0]), b.constant(np.array([1, 256])), output="vector")
    model = b.model([b.gemm(x, 256, 5)], (1, 3, 32, 32))
    assert plan(tmp_path, model).frozen_batch
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_a_scale_that_images_of_a_run_would_share_is_taken_from_each_alone(tmp_path):
    model = quantize(residual_network(), tmp_path / "int8.onnx", "dynamic")
    assert plan(tmp_path, model).frozen_batch


def test_small_classifier_is_dynamic(tmp_path):
    assert plan(tmp_path, small_classifier()).batching == "dynamic"
