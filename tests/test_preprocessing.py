import json

import numpy as np
import pytest
from conftest import photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sktransfer import Preprocessing


def slow_resample(pixels, length):
    """Antialiased triangle filter along axis 0 in Pillow's 22-bit fixed point (libImaging/Resample.c)."""
    scale = pixels.shape[0] / length
    support = max(scale, 1.0)
    rows = []
    for row in range(length):
        centre = (row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), pixels.shape[0])
        weights = [max(0.0, 1 - abs((i - centre + 0.5) * (1.0 / support))) for i in range(first, last)]
        fixed = [int(0.5 + weight / sum(weights) * (1 << 22)) for weight in weights]
        total = sum(k * pixels[i].astype(np.int64) for k, i in zip(fixed, range(first, last), strict=True))
        rows.append(np.clip((total + 2**21) >> 22, 0, 255))
    return np.stack(rows).astype(np.uint8)


def slow_resize(pixels, height, width, vertical_first):
    """Two passes with 8 bits in between; Pillow 13 chooses their order by the sizes, older ones go across first."""
    for axis in (0, 1) if vertical_first else (1, 0):
        length = (height, width)[axis]
        if pixels.shape[axis] != length:
            pixels = slow_resample(pixels.swapaxes(0, axis), length).swapaxes(0, axis)
    return pixels


def slow_resize_and_crop(pixels, resize, crop, vertical_first=False):
    """torchvision's Resize(resize) and CenterCrop(crop), written out (transforms/functional.py)."""
    height, width = pixels.shape[:2]
    if width <= height:
        new_width, new_height = resize, int(resize * height / width)
    else:
        new_width, new_height = int(resize * width / height), resize
    pixels = slow_resize(pixels, new_height, new_width, vertical_first)
    left, top = max(crop - new_width, 0) // 2, max(crop - new_height, 0) // 2
    right, bottom = (max(crop - new_width, 0) + 1) // 2, (max(crop - new_height, 0) + 1) // 2
    pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)))
    top, left = round((pixels.shape[0] - crop) / 2.0), round((pixels.shape[1] - crop) / 2.0)
    return pixels[top : top + crop, left : left + crop]


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.integers(1, 60),
    crop=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_pixels_equal_those_of_torchvision(height, width, resize, crop, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = Preprocessing(crop=(crop, crop), resize=resize).resize_and_crop(Image.fromarray(pixels))
    references = [slow_resize_and_crop(pixels, resize, crop, vertical_first) for vertical_first in (False, True)]
    assert any(np.array_equal(result, reference) for reference in references)


def test_a_pair_squashes_and_none_only_crops():
    pixels = photo(1, 30, 50)
    squashed = Preprocessing(crop=(20, 24), resize=(20, 24)).resize_and_crop(Image.fromarray(pixels))
    assert any(np.array_equal(squashed, slow_resize(pixels, 20, 24, order)) for order in (False, True))
    cropped = Preprocessing(crop=(20, 24)).resize_and_crop(Image.fromarray(pixels))
    np.testing.assert_array_equal(cropped, pixels[5:25, 13:37])


def test_a_long_strip_is_cropped_in_bounded_memory():
    strip = np.random.default_rng(0).integers(0, 256, (2, 30_000, 3), dtype=np.uint8)
    preprocessing = Preprocessing(crop=(60, 60), resize=64)
    result = preprocessing.resize_and_crop(Image.fromarray(strip))
    middle = slow_resize_and_crop(strip[:, 14_900:15_100], 64, 60)
    assert np.abs(result.astype(int) - middle).max() <= 1
    whole = Preprocessing(crop=(256, 300), resize=256).resize_and_crop(Image.fromarray(strip))
    assert whole.shape == (256, 300, 3)


def test_presets_follow_torchvision_and_keras():
    pixel = np.array([10.0, 20.0, 30.0])  # RGB
    # torchvision: (x / 255 - mean) / std; keras "tf": x / 127.5 - 1; keras "caffe": BGR minus the mean
    expected = {
        "imagenet": (pixel / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "tf": pixel / 127.5 - 1,
        "caffe": pixel[::-1] - [103.939, 116.779, 123.68],
    }
    for name, values in expected.items():
        p = Preprocessing.from_preset(name, (224, 224))
        channels = pixel[::-1] if p.channel_order == "BGR" else pixel
        np.testing.assert_allclose((channels * p.scale - p.mean) / p.std, values, rtol=1e-12)
        assert (p.resize, p.crop) == (256, (224, 224))


def test_json_round_trip():
    p = Preprocessing((224, 224), 256, "bicubic", 1.0, (1, 2, 3), (4, 5, 6), "BGR", "NHWC")
    assert Preprocessing(**json.loads(json.dumps(p.to_dict()))) == p


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 224}, r"crop must be two integers >= 1 \(height, width\)\. Got 224 instead"),
        ({"crop": (0, 224)}, r"Got \(0, 224\) instead"),
        ({"resize": 0}, "resize must be two integers"),
        ({"mean": (0.5,)}, "mean must be three numbers"),
        ({"std": (1, 0, 1)}, "std must not contain 0"),
        ({"resample": "cubic"}, "resample must be one of 'nearest', 'bilinear'"),
        ({"channel_order": "RBG"}, "channel_order must be one of 'RGB', 'BGR'"),
        ({"layout": "HWC"}, "layout must be one of 'NCHW', 'NHWC', None"),
    ],
)
def test_values_outside_what_is_allowed_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"crop": (224, 224), **changes})
