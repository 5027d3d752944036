"""Vectors of images that are seen in several views: found, claimed and published view by view, and averaged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sktransfer.blocks import Space
from sktransfer.cache import EmbeddingCache
from sktransfer.claims import Claim
from sktransfer.preprocessing import Pixels
from sktransfer.views import average_views

Vector = np.ndarray[Any, np.dtype[np.float32]]
Part = Vector | int | None  # a vector, its row among those that are run together, or neither


@dataclass
class Share:
    """Views of images that this process computes, of those that it has asked for.

    Attributes
    ----------
    wanted : dict
        The numbers of the views to be computed, by the digest of the image.
    waiting : set
        Images of which others compute a view.
    known, claims, computed : list
        For each view: vectors that were there, what is promised, vectors to be published.
    """

    wanted: dict[bytes, list[int]] = field(default_factory=dict)
    waiting: set[bytes] = field(default_factory=set)
    known: list[dict[bytes, Vector]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    computed: list[dict[bytes, Vector]] = field(default_factory=list)


class Averages:
    """The means of the vectors that a cache has of images in some spaces, one for each view. Safe for threads."""

    def __init__(self, cache: EmbeddingCache, spaces: Sequence[Space]) -> None:
        self._cache, self._spaces = cache, spaces

    def fetch(self, images: Collection[bytes]) -> dict[bytes, Vector]:
        """The means of the images whose views are all known."""
        found = [self._cache.fetch(self._spaces[0], images)]
        for space in self._spaces[1:]:
            found.append(self._cache.fetch(space, found[-1]))
        if len(found) == 1:
            return found[0]
        return {image: average_views([vectors[image] for vectors in found]) for image in found[-1]}

    def contains(self, images: Collection[bytes]) -> set[bytes]:
        """The images whose views are all in the store; they are not read."""
        found = set(images)
        for space in self._spaces:
            found = self._cache.contains(space, found)
        return found

    def claim(self, images: Sequence[bytes], limit: int | None = None) -> Share:
        """What the caller shall compute of images, of at most `limit` of them; what is beyond it counts as others'.

        A view is claimed only if nobody computes an earlier one of the image, so that one process decodes it for all.
        """
        share = Share()
        for number, space in enumerate(self._spaces):
            known = self._cache.fetch(space, images) if len(self._spaces) > 1 else {}
            lacking = [image for image in images if image not in known and image not in share.waiting]
            begun = limit is not None and bool(share.wanted)
            chosen = [image for image in lacking if image in share.wanted] if begun else lacking
            claim = self._cache.claim(space, chosen, None if begun else limit)
            others = set(lacking) - claim.images
            mine = set(claim.images)
            if limit is None:
                stored = others - claim.held
                known.update(self._cache.fetch(space, stored))  # by others, since the caller looked
                mine |= stored - known.keys()  # damaged
            for image in mine:
                share.wanted.setdefault(image, []).append(number)
            share.waiting |= others - mine - known.keys()
            share.known.append(known)
            share.claims.append(claim)
            share.computed.append({})
        return share

    def publish(self, share: Share) -> None:
        """Let others have what was computed, and end the claims."""
        for space, claim, computed in zip(self._spaces, share.claims, share.computed, strict=True):
            vectors = np.stack(list(computed.values())) if computed else np.empty((0, space.n_features), np.float32)
            self._cache.publish(space, list(computed), vectors, claim)


class Batch:
    """Pixels that are run together, and what becomes of their vectors. Views that look the same are run once."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self.pixels: list[Pixels] = []
        self._images: list[tuple[int, bytes, Sequence[int], list[Part]]] = []

    def add(self, index: int, digest: bytes, made_from: bytes, seen: Sequence[Pixels]) -> None:
        """The views of the image of a cell, and the digest of what they were made from: it may be new."""
        wanted: Sequence[int] = self._share.wanted[digest]
        parts: list[Part] = [known.get(digest) for known in self._share.known]
        if made_from != digest:  # it has changed, so that no view of what it was is of use
            self._share.waiting.discard(digest)
            wanted, parts = range(len(seen)), [None] * len(seen)
        for number in wanted:
            parts[number] = self._place(seen[number], zip(seen, parts, strict=True))
        self._images.append((index, made_from, wanted, parts))

    def _place(self, pixels: Pixels, others: Iterable[tuple[Pixels, Part]]) -> Part:
        """The vector, or the row in `pixels`, of a view that looks the same; else a new row."""
        for other, part in others:
            if part is not None and np.array_equal(other, pixels):
                return part
        self.pixels.append(pixels)
        return len(self.pixels) - 1

    def drop(self, digest: bytes) -> None:
        """An image that cannot be read."""
        self._share.waiting.discard(digest)

    def finish(self, vectors: Sequence[Vector]) -> list[tuple[int, Vector]]:
        """The cells whose views are all there, and their means; `vectors` are those of `pixels`."""
        done = []
        for index, made_from, wanted, parts in self._images:
            views = [vectors[part] if isinstance(part, int) else part for part in parts]
            for number in wanted:
                vector = views[number]
                assert vector is not None
                self._share.computed[number][made_from] = vector
            there = [vector for vector in views if vector is not None]
            if len(there) == len(views):
                done.append((index, average_views(there)))
        return done
