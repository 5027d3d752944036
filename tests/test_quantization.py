"""int8 twins: what they compute, what they state of themselves, and when float32 stays."""

import dataclasses
import logging
import re
import warnings

import numpy as np
import onnx
import pytest
from conftest import Builder, photo, save_backbone, small_classifier
from PIL import Image
from test_graph import P32, assert_same, by_hand, run
from test_layers import residual_network

import sktransfer.quantization
from sktransfer import BackboneError, ImageReadError, extract, load_backbone, quantize_backbone
from sktransfer.extraction import plan_extraction
from sktransfer.graph import INPUT_NAME
from sktransfer.network import Network, describe_file, load_model
from sktransfer.quantization import make_twin, read_card

PHOTOS = [photo(seed, 40, 32) for seed in range(16)]


@pytest.fixture(autouse=True)
def speedup(monkeypatch):
    """Tests do not time: the twin is twice as fast."""
    monkeypatch.setattr(sktransfer.quantization, "_measure_speedup", lambda sessions, pixels: 2.0)


@pytest.fixture
def residual(tmp_path):
    return save_backbone(tmp_path / "residual", residual_network())


def preactivation_network(opset=13):
    """Batch normalisations with no convolution before them, as in ResNet v2."""
    b, rng = Builder(), np.random.default_rng(0)
    x = b.conv("input", 3, 8, stride=2)
    for _ in range(2):
        values = [rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(4)]
        normal = b.node("BatchNormalization", x, *map(b.constant, values))
        x = b.node("Add", x, b.conv(b.node("Relu", normal), 8, 8))
    x = b.node("Flatten", b.node("GlobalAveragePool", x), output="vector")
    return b.model([b.gemm(x, 8, 5, output="scores")], opset=opset)


def test_a_twin_is_a_backbone_of_its_own_in_the_model_store(residual, cache_folder):
    twin = quantize_backbone(residual, PHOTOS)
    folder = cache_folder.parent / "sktransfer-models" / "int8"
    assert (twin.name, twin.path.parent.parent) == ("residual-int8", folder)
    assert twin.digest != load_backbone(residual).digest
    assert twin.preprocessing == load_backbone(residual).preprocessing
    assert load_backbone(twin.path) == twin


def test_its_embeddings_are_close_to_the_originals_and_not_equal(residual):
    twin = quantize_backbone(residual, PHOTOS)
    before, after = extract(PHOTOS, residual), extract(PHOTOS, twin)
    distance = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert 0 < distance.max() < 0.1
    card = read_card(describe_file(twin.path)["metadata"])
    held_out = distance[3::4]
    assert card.distance == pytest.approx(np.median(held_out), abs=1e-4)
    assert card.max_distance == pytest.approx(held_out.max(), abs=1e-4)
    assert (card.name, card.digest, card.n_images) == ("residual", load_backbone(residual).digest, 12)


def test_an_int8_network_computes_what_its_file_says(residual, tmp_path):
    twin = quantize_backbone(residual, PHOTOS)
    pixels = np.stack([twin.preprocessing.resize_and_crop(Image.fromarray(array)) for array in PHOTOS[:2]])
    expected = by_hand(onnx.load(twin.path), plan_extraction(twin).graph.cuts[0].tensor, pixels=pixels)
    assert_same(extract(PHOTOS[:2], twin, cache_dir=None), expected.reshape(2, -1), 0.02)


def test_weights_leave_room_for_sums_that_processors_without_vnni_would_clip(residual):
    twin = quantize_backbone(residual, PHOTOS)
    weights = [onnx.numpy_helper.to_array(entry) for entry in onnx.load(twin.path).graph.initializer]
    kernels = [array for array in weights if array.dtype == np.int8 and array.ndim == 4]
    # two products of a uint8 and an int8 must fit into 16 bits: 2 * 255 * 64 < 2 ** 15
    assert kernels
    assert max(np.abs(array.astype(int)).max() for array in kernels) <= 64


def test_the_same_images_give_the_same_file(residual, tmp_path):
    first = quantize_backbone(residual, PHOTOS)
    second = quantize_backbone(residual, PHOTOS, output=tmp_path / "again.onnx")
    assert (first.digest, second.path) == (second.digest, tmp_path / "again.onnx")


def test_normalisations_without_a_convolution_become_integers_too(tmp_path):
    path = save_backbone(tmp_path, preactivation_network())
    twin = quantize_backbone(path, PHOTOS)
    operators = [node.op_type for node in onnx.load(twin.path).graph.node]
    assert "BatchNormalization" not in operators
    simplified = tmp_path / "simplified.onnx"
    sktransfer.quantization._simplify(onnx.load(path), simplified)
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    assert_same(run(onnx.load(simplified), {"input": x})[0], run(onnx.load(path), {"input": x})[0])


@pytest.mark.parametrize("opset", [9, 12])
def test_older_opsets_are_raised(tmp_path, opset):
    twin = quantize_backbone(save_backbone(tmp_path, preactivation_network(opset)), PHOTOS)
    assert onnx.load(twin.path).opset_import[0].version >= 13


def test_the_arithmetic_before_a_quantised_network_changes_no_bit(residual, monkeypatch):
    twin = quantize_backbone(residual, PHOTOS)
    graph = plan_extraction(twin).graph
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours = run(graph.build_model(), {INPUT_NAME: pixels})[0]
    monkeypatch.setattr(Network, "is_quantized", False)
    np.testing.assert_array_equal(ours, run(graph.build_model(), {INPUT_NAME: pixels})[0])


