"""Views: the windows of an image that a network sees one by one, and whose embeddings are averaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from sktransfer.preprocessing import Pixels, Preprocessing

ViewsName = Literal["center", "flip", "five_crop"]
Vector = np.ndarray[Any, np.dtype[np.float32]]

# In the order in which they are added up.
_WINDOWS = {
    "center": ("center",),
    "flip": ("center", "mirror"),
    "five_crop": ("center", "top_left", "top_right", "bottom_left", "bottom_right"),
}


@dataclass(frozen=True)
class Views:
    """What a network sees of an image: the windows called `name` of what a preprocessing makes of it.

    Raises
    ------
    ValueError
        If there are no such views, or all five crops would be the same for every image.
    """

    preprocessing: Preprocessing
    name: ViewsName = "center"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _WINDOWS:
            raise ValueError(f'views must be "center", "flip" or "five_crop". Got {self.name!r} instead.')
        resize, crop = self.preprocessing.resize, self.preprocessing.crop
        if self.name == "five_crop" and isinstance(resize, tuple) and resize[0] <= crop[0] and resize[1] <= crop[1]:
            raise ValueError(
                f'views="five_crop" must have a resize that is larger than the crop. Got resize={resize} and '
                f'crop={crop} instead, where all five are the same; use views="flip", or a Preprocessing with room.'
            )

    @property
    def windows(self) -> tuple[str, ...]:
        """The names of the single views, "center" first."""
        return _WINDOWS[self.name]

    @property
    def geometries(self) -> tuple[str, ...]:
        """Text that identifies the pixels of each view; part of the keys of their embeddings."""
        p = self.preprocessing
        others = (json.dumps([p.resize, p.crop, p.resample, window]) for window in self.windows[1:])
        return p.geometry, *others

    def cut(self, image: Image.Image) -> tuple[Pixels, ...]:
        """The pixels of each view of an upright image: uint8 (height, width, 3)."""
        if self.name == "five_crop":
            return self.preprocessing.resize_and_crop_five(image)
        center = self.preprocessing.resize_and_crop(image)
        return (center,) if self.name == "center" else (center, np.ascontiguousarray(center[:, ::-1]))


def average_views(vectors: Sequence[Vector]) -> Vector:
    """The mean of the vectors of an image's views, in double precision and in their order; one vector is itself."""
    return vectors[0] if len(vectors) == 1 else np.stack(vectors).mean(axis=0, dtype=np.float64).astype(np.float32)
