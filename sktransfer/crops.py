"""Pixels that several embedding graphs take of the same images, so that each image is decoded once."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from sktransfer.preprocessing import Pixels
from sktransfer.views import Views


class Crops:
    """What every geometry makes of an image, from the first graph that asks to the last. Safe for threads.

    It holds the images of one part of a call, which is as long as memory allows (`count_images`).
    """

    def __init__(self, views: Iterable[Views]) -> None:
        self._waiting = list(views)
        self._kept: dict[tuple[bytes, str], Pixels] = {}

    def recall(self, digest: bytes, views: Views) -> tuple[Pixels, ...] | None:
        """The pixels of an image by its digest, for each view; None where nobody has decoded it yet."""
        found = [self._kept.get((digest, geometry)) for geometry in views.geometries]
        kept = tuple(pixels for pixels in found if pixels is not None)
        return kept if len(kept) == len(found) else None

    def cut(self, digest: bytes, image: Image.Image, views: Views) -> tuple[Pixels, ...]:
        """The pixels of a decoded image for one graph; those for the others are kept until they ask."""
        made = {other.geometries: other.cut(image) for other in {one.geometries: one for one in self._waiting}.values()}
        for geometries, pixels in made.items():
            self._kept.update(zip([(digest, geometry) for geometry in geometries], pixels, strict=True))
        return made[views.geometries]

    def end(self, views: Views) -> None:
        """One graph has had its images."""
        self._waiting.remove(views)
        left = {geometry for one in self._waiting for geometry in one.geometries}
        self._kept = {key: pixels for key, pixels in self._kept.items() if key[1] in left}


def count_images(views: Iterable[Views], n_bytes: int) -> int:
    """Images whose pixels, in every geometry, take so many bytes; at least one."""
    crops = {geometry: one.preprocessing.crop for one in views for geometry in one.geometries}
    return max(1, n_bytes // sum(3 * height * width for height, width in crops.values()))
