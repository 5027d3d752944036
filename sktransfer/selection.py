"""Several backbones at once: their embeddings kept, and which of them suits a task."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sktransfer.cache import CacheDir, open_cache
from sktransfer.candidates import (
    BackboneReference,
    Layers,
    announce_downloads,
    count_plan_macs,
    list_candidates,
    name_backbones,
    plan_logits,
)
from sktransfer.exceptions import ImageReadWarning
from sktransfer.extraction import (
    describe_failure,
    plan_extraction,
    read_references,
    summarise_failures,
)
from sktransfer.options import ExtractionOptions, ExtractionPlan
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import list_images
from sktransfer.scoring import (
    OF_CLASSIFIERS,
    Scores,
    check_folds,
    name_scores,
    read_targets_of_images,
    score_embeddings,
)
from sktransfer.sweep import Embedded, embed_with_all, measure_rate, read_some
from sktransfer.views import ViewsName

if TYPE_CHECKING:
    import pandas as pd


def prefetch(
    images: Any,
    backbones: BackboneReference | Sequence[BackboneReference] = "default",
    *,
    layer: str | None = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    views: ViewsName = "center",
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
    what is finished, and the next one goes on from there. An image is decoded once for all backbones.

    Parameters
    ----------
    images : sequence, Series, frame or array of images
        As for :class:`PretrainedFeatureExtractor`; empty cells are passed over.
    backbones : str, Path or Backbone, or a list of them
        All are resolved before the first image is read.
    layer, pooling, preprocessing, views, device, precision, batch_size, root, image_shape, pixel_range, n_jobs, verbose
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
    plans = [plan_extraction(one, layer, pooling, preprocessing, device, precision, cache_dir, views=views)
             for one in name_backbones(backbones)]  # fmt: skip
    references = read_references(images, image_shape)
    listed = list_images(references)
    broken = embed_with_all(listed, plans, options)
    open_cache(cache_dir).warn(stacklevel=2)
    if broken:
        failures = [describe_failure(references, listed, index, broken[index]) for index in sorted(broken)]
        warnings.warn(ImageReadWarning(f"{summarise_failures(failures)}.", failures), stacklevel=2)


def rank_backbones(
    images: Any,
    y: Any,
    backbones: BackboneReference | Sequence[BackboneReference] = "default",
    *,
    layers: Layers = None,
    scores: Scores = "logme",
    groups: Any = None,
    cv: Any = None,
    n_resamples: int = 20,
    random_state: int = 0,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    views: ViewsName = "center",
    device: Any = "auto",
    precision: str = "float32",
    batch_size: int | Literal["auto"] = "auto",
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] | None = None,
    cache_dir: CacheDir = "auto",
    n_jobs: int | None = None,
    verbose: bool | int = False,
) -> pd.DataFrame:
    """Rank backbones, and layers of them, by how well their embeddings tell the labels of images.

    Nothing is trained for the default score. Each image is decoded once, however many candidates there are, and each
    embedding is computed once and kept in the cache, where ``PretrainedFeatureExtractor(backbone, layer=layer)`` finds
    it. Where images cannot be read, their rows are left out for all candidates alike.

    Parameters
    ----------
    images : sequence, Series, frame or array of n images
        As for :class:`PretrainedFeatureExtractor`.
    y : array-like of shape (n,)
        Labels; or the values of a regression, which is what floats are taken for.
    backbones : str, Path or Backbone, or a list of them
        What is compared. All are opened before the images are embedded; what is not on this machine is fetched.
    layers : None, list or dict, default=None
        Where each backbone is cut. None is its own embedding; a list of names and aliases ("stage3", "last_map",
        "penultimate"; a list in it is a concatenation) is tried on each, and a layer that a backbone does not have is
        left out with a warning; a dict gives lists to some of the backbones.
    scores : str, callable, or a list of them, default="logme"
        "logme", "h_score", "linear_probe" (cross-validated accuracy, or R²), "leep", "nce", or functions of (X, y) that
        return more for better embeddings. The first one ranks. "leep" and "nce" take the network's own classifier, are
        the same for all layers, and NaN where there is none. A regression has "logme", of values around their mean, and
        "linear_probe".
    groups : array-like of shape (n,) or None, default=None
        Rows of one group stay together, in the folds of "linear_probe" and in the interval.
    cv : int, splitter or None, default=None
        Folds of "linear_probe"; None is five.
    n_resamples : int, default=20
        Parts of the rows that the interval is made from; 0 leaves it out.
    random_state : int, default=0
        Which parts these are.
    pooling, preprocessing, views, device, precision, batch_size, root, image_shape, pixel_range, cache_dir, n_jobs
        As for :class:`PretrainedFeatureExtractor`, the same for every backbone. With ``cache_dir=None`` the embeddings
        of all candidates are in memory together.
    verbose : bool, default=False
        Say what is fetched, and show a progress bar.

    Returns
    -------
    DataFrame
        One row for each candidate, best first:

        - `rank`, from 1; `backbone` and `layer`, as :class:`PretrainedFeatureExtractor` takes them (a Backbone by its
          name, layers that are concatenated joined by " + ");
        - one column for each score;
        - `low` and `high`: an interval of 90 % of the first score, from `n_resamples` random halves of the rows (parts
          of about 500 where there are more than 1,000), each with all classes. Not from a bootstrap, whose copies of
          rows LogME takes for evidence. NaN without at least two halves;
        - `n_features` and `macs`, multiply-accumulates of an image up to the layer, for all of its `views`;
        - `images_per_second`, from encoded bytes to embeddings with `n_jobs` threads: decoding, resizing and forward
          pass of 16 of the images (a batch on a GPU), never from the cache, and without opening the session.

    Raises
    ------
    BackboneError
        If a backbone or a layer cannot be used; before an image is embedded.
    ImageReadError
        If more than half of the rows have no readable image.
    ValueError
        If labels are missing or do not vary.

    Warns
    -----
    ImageReadWarning
        If rows are left out; its `failures` name them.

    Notes
    -----
    The interval is that of other images of the same kind, and not of another task; halves are the same for all
    candidates. What the scores mean, and when they can be trusted: docs/choosing.md.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import rank_backbones
    >>> digits = load_digits()
    >>> images, labels = (digits.images[:200] * 15).astype("uint8"), digits.target[:200]
    >>> table = rank_backbones(images, labels, "default", layers=["stage2", "stage4"])
    >>> table[["rank", "layer", "n_features"]]
       rank   layer  n_features
    0     1  stage4         256
    1     2  stage2          64
    """
    options = ExtractionOptions(missing_images="nan", broken_images="nan", root=root, pixel_range=pixel_range,
                                batch_size=batch_size, cache_dir=cache_dir, n_jobs=n_jobs, verbose=verbose)  # fmt: skip
    for name, value in (("n_resamples", n_resamples), ("random_state", random_state)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be an integer >= 0. Got {value!r} instead.")
    references = read_references(images, image_shape)
    targets = read_targets_of_images(y, groups, cv, references.n_rows)
    named = name_scores(scores, regression=targets.regression)
    check_folds(named, targets)
    cache, chosen = open_cache(cache_dir), name_backbones(backbones)
    announce_downloads(chosen, cache, verbose)

    def resolve(reference: BackboneReference, layer: Any, pooling: str | None = pooling) -> ExtractionPlan:
        return plan_extraction(reference, layer, pooling, preprocessing, device, precision, cache_dir, views=views,
                               progress=bool(verbose))  # fmt: skip

    candidates = list_candidates(chosen, layers, resolve)
    logits = plan_logits(candidates, partial(resolve, pooling=None)) if set(OF_CLASSIFIERS) & set(named) else {}
    contents = read_some(list_images(references), options)
    rates = [measure_rate(candidate.plan, contents, options) for candidate in candidates]
    embedded = Embedded(references, [*(candidate.plan for candidate in candidates), *logits.values()], options)
    cache.warn(stacklevel=2)
    if embedded.failures:
        message = f"{summarise_failures(embedded.failures)}. Such rows are left out."
        warnings.warn(ImageReadWarning(message, embedded.failures), stacklevel=2)
    rows = []
    for candidate, rate in zip(candidates, rates, strict=True):
        plan, own = candidate.plan, logits.get(candidate.reference)
        rows.append(
            {"backbone": candidate.backbone, "layer": candidate.layer}
            | score_embeddings(
                named,
                embedded.vectors(plan),
                None if own is None else embedded.vectors(own),
                targets.take(embedded.rows),
                n_resamples,
                random_state,
            )
            | {"n_features": plan.graph.n_features, "macs": count_plan_macs(plan, cache), "images_per_second": rate}
        )
    return _sort(rows, next(iter(named)))


def _sort(rows: Sequence[dict[str, Any]], score: str) -> pd.DataFrame:
    """The best first, NaN last."""
    import pandas as pd

    frame = pd.DataFrame(rows).sort_values(score, ascending=False, kind="stable", na_position="last", ignore_index=True)
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame
