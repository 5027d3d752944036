"""The part of a resized image that a crop keeps has the pixels that Pillow gives the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sktransfer.resampling
from sktransfer.resampling import _resize_part, resize_part

FILTERS = [Image.Resampling[name] for name in ("BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")]


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(20, 500),
    height=st.integers(20, 500),
    new_width=st.one_of(st.sampled_from([32, 64, 128, 256]), st.integers(8, 300)),
    new_height=st.one_of(st.sampled_from([32, 64, 128, 256]), st.integers(8, 300)),
    ends=st.tuples(*[st.floats(0, 1)] * 4),
    resample=st.sampled_from(FILTERS),
)
def test_pixels_are_those_of_the_whole(width, height, new_width, new_height, ends, resample):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, size = Image.fromarray(pixels), (new_width, new_height)
    left, right = sorted(round(end * (new_width - 1)) for end in ends[:2])
    upper, lower = sorted(round(end * (new_height - 1)) for end in ends[2:])
    part = (left, upper, right + 1, lower + 1)
    expected = np.asarray(image.resize(size, resample).crop(part))
    np.testing.assert_array_equal(np.asarray(resize_part(image, size, part, resample)), expected)


@pytest.fixture
def asked(monkeypatch):
    """The calls that take the short way."""
    calls = []
    monkeypatch.setattr(
        sktransfer.resampling, "_resize_part", lambda *args: (calls.append(args), _resize_part(*args))[1]
    )
    return calls


def test_this_pillow_is_followed_and_photos_take_the_short_way(asked):
    assert sktransfer.resampling._is_exact()
    asked.clear()
    resize_part(Image.new("RGB", (400, 533)), (256, 341), (16, 58, 240, 282), Image.Resampling.BILINEAR)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("size", "new_size", "part"),
    [((40, 50), (32, 40), (0, 4, 32, 36)), ((256, 400), (256, 300), (0, 0, 224, 224)),
     ((300, 1000), (256, 853), (0, 0, 224, 224)), ((400, 533), (224, 224), (0, 0, 224, 224))],
    ids=["small", "one pass", "down first", "no crop"],
)  # fmt: skip
def test_where_there_is_nothing_to_gain_pillow_does_it_all(asked, size, new_size, part):
    sktransfer.resampling._is_exact()
    asked.clear()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    result = resize_part(image, new_size, part, Image.Resampling.BILINEAR)
    assert result == image.resize(new_size, Image.Resampling.BILINEAR).crop(part)
    assert asked == []


def test_a_pillow_that_works_in_another_way_is_noticed(asked, monkeypatch):
    resize = Image.Image.resize

    def another(self, size, resample=None, box=None):
        result = resize(self, size, resample, box)
        return result.point(lambda value: value ^ 1) if box is not None else result

    sktransfer.resampling._is_exact.cache_clear()
    monkeypatch.setattr(Image.Image, "resize", another)
    assert not sktransfer.resampling._is_exact()
    asked.clear()
    resize_part(Image.new("RGB", (400, 533)), (256, 341), (16, 58, 240, 282), Image.Resampling.BILINEAR)
    sktransfer.resampling._is_exact.cache_clear()
    assert asked == []
