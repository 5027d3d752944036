"""Pillow's resize, computed only for the part that a crop keeps: the same pixels for less work.

Pillow resizes 8-bit images in two passes, across and down, and rounds to 8 bits in between. Its own ``resize(box=...)``
keeps the crop in 32-bit floats, which moves the weights and with them pixels. Here each pass is asked for what the next
one needs, in ways that leave the weights alone.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

MIN_PIXELS = 40_000  # of the two passes together, below which it does not pay
MAX_PIXELS = 16_000_000  # of the image, above which memory counts

# Pillow 13, src/libImaging/Resample.c: half the width of each filter; older versions have the same
_SUPPORT = {
    Image.Resampling.BOX: 0.5,
    Image.Resampling.BILINEAR: 1.0,
    Image.Resampling.HAMMING: 1.0,
    Image.Resampling.BICUBIC: 2.0,
    Image.Resampling.LANCZOS: 3.0,
}
_Box = tuple[int, int, int, int]


def resize_part(image: Image.Image, size: tuple[int, int], part: _Box, resample: Image.Resampling) -> Image.Image:
    """What ``image.resize(size, resample).crop(part)`` gives, to the bit.

    Parameters
    ----------
    image : Image
        RGB.
    size : (int, int)
        Width and height of the whole resized image.
    part : (left, upper, right, lower)
        Of the resized image, inside it.
    """
    (width, height), (new_width, new_height) = image.size, size
    across_first = height - new_height <= max(0, 2 * (width - new_width))  # Resample.c: horizontal_first
    small = new_width * (height + new_height) < MIN_PIXELS
    whole = part == (0, 0, *size) or width == new_width or height == new_height
    large = width * height > MAX_PIXELS  # the rows that are kept would be a second copy of most of it
    if small or large or whole or not across_first or resample not in _SUPPORT or not _is_exact():
        return image.resize(size, resample).crop(part)
    return _resize_part(image, size, part, resample)


def _resize_part(image: Image.Image, size: tuple[int, int], part: _Box, resample: Image.Resampling) -> Image.Image:
    (width, height), (new_width, new_height), (left, upper, right, lower) = image.size, size, part
    # Only the rows that the second pass looks at are resized across.
    scale = height / new_height
    reach = _SUPPORT[resample] * max(scale, 1.0) + 1
    first = max(0, int((upper + 0.5) * scale - reach))
    last = min(height, int((lower - 0.5) * scale + reach) + 1)
    rows = image.crop((0, first, width, last)) if last - first < height else image
    # A box changes no weight where 32-bit floats hold its ends, as they do for new widths that are powers of two.
    scale = width / new_width
    if all(float(np.float32(value)) == value for value in (scale, left * scale, right * scale)):
        rows = rows.resize((right - left, rows.height), resample, (left * scale, 0, right * scale, rows.height))
    else:
        rows = rows.resize((new_width, rows.height), resample).crop((left, 0, right, rows.height))
    # The second pass needs the rows where they were; what surrounds them reaches no row that is kept.
    if rows.height < height:
        canvas = Image.new("RGB", (right - left, height))
        canvas.paste(rows, (0, first))
        rows = canvas
    return rows.resize((right - left, new_height), resample).crop((0, upper, right - left, lower))


@functools.cache
def _is_exact() -> bool:
    """Whether this Pillow still works in the way that `resize_part` relies on."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 40, 3), dtype=np.uint8)
    image, resample = Image.fromarray(pixels), Image.Resampling.BILINEAR
    for size, part in (((32, 36), (2, 4, 30, 32)), ((27, 30), (3, 1, 24, 29)), ((48, 54), (1, 7, 47, 50))):
        expected = np.asarray(image.resize(size, resample).crop(part))
        if not np.array_equal(np.asarray(_resize_part(image, size, part, resample)), expected):
            return False
    return True
