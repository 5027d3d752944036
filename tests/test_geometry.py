"""The resize in the graph gives the pixels of the resize on the host, or says how far it is from them."""

import numpy as np
import onnx
import onnxruntime
import PIL
import pytest
from conftest import photo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import sktransfer.geometry
from sktransfer import Preprocessing
from sktransfer.geometry import INPUT_NAME, OUTPUT_NAME, build_geometry_model

NEW_PILLOW = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 chooses the order of passes")
MAX_LEVELS = {"nearest": 0, "bilinear": 2, "bicubic": 2}  # between a value and Pillow's
RESIZES = st.one_of(st.none(), st.integers(1, 150), st.tuples(st.integers(1, 150), st.integers(1, 150)))


def run_geometry(preprocessing, *photos):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = build_geometry_model(preprocessing).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT_NAME], {INPUT_NAME: np.stack(photos)})[0]


def noise(*size):
    """Values that move wherever a weight does."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def levels_apart(preprocessing, pixels):
    """Absolute differences between the graph's pixels and the host's."""
    (result,) = run_geometry(preprocessing, pixels)
    expected = preprocessing.resize_and_crop(Image.fromarray(pixels))
    assert result.shape == expected.shape == (*preprocessing.crop, 3)
    assert result.dtype == np.uint8
    return np.abs(result.astype(int) - expected)


@settings(deadline=None, max_examples=120)
@example(size=(100, 30), resize=(24, 24), crop=(24, 24), resample="bilinear", seed=0)  # Pillow goes down first
@example(size=(30, 100), resize=(24, 24), crop=(24, 24), resample="bilinear", seed=0)
@example(size=(6, 6), resize=5, crop=(5, 5), resample="nearest", seed=0)  # the sum of the steps misses a whole number
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resize=RESIZES,
    crop=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    resample=st.sampled_from(sorted(MAX_LEVELS)),
    seed=st.integers(0, 9),
)
def test_any_geometry_gives_the_pixels_of_the_host(size, resize, crop, resample, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    preprocessing = Preprocessing(crop=crop, resize=resize, resample=resample)
    assert levels_apart(preprocessing, pixels).max() <= MAX_LEVELS[resample]


@pytest.mark.parametrize("resample", sorted(MAX_LEVELS))
@pytest.mark.parametrize("size", [(400, 533), (1080, 1920), (1600, 1200), (48, 64)])
def test_sharp_photos_are_a_level_away_in_two_thousandths_of_their_values(size, resample):
    apart = levels_apart(Preprocessing(crop=(224, 224), resize=256, resample=resample), noise(*size))
    assert (apart > 0).mean() <= 0.002
    assert apart.max() <= min(1, MAX_LEVELS[resample])


def test_ties_that_round_the_other_way_are_below_a_hundredth():
    # 480 / 256 = 1.875 puts weights, and with them values, halfway between levels.
    apart = levels_apart(Preprocessing(crop=(224, 224), resize=256), noise(480, 640))
    assert 0.002 < (apart > 0).mean() < 0.01
    assert apart.max() == 1


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 9000), pytest.param((9000, 3), marks=NEW_PILLOW)])
def test_of_a_strip_only_the_middle_is_resized(size):
    # The whole of the first would be 256 x 1,024,000 pixels.
    for resample, levels in MAX_LEVELS.items():
        preprocessing = Preprocessing(crop=(224, 224), resize=256, resample=resample)
        assert levels_apart(preprocessing, noise(*size)).max() <= levels


@NEW_PILLOW
def test_a_pillow_that_always_goes_across_first_is_followed(monkeypatch):
    monkeypatch.setattr(sktransfer.geometry, "_goes_down_first", lambda: False)
    image = Image.fromarray(noise(300, 100))
    across = image.resize((224, 300), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
    preprocessing = Preprocessing(crop=(224, 224), resize=(224, 224), resample="bicubic")
    (result,) = run_geometry(preprocessing, np.asarray(image))
    assert np.abs(result.astype(int) - np.asarray(across)).max() <= 1
    assert np.abs(result.astype(int) - preprocessing.resize_and_crop(image)).max() > 1


def test_real_photos_are_a_level_away_in_few_of_their_values(assets):
    preprocessing = Preprocessing(crop=(224, 224), resize=256)
    paths = sorted((assets / "datasets" / "clothing" / "images").glob("*.jpg"))[:20]
    apart = [levels_apart(preprocessing, np.asarray(Image.open(path).convert("RGB"))) for path in paths]
    assert len(apart) == 20
    assert np.max(apart) <= 1
    assert (np.array(apart) > 0).mean() <= 0.002


def test_a_photo_is_what_it_is_alone_whatever_is_beside_it():
    preprocessing = Preprocessing(crop=(32, 48), resize=40)
    photos = [photo(seed, 90, 70) for seed in range(3)]
    alone = [run_geometry(preprocessing, pixels)[0] for pixels in photos]
    np.testing.assert_array_equal(run_geometry(preprocessing, *photos), alone)


@pytest.mark.parametrize("resize", [None, 40, (40, 50)])
@pytest.mark.parametrize("resample", sorted(MAX_LEVELS))
def test_the_graph_is_valid_quiet_and_keeps_to_its_names(resize, resample, capfd):
    preprocessing = Preprocessing(crop=(32, 48), resize=resize, resample=resample)
    model = build_geometry_model(preprocessing, opset=20, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (20, 9)
    tensors = [name for node in model.graph.node for name in [*node.input, *node.output] if name]
    assert all(name.startswith("sktransfer_") for name in tensors)
    run_geometry(preprocessing, photo(0))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("resample", ["lanczos", "box", "hamming"])
def test_filters_that_onnx_lacks_are_refused_where_they_are_used(resample):
    message = f'resample must be "bilinear", "bicubic" or "nearest" where the resize is in the graph. Got {resample!r}'
    with pytest.raises(ValueError, match=message):
        build_geometry_model(Preprocessing(crop=(8, 8), resize=9, resample=resample))
    assert run_geometry(Preprocessing(crop=(8, 8), resample=resample), photo(0)).shape == (1, 8, 8, 3)


def test_an_opset_without_antialiased_resize_is_refused():
    with pytest.raises(ValueError, match="opset must be an integer >= 18 where the resize is in the graph. Got 17"):
        build_geometry_model(Preprocessing(crop=(8, 8)), opset=17)
