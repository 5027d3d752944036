"""Pixels that several embedding graphs take of the same images, so that each image is decoded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from sktransfer.preprocessing import Preprocessing

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Crops:
    """What every geometry makes of an image, from the first graph that asks to the last. Safe for threads.

    It holds the images of one part of a call, which is as long as memory allows (`count_images`).
    """

    def __init__(self, preprocessings: Iterable[Preprocessing]) -> None:
        self._waiting = [(preprocessing.geometry, preprocessing) for preprocessing in preprocessings]
        self._kept: dict[tuple[bytes, str], Pixels] = {}

    def recall(self, digest: bytes, preprocessing: Preprocessing) -> Pixels | None:
        """The pixels of an image by its digest; None where nobody has decoded it yet."""
        return self._kept.get((digest, preprocessing.geometry))

    def cut(self, digest: bytes, image: Image.Image, preprocessing: Preprocessing) -> Pixels:
        """The pixels of a decoded image for one graph; those for the others are kept until they ask."""
        for geometry, other in dict(self._waiting).items():
            self._kept[digest, geometry] = other.resize_and_crop(image)
        return self._kept[digest, preprocessing.geometry]

    def end(self, preprocessing: Preprocessing) -> None:
        """One graph has had its images."""
        self._waiting.remove((preprocessing.geometry, preprocessing))
        left = {geometry for geometry, _ in self._waiting}
        self._kept = {key: pixels for key, pixels in self._kept.items() if key[1] in left}


def count_images(preprocessings: Iterable[Preprocessing], n_bytes: int) -> int:
    """Images whose pixels, in every geometry, take so many bytes; at least one."""
    crops = {preprocessing.geometry: preprocessing.crop for preprocessing in preprocessings}
    return max(1, n_bytes // sum(3 * height * width for height, width in crops.values()))
