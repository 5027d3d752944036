"""All images with several plans: part by part, so that each is decoded once and the pixels of few are in memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sktransfer.cache import open_cache
from sktransfer.crops import Crops, count_images
from sktransfer.embedding import Content, Embeddings, Run, shows_progress
from sktransfer.exceptions import ImageFailure, ImageReadError, MissingExtraError
from sktransfer.extraction import describe_empty, describe_failure, fill_cells
from sktransfer.locations import read_content
from sktransfer.options import ExtractionOptions, ExtractionPlan
from sktransfer.progress import Progress, open_progress
from sktransfer.references import Images, References, list_images
from sktransfer.session import open_session

PART_BYTES = 128 * 10**6  # of pixels that wait for their other graphs
PART_IMAGES = 64  # at least, for threads that start and end with each part
TIMED_IMAGES = 16
TIMED_SECONDS = 0.5  # in which they are embedded again and again, at most so many times:
TIMED_ROUNDS = 5

Blocks = Sequence[Embeddings]


def allocate(images: Images, plan: ExtractionPlan) -> Blocks:
    """Room for the vectors of a plan: one block for each of the columns of `images`."""
    return [np.empty((len(column), plan.graph.n_features), dtype=np.float32) for column in images.columns]


def embed_with_all(
    images: Images,
    plans: Sequence[ExtractionPlan],
    options: ExtractionOptions,
    outputs: Sequence[Blocks] | None = None,
) -> dict[int, str]:
    """Embed every image with every plan, into the cache and, where they are given, into the blocks of each plan.

    Returns
    -------
    dict
        The reason for each image that could not be read, by its index. It is not tried with the plans behind.
    """
    nowhere: list[Blocks | None] = [None] * len(plans)
    work = list(zip(plans, outputs or nowhere, strict=True))
    views = [plan.views for plan in plans]
    n_images = len(images.places)
    size = n_images if len(plans) == 1 else max(PART_IMAGES, count_images(views, PART_BYTES))
    progress = open_progress(n_images * len(plans)) if shows_progress(options) else None
    broken: dict[int, str] = {}
    try:
        for start in range(0, n_images, max(size, 1)):
            broken |= _embed_part(images, range(start, min(start + size, n_images)), work, options, progress)
            work.reverse()  # only a few sessions stay open: those used last come first
    finally:
        if progress is not None:
            progress.close()
    return broken


def _embed_part(
    images: Images,
    part: Sequence[int],
    work: Sequence[tuple[ExtractionPlan, Blocks | None]],
    options: ExtractionOptions,
    progress: Progress | None,
) -> dict[int, str]:
    crops = Crops(plan.views for plan, _ in work) if len(work) > 1 else None
    broken: dict[int, str] = {}
    for number, (plan, blocks) in enumerate(work, start=1):
        some = replace(images, places=[images.places[index] for index in part])
        found = Run(some, plan, options, blocks, progress, crops).embed_all()
        if crops is not None:
            crops.end(plan.views)
        if progress is not None:
            progress.advance(failed=len(found) * (len(work) - number))
        broken.update((part[position], reason) for position, reason in found.items())
        part = [index for position, index in enumerate(part) if position not in found]
    return broken


class Embedded:
    """The rows of `references` that have an image, with their vectors of several plans.

    With a cache the vectors of one plan at a time are in memory; without one, or one that cannot be written, of all.

    Raises
    ------
    ImageReadError
        If more than half of the rows have no readable image.
    """

    def __init__(self, references: References, plans: Sequence[ExtractionPlan], options: ExtractionOptions) -> None:
        self._references, self._options, self._images = references, options, list_images(references)
        self._blocks: dict[ExtractionPlan, Blocks] = {}
        plans = list(dict.fromkeys(plans))
        if not open_cache(options.cache_dir).keeps():
            self._blocks = {plan: allocate(self._images, plan) for plan in plans}
        self._broken = embed_with_all(self._images, plans, options, list(self._blocks.values()) or None)
        read = {self._images.cell(index) for index in range(len(self._images.places)) if index not in self._broken}
        found = np.bincount([row for _, row in read], minlength=references.n_rows)
        self.rows = np.flatnonzero(found == len(references.columns))  # those with an image in each column
        self.failures = self._describe_failures()
        n_left_out = references.n_rows - len(self.rows)
        if n_left_out * 2 > references.n_rows:
            where = f" (root={os.fspath(options.root)!r})" if options.root is not None else ""
            raise ImageReadError(
                f"{n_left_out} of {references.n_rows} rows have no readable image{where}: is this the right folder? "
                f"The first: {self.failures[0]}.",
                self.failures,
            )

    def _describe_failures(self) -> list[ImageFailure]:
        failures = describe_empty(self._references, self._images)
        for index, reason in self._broken.items():
            failures.append(describe_failure(self._references, self._images, index, reason))
        return sorted(failures, key=lambda failure: failure.row)

    def vectors(self, plan: ExtractionPlan) -> Embeddings:
        """The vectors of `rows`: float32 (n, columns * d).

        Raises
        ------
        ImageReadError
            If an image cannot be read any more.
        """
        blocks = self._blocks.get(plan) or self._recall(plan)
        columns = blocks[: len(self._references.columns)]
        fill_cells(self._images, self._broken, columns, blocks[len(columns) :], self._options)
        return np.concatenate([block[self.rows] for block in columns], axis=1)

    def _recall(self, plan: ExtractionPlan) -> Blocks:
        blocks, images = allocate(self._images, plan), self._images
        readable = [index for index in range(len(images.places)) if index not in self._broken]
        some = replace(images, places=[images.places[index] for index in readable])
        for position, reason in Run(some, plan, replace(self._options, verbose=False), blocks).embed_all().items():
            failure = describe_failure(self._references, images, readable[position], reason)
            raise ImageReadError(f"{failure}. It could be read a moment ago; run it again.", [failure])
        return blocks


def read_some(images: Images, options: ExtractionOptions, n_images: int = TIMED_IMAGES) -> list[Content]:
    """The content of some images from the first to the last, without those that cannot be read."""
    contents = []
    for index in np.unique(np.linspace(0, len(images.places) - 1, min(n_images, len(images.places))).astype(int)):
        try:
            contents.append(read_content(images.reference(index), options.root, options.pixel_range))
        except MissingExtraError:
            raise
        except Exception:  # noqa: S112 - it will be named when it is embedded
            continue
    return contents


def measure_rate(plan: ExtractionPlan, contents: Sequence[Content], options: ExtractionOptions) -> float:
    """Images a second, from encoded bytes to vectors: decoded, resized and run now, whatever the cache knows.

    The median of some rounds. The session is opened, and has run once, before the first. NaN if no image can be
    decoded.

    Raises
    ------
    BackboneError, DeviceError
        If the session cannot be opened.
    """
    session = open_session(plan.graph, plan.device)
    session.run(np.zeros((1, *plan.graph.preprocessing.crop, 3), dtype=np.uint8))
    images, fresh = list_images(References((list(contents),))), replace(options, cache_dir=None, verbose=False)
    rates: list[float] = []
    begun = time.perf_counter()
    while not rates or (len(rates) < TIMED_ROUNDS and time.perf_counter() - begun < TIMED_SECONDS):
        run = Run(images, plan, fresh, allocate(images, plan))
        started = time.perf_counter()
        run.embed_all()
        rates.append(run.passes / (time.perf_counter() - started) if run.passes else np.nan)
    return statistics.median(rates)
