"""What the trained part takes, of every image and every view of it, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sktransfer.backbones import Backbone
from sktransfer.cache import CacheDir
from sktransfer.exceptions import ImageReadError
from sktransfer.extraction import describe_failure, extract_references, plan_extraction, summarise_failures
from sktransfer.finetune.views import Pixels, crop_and_flip, make_pixels
from sktransfer.network import Network
from sktransfer.options import ExtractionOptions, count_threads
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import Images, References

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Prefix:
    """The part of a network that is not trained: pixels in, maps out; nothing at all where all of it is trained.

    Attributes
    ----------
    tensor : str
        Where it ends.
    shape : tuple of int
        Of what it yields for one image.
    """

    backbone: Backbone
    network: Network
    tensor: str
    shape: tuple[int, ...]
    device: Any
    cache_dir: CacheDir

    @property
    def preprocessing(self) -> Preprocessing:
        """The network's own."""
        return self.network.preprocessing

    @property
    def is_empty(self) -> bool:
        """Whether the whole network is trained."""
        return self.tensor == self.network.image_input.name

    def extract(self, references: References, preprocessing: Preprocessing, options: ExtractionOptions) -> Floats:
        """What the prefix yields: float32 (n, *shape)."""
        plan = plan_extraction(
            self.backbone,
            self.tensor,
            "flatten" if len(self.shape) > 1 and self.shape[1:] != (1, 1) else None,
            preprocessing,
            self.device,
            cache_dir=self.cache_dir,
        )
        flat, _ = extract_references(references, plan, options)
        return flat.reshape(len(flat), *self.shape)


@dataclass(frozen=True)
class Rows:
    """Maps, or pixels where all of a network is trained: (views, n, …); view 0 is the image as it is used."""

    values: np.ndarray[Any, Any]
    network: Network

    @property
    def n_views(self) -> int:
        """The image itself, and the crops of it."""
        return len(self.values)

    def take(self, views: Any, rows: Any) -> Floats:
        """What the trained part takes: float32 (len(rows), …)."""
        values = self.values[views, rows]
        return values if values.dtype == np.float32 else normalise(values, self.network)


def normalise(pixels: Pixels, network: Network) -> Floats:
    """What the embedding graph makes of pixels before the backbone: float32."""
    p = network.preprocessing
    images = pixels[..., ::-1] if p.channel_order == "BGR" else pixels
    factor, offset = p.scale / np.array(p.std), -np.array(p.mean) / np.array(p.std)
    values = images * factor.astype(np.float32) + offset.astype(np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if network.layout == "NCHW" else values)


def compute_rows(
    prefix: Prefix, references: References, images: Images, chosen: Sequence[int], n_views: int, random_state: int,
    options: ExtractionOptions,
) -> Rows:  # fmt: skip
    """Send every image, and `n_views` crops of each, through the prefix, once; the cache keeps what came out.

    Raises
    ------
    ImageReadError
        If an image cannot be read.
    """
    p, listed = prefix.preprocessing, [images.reference(index) for index in chosen]
    n_threads, root = count_threads(options.n_jobs), options.root
    if prefix.is_empty:
        own: np.ndarray[Any, Any] = make_pixels(
            references, images, chosen, 1, lambda image, _: p.resize_and_crop(image), p.crop, root, n_threads
        )
    else:
        try:
            own = prefix.extract(References((listed,), references.names), p, options)[None]
        except ImageReadError as error:  # of rows of `listed`, and with advice for `extract`
            failures = [describe_failure(references, images, chosen[one.row], one.reason) for one in error.failures]
            raise ImageReadError(f"{summarise_failures(failures)}.", failures) from error
    if not n_views:
        return Rows(own, prefix.network)
    crops = make_pixels(references, images, chosen, n_views, crop_and_flip(p, random_state), p.crop, root, n_threads)
    if prefix.is_empty:
        return Rows(np.concatenate([own, crops]), prefix.network)
    values = np.empty((1 + n_views, *own.shape[1:]), dtype=np.float32)
    values[0] = own[0]
    for view in range(n_views):
        values[1 + view] = prefix.extract(References((crops[view],)), replace(p, resize=None), options)
    return Rows(values, prefix.network)
