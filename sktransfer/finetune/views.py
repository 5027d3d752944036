"""Pixels of images as a network takes them, and random crops and flips of them, drawn once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from sktransfer.exceptions import ImageReadError
from sktransfer.extraction import describe_failure, summarise_failures
from sktransfer.images import decoding, describe_error, quiet_decoder
from sktransfer.locations import read_content
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import Images, References

SMALLEST = 0.25  # share of the area that a crop of the network's own shape would have
STRETCH = 4 / 3  # most that a crop is wider or narrower than the network's own

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Make = Callable[[Image.Image, int], Pixels]


def make_pixels(
    references: References, images: Images, rows: Sequence[int], n_views: int, make: Make, size: tuple[int, int],
    root: str | os.PathLike[str] | None, n_threads: int,
) -> Pixels:  # fmt: skip
    """What `make` gives for every image, view by view: uint8 (n_views, n, height, width, 3).

    Raises
    ------
    ImageReadError
        If an image cannot be read; it names the row.
    """
    pixels = np.empty((n_views, len(rows), *size, 3), dtype=np.uint8)
    reasons: dict[int, str] = {}

    def read(position: int) -> None:
        try:
            with decoding(read_content(images.reference(rows[position]), root), None) as image:
                for view in range(n_views):
                    pixels[view, position] = make(image, position * n_views + view)
        except Exception as error:
            reasons[rows[position]] = describe_error(error)

    with quiet_decoder(), ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(read, range(len(rows))))
    if reasons:
        failures = [describe_failure(references, images, index, reasons[index]) for index in sorted(reasons)]
        raise ImageReadError(f"{summarise_failures(failures)}.", failures)
    return pixels


def crop_and_flip(preprocessing: Preprocessing, random_state: int) -> Make:
    """Random crops, half of them mirrored: the n-th is the same in every call with the same `random_state`."""

    def make(image: Image.Image, number: int) -> Pixels:
        rng = np.random.default_rng([random_state, number])
        box = draw_box(image.size, preprocessing, rng)
        height, width = preprocessing.crop
        cropped = image.resize((width, height), Image.Resampling[preprocessing.resample.upper()], box=box)
        return np.asarray(cropped)[:, :: rng.choice((-1, 1))]

    return make


def draw_box(
    size: tuple[int, int], preprocessing: Preprocessing, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of an image of (width, height): left, top, right, bottom, in its pixels.

    As Szegedy et al. 2015 (arXiv:1409.4842, section 6) crop, around the shape that the network's own crop has.
    """
    width, height = map(float, size)
    if not isinstance(preprocessing.resize, tuple):  # which would squash the whole image
        tall, wide = preprocessing.crop
        width, height = min(width, height * wide / tall), min(height, width * tall / wide)
    area, stretch = rng.uniform(SMALLEST, 1), STRETCH ** rng.uniform(-1, 1)
    width, height = min(width * (area * stretch) ** 0.5, size[0]), min(height * (area / stretch) ** 0.5, size[1])
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, top + height
