"""Fine-tuning: torch computes what onnxruntime does, and the file is the same graph with new weights."""

import dataclasses
import json
import math
import re
import sys

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import Builder, photo, save_backbone, small_classifier
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from test_graph import P32, PIXELS, assert_same, by_hand, run
from test_layers import residual_network

from sktransfer import BackboneError, ImageReadError, MissingExtraError, extract, finetune_backbone, load_backbone
from sktransfer import quantize_backbone as quantize
from sktransfer.finetune.card import read_card
from sktransfer.finetune.operators import Call
from sktransfer.finetune.part import TrainedPart
from sktransfer.finetune.recipe import Recipe
from sktransfer.finetune.rows import normalise
from sktransfer.finetune.spatial import OPERATORS
from sktransfer.finetune.task import fit_head, read_task
from sktransfer.finetune.tuning import find_source
from sktransfer.finetune.views import draw_box
from sktransfer.layers import find_stages, resolve_layer
from sktransfer.network import Network, describe_file, load_model
from sktransfer.session import forward_passes

torch = pytest.importorskip("torch", reason="the tests on fine-tuning need torch")

PHOTOS = [photo(seed, 40, 32) for seed in range(24)]
LABELS = np.array(["coat", "hat", "shoe"])[np.arange(24) % 3]
MODELS = (
    "inception_v3_mixed8", "mobilenetv1_0.25_128", "mobilenetv2_features", "resnet18_layer3", "resnet50v2_stage3",
    "squeezenet1.1", "squeezenet1.1_winml_fp16", "tiny-v1",
)  # fmt: skip


@pytest.fixture
def residual(tmp_path):
    return save_backbone(tmp_path / "residual", residual_network())


@pytest.fixture
def tune(residual, tmp_path):
    """`finetune_backbone` on 24 photos, quickly and on one thread."""

    def call(backbone=residual, images=PHOTOS, y=LABELS, name="tuned.onnx", **options):
        settings = {"epochs": 2, "n_jobs": 1, "validation_fraction": 0.25, "n_views": 1, "output": tmp_path / name}
        return finetune_backbone(backbone, images, y, **{**settings, **options})

    return call


def make_part(model_or_path, source=None, preprocessing=P32):
    """The part behind `source`, or all of it, of a model in memory or of a file."""
    model = load_model(model_or_path) if isinstance(model_or_path, type(P32.crop)) else model_or_path
    network = Network(model, "model.onnx", preprocessing)
    return TrainedPart(network, source or network.image_input.name, resolve_layer(network, None, None))


