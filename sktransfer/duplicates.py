"""Rows that show the same photo, for splits that must not know it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sktransfer.backbones import Backbone
from sktransfer.embedding import Embeddings, Run
from sktransfer.extraction import plan_extraction, read_references
from sktransfer.options import ExtractionOptions, ExtractionPlan
from sktransfer.references import Images, list_images

ROUNDING = 1e-6  # of a cosine distance in single precision

Groups = np.ndarray[Any, np.dtype[np.int64]]


def duplicate_groups(
    images: Any,
    backbone: str | os.PathLike[str] | Backbone = "default",
    *,
    distance: float = 0.02,
    root: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    verbose: bool | int = False,
) -> Groups:
    """Number rows so that rows with the same photo, or nearly the same, have the same number.

    The ``groups`` of ``GroupKFold`` and its kin: with them a photo that comes up again does not lie on both sides of
    a split. Photos are the same if the cosine distance of their embeddings is at most `distance`, and rows if any of
    their photos are, directly or through others.

    Parameters
    ----------
    images : sequence, Series, frame or array of n images
        As for :class:`PretrainedFeatureExtractor`; all columns of a frame count. Rows without a readable image are
        groups of their own.
    backbone : str, Path or Backbone, default="default"
        What the photos are compared by. `distance` is made for the default.
    distance : float, default=0.02
        Largest cosine distance, 0 to 2. With the default backbone, photos that were compressed or made smaller lay
        within 0.003 of the original, 93 % or more of those cut by 3 % on each side within 0.02, and nearly all other
        photos beyond it (benchmarks/results/duplicates.md). 0 means the same content.
    root : str, Path or None, default=None
        Folder that relative paths start from.
    n_jobs : int or None, default=None
        Threads.
    verbose : bool, default=False
        Show a progress bar.

    Returns
    -------
    ndarray of shape (n,), int64
        Group of each row, numbered from 0 in the order of their first rows.

    Raises
    ------
    ValueError
        If `distance` is outside 0..2.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> china, flower = load_sample_images().images
    >>> duplicate_groups([china, flower, china[::2, ::2], flower])
    array([0, 1, 0, 1])
    """
    if not isinstance(distance, (int, float, np.number)) or not 0 <= distance <= 2:
        raise ValueError(f"distance must lie in 0..2. Got {distance!r} instead.")
    options = ExtractionOptions(root=root, n_jobs=n_jobs, verbose=verbose)
    references = read_references(images, None)
    listed = list_images(references)
    rows, vectors = _embed(listed, plan_extraction(backbone, progress=bool(verbose)), options)
    return _number_rows(references.n_rows, rows, vectors, distance)


def _embed(images: Images, plan: ExtractionPlan, options: ExtractionOptions) -> tuple[Groups, Embeddings]:
    """The row and the vector of every readable image."""
    blocks = [np.empty((len(column), plan.graph.n_features), dtype=np.float32) for column in images.columns]
    broken = Run(images, plan, options, blocks).embed_all()
    usable = [index for index in range(len(images.places)) if index not in broken]
    vectors = np.empty((len(usable), plan.graph.n_features), dtype=np.float32)
    for target, index in enumerate(usable):
        column, position = images.places[index]
        vectors[target] = blocks[column][position]
    return np.array([images.cell(index)[1] for index in usable], dtype=np.int64), vectors


def _number_rows(n_rows: int, rows: Groups, vectors: Embeddings, distance: float) -> Groups:
    """Connected components of rows, distinct vectors, and vectors that are near each other."""
    from scipy.sparse import bmat, csr_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    if not len(vectors):
        return np.arange(n_rows)
    distinct, inverse = np.unique(vectors, axis=0, return_inverse=True)
    shows = csr_array((np.ones(len(rows)), (rows, inverse.ravel())), shape=(n_rows, len(distinct)))
    search = NearestNeighbors(radius=distance + ROUNDING, metric="cosine", algorithm="brute").fit(distinct)
    graph = bmat([[None, shows], [shows.T, search.radius_neighbors_graph(mode="connectivity")]])
    labels = connected_components(graph, directed=False)[1][:n_rows]
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group].astype(np.int64)