@pytest.mark.parametrize("changes", [{"channel_order": "BGR"}, {"layout": "NCHW", "scale": 1.0, "mean": (9, 8, 7)}])
def test_calibration_sees_what_the_network_will_see(residual, changes):
    network = Network(load_model(load_backbone(residual).path), residual, dataclasses.replace(P32, **changes))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    channels = pixels[..., ::-1] if changes.get("channel_order") else pixels
    p = network.preprocessing
    expected = np.stack([(channels[..., c] * p.scale - p.mean[c]) / p.std[c] for c in range(3)])[None]
    np.testing.assert_allclose(sktransfer.quantization._normalize(pixels, network), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [("_measure_speedup", 0.9, "it is 0.90 times as fast on this machine, less than 1.1"),
     ("_measure_distances", (0.5, 0.9), "its embeddings move by 0.50 of their length"),
     ("_measure_distances", (float("nan"), 0.9), "its embeddings move by nan")],
)  # fmt: skip
def test_float32_stays_where_int8_does_not_pay(residual, cache_folder, monkeypatch, function, value, message):
    monkeypatch.setattr(sktransfer.quantization, function, lambda *_: value)
    with pytest.warns(UserWarning, match=f"int8 does not pay for residual: {message}.*It stays in float32"):
        backbone = quantize_backbone(residual, PHOTOS)
    assert backbone == load_backbone(residual)
    assert not (cache_folder.parent / "sktransfer-models").exists()


@pytest.mark.parametrize("layer", ["first", "second", "stage1", "last_map", "vector"])
def test_a_layer_of_the_twin_is_the_layer_of_the_original(residual, layer):
    # Where rounding to uint8 clips at zero, the ReLU is gone from the file, and its tensor holds what came before it.
    twin = quantize_backbone(residual, PHOTOS)
    assert_same(extract(PHOTOS, twin, layer=layer), extract(PHOTOS, residual, layer=layer), 0.1)


def test_quantize_writes_the_file_and_show_states_the_distance(residual, tmp_path, run_command):
    (tmp_path / "photos").mkdir()
    for index, array in enumerate(PHOTOS):
        Image.fromarray(array).save(tmp_path / "photos" / f"{index}.png")
    output = tmp_path / "twin.onnx"
    code, said, _ = run_command("models", "quantize", residual, tmp_path / "photos", "-o", output)
    assert code == 0
    assert "2.00 times as fast as float32 on this machine; embeddings move by 0.0" in said
    _, shown, _ = run_command("models", "show", output)
    assert re.search(r"card +int8 of residual \(SHA-256 \w{64}\); embeddings move by 0.0\d\d of their", shown)


def test_quantize_says_when_float32_stays_and_fails(residual, tmp_path, run_command, monkeypatch):
    monkeypatch.setattr(sktransfer.quantization, "_measure_speedup", lambda *_: 0.5)
    for index, array in enumerate(PHOTOS[:8]):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    code, said, _ = run_command("models", "quantize", residual, tmp_path)
    assert (code, "It stays in float32" in said) == (1, True)


def test_the_layer_of_a_backbone_is_kept(residual):
    backbone = dataclasses.replace(load_backbone(residual), layer="first", digest="")
    twin = quantize_backbone(backbone, PHOTOS)
    assert (twin.layer, load_backbone(twin.path).layer) == ("first", "first")
    assert extract(PHOTOS[:1], twin).shape == extract(PHOTOS[:1], residual, layer="first").shape


@pytest.mark.parametrize(
    ("images", "message"),
    [(PHOTOS[:7], "images must hold at least 8 images, better 50 or more. Got 7"),
     ([*PHOTOS, b"no image"], r"Row 16 \(8 bytes\) could not be read")],
)  # fmt: skip
def test_images_that_cannot_serve_are_named(residual, images, message):
    with pytest.raises((ImageReadError, ValueError), match=message):
        quantize_backbone(residual, images)


def test_rows_of_a_table_are_images_of_the_given_shape(residual):
    table = np.stack(PHOTOS).reshape(len(PHOTOS), -1)
    assert (
        quantize_backbone(residual, table, image_shape=(40, 32, 3)).digest == quantize_backbone(residual, PHOTOS).digest
    )


def test_what_is_not_float32_is_refused(tmp_path, residual):
    twin = quantize_backbone(residual, PHOTOS)
    with pytest.raises(BackboneError, match="is quantised already"):
        quantize_backbone(twin, PHOTOS)
    half = save_backbone(tmp_path / "half", small_classifier(elem_type=onnx.TensorProto.FLOAT16))
    with pytest.raises(BackboneError, match=r"must take float32 images to be quantised. Got float16 instead"):
        quantize_backbone(half, PHOTOS)


@pytest.mark.parametrize("output", ["twin.txt", "nowhere/twin.onnx"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(residual, tmp_path, output):
    message = re.escape("output must be the path of an .onnx file in an existing folder")
    with pytest.raises(ValueError, match=message):
        quantize_backbone(residual, [b"never read"] * 8, output=tmp_path / output)


def test_nothing_is_printed_and_no_handler_of_the_log_stays(residual, capfd):
    root = logging.getLogger()
    before = list(root.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_backbone(residual, PHOTOS)
    assert (root.handlers, tuple(capfd.readouterr())) == (before, ("", ""))


def test_many_images_are_thinned_out_evenly(residual, monkeypatch):
    monkeypatch.setattr(sktransfer.quantization, "MAX_IMAGES", 8)
    assert make_twin(residual, PHOTOS).card.n_images == 6