def weights_of(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def run_part(part, x):
    with torch.no_grad():
        return part.run(torch.from_numpy(np.ascontiguousarray(x))).numpy()


# Operators


def maps(*shape):
    return np.random.default_rng(0).normal(size=shape or (2, 4, 9, 11)).astype(np.float32)


OPERATOR_CASES = [
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [maps(), maps(6, 4, 3, 3), maps(6)], 13),
    ("Conv", {"pads": [0, 1, 2, 0], "dilations": [2, 1]}, [maps(), maps(6, 4, 3, 3)], 13),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, [maps(), maps(6, 4, 4, 3)], 13),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 2}, [maps(), maps(6, 2, 4, 2)], 13),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [maps()], 12),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, [maps()], 7),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [maps()], 11),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1}, [maps()], 11),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [maps()], 19),
    ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, [maps()], 11),
    ("GlobalAveragePool", {}, [maps()], 13),
    ("GlobalMaxPool", {}, [maps()], 13),
    ("BatchNormalization", {"epsilon": 1e-3}, [maps(), maps(4), maps(4), maps(4), np.abs(maps(4))], 9),
    ("InstanceNormalization", {}, [maps(), maps(4), maps(4)], 13),
    ("LayerNormalization", {"axis": -1}, [maps(), maps(11), maps(11)], 17),
    ("LRN", {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}, [maps()], 13),
    ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 2.0}, [maps()], 7),
    ("Pad", {"mode": "reflect"}, [maps(), np.array([0, 0, 1, 2, 0, 0, 3, 0])], 13),
    ("Pad", {}, [maps(), np.array([1, 2]), np.float32(3), np.array([2])], 18),
    ("Clip", {"min": -0.5, "max": 0.5}, [maps()], 7),
    ("Clip", {}, [maps(), np.float32(-0.5), np.float32(0.5)], 13),
    ("LeakyRelu", {"alpha": 0.2}, [maps()], 13),
    ("PRelu", {}, [maps(), maps(4, 1, 1)], 13),
    ("Elu", {"alpha": 0.7}, [maps()], 13),
    ("Selu", {}, [maps()], 13),
    ("HardSigmoid", {"alpha": 0.3}, [maps()], 13),
    ("HardSwish", {}, [maps()], 14),
    ("Sigmoid", {}, [maps()], 13),
    ("Erf", {}, [maps()], 13),
    ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, [maps(5, 4), maps(3, 4), maps(3)], 13),
    ("Gemm", {"transA": 1}, [maps(4, 5), maps(4, 3)], 13),
    ("MatMul", {}, [maps(2, 5, 4), maps(4, 3)], 13),
    ("Softmax", {"axis": 1}, [maps()], 11),
    ("LogSoftmax", {"axis": 1}, [maps()], 13),
    ("Div", {}, [np.array([-7, 7]), np.array([2, 2])], 13),
    ("Sum", {}, [maps(3), maps(3), maps(3)], 13),
    ("Mean", {}, [maps(3), -2 * maps(3)], 13),
    ("Pow", {}, [np.abs(maps(3)), np.float32(0.5)], 13),
    ("Flatten", {"axis": 2}, [maps()], 13),
    ("Reshape", {}, [maps(), np.array([0, -1])], 13),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [maps()], 13),
    ("Squeeze", {"axes": [2, 3]}, [maps(2, 4, 1, 1)], 11),
    ("Squeeze", {}, [maps(2, 4, 1, 1), np.array([-1])], 13),
    ("Unsqueeze", {"axes": [1, 3]}, [maps(2, 4)], 11),
    ("Unsqueeze", {}, [maps(2, 4), np.array([-1])], 13),
    ("Concat", {"axis": 1}, [maps(2, 3), maps(2, 4)], 13),
    ("Slice", {"starts": [1, 0], "ends": [9, -1], "axes": [1, 3]}, [maps()], 9),
    ("Slice", {}, [maps(), np.array([-1]), np.array([-100]), np.array([2]), np.array([-2])], 13),
    ("Gather", {"axis": 1}, [maps(), np.array([[0, -1], [2, 2]])], 13),
    ("Expand", {}, [maps(4, 1), np.array([2, 1, 3])], 13),
    ("Tile", {}, [maps(2, 3), np.array([2, 1])], 13),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, [maps()], 13),
    ("ReduceMean", {}, [maps(), np.array([2, 3])], 18),
    ("ReduceMean", {"noop_with_empty_axes": 1}, [maps()], 18),
    ("ReduceMax", {"axes": [-1]}, [maps()], 13),
    ("ReduceL2", {"axes": [1]}, [maps()], 13),
    ("DepthToSpace", {"blocksize": 2}, [maps(1, 8, 3, 2)], 13),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [maps(1, 8, 3, 2)], 13),
    ("LpNormalization", {"axis": 1}, [maps(2, 3)], 13),
]


