"""Several backbones at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from sktransfer.backbones import Backbone
from sktransfer.cache import CacheDir, open_cache
from sktransfer.embedding import Run
from sktransfer.exceptions import ImageFailure, ImageReadWarning
from sktransfer.extraction import describe_failure, plan_extraction, read_references, summarise_failures
from sktransfer.options import ExtractionOptions
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import list_images

BackboneReference = str | os.PathLike[str] | Backbone


def prefetch(
    images: Any,
    backbones: BackboneReference | Sequence[BackboneReference] = "default",
    *,
    layer: str | None = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    device: Any = "auto",
    precision: str = "float32",
    batch_size: int | Literal["auto"] = "auto",
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] | None = None,
    cache_dir: CacheDir = "auto",
    n_jobs: int | None = None,
    verbose: bool | int = False,
) -> None:
    """Embed images with one or several backbones into the cache, without an array of the results.

    Whatever asks for these embeddings afterwards, in this process or another one, finds them. An interrupted call keeps
    what is finished, and the next one goes on from there.

    Parameters
    ----------
    images : sequence, Series, frame or array of images
        As for :class:`PretrainedFeatureExtractor`; empty cells are passed over.
    backbones : str, Path or Backbone, or a list of them
        All are resolved before the first image is read.
    layer, pooling, preprocessing, device, precision, batch_size, root, image_shape, pixel_range, n_jobs, verbose
        As for :class:`PretrainedFeatureExtractor`, the same for every backbone.
    cache_dir : "auto" or path, default="auto"
        Where the embeddings go.

    Warns
    -----
    ImageReadWarning
        If images cannot be read; its `failures` name them.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sktransfer import cache_info, prefetch
    >>> prefetch(load_sample_images().images, "default")
    >>> cache_info().entries >= 2
    True
    """
    if cache_dir is None:
        raise ValueError('cache_dir must be "auto" or a path. Got None instead, and prefetch would do nothing.')
    options = ExtractionOptions(root=root, pixel_range=pixel_range, batch_size=batch_size, cache_dir=cache_dir,
                                n_jobs=n_jobs, verbose=verbose)  # fmt: skip
    wanted = [backbones] if isinstance(backbones, (str, os.PathLike, Backbone)) else list(backbones)
    if not wanted:
        raise ValueError("backbones must name at least one backbone. Got an empty list instead.")
    plans = [plan_extraction(one, layer, pooling, preprocessing, device, precision, cache_dir) for one in wanted]
    references = read_references(images, image_shape)
    listed = list_images(references)
    failed: dict[int, ImageFailure] = {}
    for plan in plans:
        for index, reason in Run(listed, plan, options, None).embed_all().items():
            failed[index] = describe_failure(references, listed, index, reason)
    open_cache(cache_dir).warn(stacklevel=2)
    if failed:
        failures = [failed[index] for index in sorted(failed)]
        warnings.warn(ImageReadWarning(f"{summarise_failures(failures)}.", failures), stacklevel=2)