@pytest.mark.parametrize(("op_type", "attributes", "inputs", "opset"), OPERATOR_CASES)
def test_an_operator_computes_what_onnxruntime_does(op_type, attributes, inputs, opset):
    names = [f"x{index}" for index in range(len(inputs))]
    infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x))
             for name, x in zip(names, inputs, strict=True)]  # fmt: skip
    node = helper.make_node(op_type, names, ["y"], **attributes)
    graph = helper.make_graph([node], "test", infos, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    expected = run(model, dict(zip(names, map(np.asarray, inputs), strict=True)))[0]
    result = OPERATORS[op_type](Call(op_type, attributes, opset), *map(torch.from_numpy, map(np.asarray, inputs)))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


# The trained part


def half_precision_classifier():
    """Kernels kept as float16, cast where they are used; a bias in a Constant node; flattened by a frozen Reshape."""
    b = Builder()
    x = b.node("Conv", "input", b.node("Cast", b.weight(6, 3, 3, 3, dtype=np.float16), to=1), strides=[2, 2])
    bias = b.node("Constant", value=numpy_helper.from_array(b.rng.normal(size=(6, 1, 1)).astype(np.float32)),
                  output="bias")  # fmt: skip
    x = b.node("Relu", b.node("Add", x, bias), output="first")
    x = b.node("HardSigmoid", b.conv(x, 6, 8, stride=2), output="second")
    x = b.node("Reshape", b.node("AveragePool", x, kernel_shape=[8, 8]), b.constant(np.array([1, 8])), output="vector")
    return b.model([b.gemm(x, 8, 5, output="scores")], shape=(1, 3, 32, 32))


GRAPHS = {
    "plain": (small_classifier(), "vector"),
    "opset 7": (small_classifier(opset=7), "vector"),
    "residual": (residual_network(), "vector"),
    "float16 weights, frozen batch": (half_precision_classifier(), "vector"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_torch_embeds_as_onnxruntime_does(name):
    model, tensor = GRAPHS[name]
    part = make_part(model)
    assert_same(run_part(part, normalise(PIXELS, part.network)), by_hand(model, tensor))


def test_a_part_goes_on_where_the_rest_ends():
    model = residual_network()
    part = make_part(model, "first")
    assert_same(run_part(part, by_hand(model, "first")), by_hand(model, "vector"))
    assert all(node.output[0] != "first" for node in part.nodes)


@pytest.mark.parametrize("pooling", ["avg", "max", "gem", "flatten"])
def test_pooling_is_that_of_the_embedding(residual, pooling):
    network, pixels = Network(residual_network(), "model.onnx", P32), list(PIXELS)
    part = TrainedPart(network, "input", resolve_layer(network, "second", pooling))
    expected = extract(pixels, residual, layer="second", pooling=pooling, cache_dir=None,
                       preprocessing=dataclasses.replace(P32, resize=None))  # fmt: skip
    assert_same(run_part(part, normalise(PIXELS, part.network)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_networks_embed_in_torch_as_in_onnxruntime(assets, name):
    backbone = load_backbone(name if name == "tiny-v1" else assets / "models" / name)
    p = backbone.preprocessing
    network = Network(load_model(backbone.path), backbone.path, p)
    pixels = [photo(seed, *p.crop) for seed in range(2)]
    options = {"preprocessing": dataclasses.replace(p, resize=None), "cache_dir": None}
    part = TrainedPart(network, network.image_input.name, resolve_layer(network, None, None))
    assert_same(run_part(part, normalise(np.stack(pixels), network)), extract(pixels, backbone, **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS[:-2])  # without the one that computes in float16, and rounds where it is cut
def test_real_networks_are_the_same_behind_every_stage(assets, name):
    backbone = load_backbone(assets / "models" / name)
    p = backbone.preprocessing
    network = Network(load_model(backbone.path), backbone.path, p)
    options = {"preprocessing": dataclasses.replace(p, resize=None), "cache_dir": None}
    pixels, cut = [photo(0, *p.crop)], resolve_layer(network, None, None)
    for stage in find_stages(network)[:-1]:
        part = TrainedPart(network, stage, cut)
        x = extract(pixels, backbone, layer=stage, pooling="flatten", **options).reshape(1, *part.input_shape)
        assert_same(run_part(part, x), extract(pixels, backbone, **options))


def test_the_embedded_backbone_is_the_same_behind_every_stage():
    backbone = load_backbone("default")
    network = Network(load_model(backbone.path), backbone.path, backbone.preprocessing)
    pixels, options = [photo(0, 96, 96)], {"preprocessing": dataclasses.replace(backbone.preprocessing, resize=None)}
    expected = extract(pixels, backbone, **options)
    for stage in find_stages(network)[:-1]:
        part = TrainedPart(network, stage, resolve_layer(network, None, None))
        x = extract(pixels, backbone, layer=stage, pooling="flatten", **options).reshape(1, *part.input_shape)
        assert_same(run_part(part, x), expected)


def test_gradients_are_those_of_finite_differences():
    part, rng = make_part(residual_network(), "first"), np.random.default_rng(0)
    part.tensors = {name: tensor.double() for name, tensor in part.tensors.items()}
    x, direction = torch.from_numpy(rng.normal(size=(2, 8, 8, 8))), torch.from_numpy(rng.normal(size=(2, 16)))
    for name in part.weights:
        part.tensors[name].requires_grad_(True)
    (part.run(x) * direction).sum().backward()
    for name in part.weights:
        weight = part.tensors[name]
        step = torch.from_numpy(rng.normal(size=weight.shape)) * 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -2, 1):
                weight += sign * step
                values.append(float((part.run(x) * direction).sum()))
        difference = values[0] - values[1]
        assert difference == pytest.approx(2 * float((weight.grad * step).sum()), rel=1e-4, abs=1e-12)


def test_operators_that_cannot_be_trained_are_named_before_any_image_is_read(tmp_path, tune):
    b = Builder()
    x = b.node("Hardmax", b.node("Det", b.conv("input", 3, 8, stride=2)), output="odd")
    path = save_backbone(tmp_path / "odd", b.model([b.node("Flatten", x, output="features")]))
    with pytest.raises(BackboneError, match=r"made of operators that can be trained here. Got Det, Hardmax too"):
        tune(path, [b"no image"] * 24, trainable="all")


# What is trained


@pytest.mark.parametrize(("trainable", "found"), [("last_third", "first"), ("last_stage", "first"), ("all", "input"),
                                                  ("stage1", "first"), ("relu1", "relu1")])  # fmt: skip
def test_what_is_trained_begins_where_it_is_said_to(trainable, found):
    network = Network(residual_network(), "model.onnx", P32)
    assert find_source(network, trainable, resolve_layer(network, None, None)) == found


@pytest.mark.parametrize("trainable", ["relu4", "scores", "second_or_third"])
def test_a_tensor_that_not_all_ways_go_through_is_refused(tune, trainable):
    with pytest.raises(BackboneError, match="must be|must name"):
        tune(trainable=trainable)


def test_only_weights_behind_the_tensor_change(residual, tune):
    part = make_part(residual_network(), "first")
    before, after = weights_of(residual), weights_of(tune().path)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(part.weights)


def test_an_infinite_source_weight_gives_the_frozen_features(residual, tune):
    tuned = tune(source_weight=math.inf)
    assert_same(extract(PHOTOS, tuned), extract(PHOTOS, residual))
    assert weights_of(tuned.path).keys() == weights_of(residual).keys()


def test_weights_stay_the_nearer_to_the_source_the_harder_they_are_pulled(residual, tune):
    before = extract(PHOTOS, residual)
    moves = [np.abs(extract(PHOTOS, tune(source_weight=weight)) - before).max() for weight in (0, 1e3, 1e9)]
    assert moves[0] > moves[1] > moves[2]
    assert moves[2] < 1e-4 * np.abs(before).max()


def test_training_lowers_the_loss(tune):
    card = read_card(describe_file(tune(epochs=20, augment=None, batch_size=6, learning_rate=0.01).path)["metadata"])
    losses = [epoch[0] for epoch in card.history]
    assert losses[-1] < 0.9 * losses[0]


def test_float16_weights_and_constant_nodes_are_replaced_where_they_are(tmp_path, tune):
    model = half_precision_classifier()
    path = save_backbone(tmp_path / "half", model)
    tuned = onnx.load(tune(path, trainable="all").path)
    constant = next(node for node in tuned.graph.node if node.op_type == "Constant")
    old = next(node for node in model.graph.node if node.op_type == "Constant")
    assert not np.array_equal(numpy_helper.to_array(constant.attribute[0].t), numpy_helper.to_array(old.attribute[0].t))
    assert tuned.graph.initializer[0].data_type == TensorProto.FLOAT16
    assert tuned.graph.initializer[0] != model.graph.initializer[0]


def normalised_network():
    b, rng = Builder(), np.random.default_rng(0)
    x = b.node("Relu", b.conv("input", 3, 8, stride=2), output="first")
    values = [rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(4)]
    names = [b.constant(value, name) for name, value in zip(("gamma", "beta", "mean", "variance"), values, strict=True)]
    x = b.node("Relu", b.node("BatchNormalization", b.conv(x, 8, 8), *names))
    return b.model([b.node("Flatten", b.node("GlobalAveragePool", x), output="features")])


@pytest.mark.parametrize("adapts", [False, True])
def test_statistics_of_batch_normalisations_change_only_on_request(tmp_path, tune, adapts):
    path = save_backbone(tmp_path / "normalised", normalised_network())
    before, after = weights_of(path), weights_of(tune(path, trainable="first", adapt_batch_norm=adapts).path)
    changed = [not np.array_equal(before[name], after[name]) for name in ("gamma", "beta", "mean", "variance")]
    assert changed == [True, True, adapts, adapts]


def test_statistics_that_are_not_there_cannot_adapt(tune):
    with pytest.raises(BackboneError, match="adapt_batch_norm=True needs batch normalisations"):
        tune(adapt_batch_norm=True)


def test_fresh_weights_do_not_depend_on_those_of_the_source(tmp_path, tune):
    first, other = residual_network(), residual_network()
    for tensor in other.graph.initializer[8:]:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    tuned = [weights_of(tune(save_backbone(tmp_path / name, model), fresh_weights=True, name=f"{name}.onnx").path)
             for name, model in (("one", first), ("two", other))]  # fmt: skip
    for name in make_part(first, "first").weights:
        np.testing.assert_array_equal(tuned[0][name], tuned[1][name])


# The file


def test_early_stopping_keeps_the_epoch_with_the_least_loss_held_out(tune):
    options = {"augment": None, "batch_size": 4, "learning_rate": 0.02}
    stopped = tune(epochs=6, early_stopping=True, **options)
    losses = [epoch[1] for epoch in read_card(describe_file(stopped.path)["metadata"]).history]
    last = tune(epochs=6, name="last.onnx", **options)
    same = all(np.array_equal(value, weights_of(last.path)[name]) for name, value in weights_of(stopped.path).items())
    assert same == (min(losses) == losses[-1])


def test_the_file_has_the_operators_and_names_of_the_original(residual, tune):
    before, after = onnx.load(residual), onnx.load(tune().path)
    onnx.checker.check_model(after)
    assert [node.SerializeToString() for node in after.graph.node] == [n.SerializeToString() for n in before.graph.node]
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert [(t.name, t.dims, t.data_type) for t in after.graph.initializer] == [
        (t.name, t.dims, t.data_type) for t in before.graph.initializer
    ]


def test_a_tuned_backbone_is_one_of_its_own_in_the_model_store(residual, tune, cache_folder):
    tuned = tune(output=None)
    folder = cache_folder.parent / "sktransfer-models" / "finetuned"
    assert (tuned.name, tuned.path.parent.parent) == ("residual-tuned", folder)
    assert tuned.digest != load_backbone(residual).digest
    assert tuned.preprocessing == load_backbone(residual).preprocessing
    assert load_backbone(tuned.path) == tuned


def test_a_tuned_backbone_can_be_tuned_and_quantised(tune, monkeypatch):
    monkeypatch.setattr("sktransfer.quantization._measure_speedup", lambda sessions, pixels: 2.0)
    again = tune(tune(), name="again.onnx")
    twin = quantize(again, PHOTOS)
    assert extract(PHOTOS, twin).shape == extract(PHOTOS, again).shape


def test_the_card_states_origin_data_recipe_and_what_it_brought(residual, tune):
    card = read_card(describe_file(tune(C=0.5).path)["metadata"])
    assert (card.name, card.digest, card.source) == ("residual", load_backbone(residual).digest, "first")
    assert (card.n_images, card.n_held_out, card.n_classes, card.metric) == (18, 6, 3, "accuracy")
    assert (card.recipe["C"], len(card.history)) == (0.5, 2)
    X = extract(PHOTOS, residual)
    task = read_task(LABELS, None, np.arange(24), 24, 0.25, 0)
    score = task.score(fit_head(X, task, 0.5).predict(X[task.held_out]), task.held_out)
    assert card.before == pytest.approx(score, abs=1e-6)


def test_the_same_seed_gives_the_same_file_and_another_one_another(tune):
    digests = [tune(random_state=seed, name=f"{i}.onnx").digest for i, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_the_frozen_part_is_run_once_for_each_view(tune):
    tune(n_views=2)
    before = forward_passes()
    tune(n_views=2, epochs=3)
    assert forward_passes() - before == 8  # what is compared with torch, before and after


def test_nothing_is_printed_and_torch_keeps_its_threads(tune, capfd):
    before = torch.get_num_threads()
    tune()
    assert (torch.get_num_threads(), *capfd.readouterr()) == (before, "", "")


# Images and labels


def test_groups_are_held_out_whole():
    groups = np.repeat(np.arange(8), 3)
    task = read_task(LABELS, groups, np.arange(24), 24, 0.25, 0)
    assert not set(groups[task.learnt]) & set(groups[task.held_out])
    assert sorted([*task.learnt, *task.held_out]) == list(range(24))


def test_several_images_of_a_row_are_learnt_one_by_one_and_empty_cells_passed_over(tune):
    rows = [[PHOTOS[2 * i], PHOTOS[2 * i + 1]] for i in range(12)]
    card = read_card(describe_file(tune(images=[*rows, None], y=[*LABELS[:12], "hat"]).path)["metadata"])
    assert card.n_images + card.n_held_out == 24


def test_floats_are_a_regression(tune):
    card = read_card(describe_file(tune(y=np.linspace(5, 9, 24)).path)["metadata"])
    assert (card.metric, card.n_classes) == ("R²", 0)
    assert card.before is not None


def test_all_images_are_learnt_from_on_request(tune):
    card = read_card(describe_file(tune(validation_fraction=0).path)["metadata"])
    assert (card.n_images, card.n_held_out, card.before, card.after) == (24, 0, None, None)


def test_an_unreadable_image_is_named(tune):
    for images in ([*PHOTOS[:5], b"no image", *PHOTOS[6:]], [*PHOTOS[:4], None, [PHOTOS[4], b"no image"], *PHOTOS[6:]]):
        with pytest.raises(ImageReadError, match=r"^Row 5 \(8 bytes\) could not be read: [^=]*$"):
            tune(images=images)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"y": LABELS[:5]}, "y"),
     ({"images": pd.DataFrame({"a": PHOTOS[:3], "b": PHOTOS[:3]}), "y": LABELS[:3]}, "images must have one column"),
     ({"epochs": 0}, "epochs must be an integer >= 1. Got 0 instead"),
     ({"source_weight": -1}, "source_weight must be a number >= 0. Got -1 instead"),
     ({"learning_rate": 0}, "learning_rate must be a number > 0. Got 0 instead"),
     ({"augment": "mixup"}, 'augment must be None or "flip.crop". Got \'mixup\' instead'),
     ({"validation_fraction": 0, "early_stopping": True}, "validation_fraction must be > 0 with early_stopping=True"),
     ({"trainable": 3}, 'trainable must be "last_third"'),
     ({"output": "tuned.txt"}, "output must be the path of an .onnx file in an existing folder")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tune, options, message):
    with pytest.raises(ValueError, match=message):
        tune(**options)


def test_quantised_networks_are_refused(residual, tune, monkeypatch):
    monkeypatch.setattr("sktransfer.quantization._measure_speedup", lambda sessions, pixels: 2.0)
    with pytest.raises(BackboneError, match="must be a float network to be tuned"):
        tune(quantize(residual, PHOTOS))


def test_without_torch_the_error_says_what_to_install(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "sktransfer[torch]"')):
        tune()


@pytest.mark.parametrize("resize", [None, 36, (36, 40)])
@pytest.mark.parametrize("size", [(300, 40), (40, 300), (32, 32)])
def test_crops_lie_in_the_image(size, resize, rng):
    for _ in range(100):
        left, top, right, bottom = draw_box(size, dataclasses.replace(P32, resize=resize), rng)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9


def test_a_recipe_is_plain_data():
    assert json.loads(json.dumps(dataclasses.asdict(Recipe())))["epochs"] == Recipe().epochs


# The command


@pytest.fixture
def photo_folder(tmp_path):
    for index, (pixels, label) in enumerate(zip(PHOTOS, LABELS, strict=True)):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index}.png")
    return tmp_path / "photos"


def test_the_command_writes_model_page_and_curve(residual, photo_folder, tmp_path, run_command):
    pytest.importorskip("matplotlib")
    options = ["--backbone", residual, "--epochs", 2, "--views", 1, "--validation-fraction", 0.25]
    code, said, shown = run_command("finetune", photo_folder, "-o", tmp_path / "coats", *options)
    assert (code, sorted(path.name for path in (tmp_path / "coats").iterdir())) == (
        0, ["README.md", "learning_curve.png", "model.onnx"])  # fmt: skip
    assert re.search(r"Learnt from 18 images behind 'first'; accuracy \d\.\d{3} before, \d\.\d{3} after", said)
    assert "tuning: 100%" in shown
    assert load_backbone(tmp_path / "coats").name == "coats"
    _, shown, _ = run_command("models", "show", tmp_path / "coats")
    assert "tuned behind 'first' on 18 images; accuracy" in shown


def test_the_command_refuses_a_folder_with_other_files(photo_folder, tmp_path, run_command):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("…")
    code, _, said = run_command("finetune", photo_folder, "-o", tmp_path / "full")
    assert (code, "must be a folder of its own" in said) == (1, True)
