"""Blocks of vectors in memory, in front of the store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sktransfer.blocks import Block, Vectors

FRONT_BYTES = 256 * 2**20  # of vectors that a process keeps in memory, for each cache folder


class Front:
    """Blocks in memory, bounded in bytes; the least recently used leave first."""

    def __init__(self) -> None:
        self._index: dict[bytes, dict[bytes, tuple[Block, int]]] = {}
        self._blocks: OrderedDict[Block, bytes] = OrderedDict()  # block -> key of its space
        self._bytes = 0

    def find(self, key: bytes, images: Iterable[bytes]) -> tuple[dict[bytes, Vectors], list[bytes], set[Block]]:
        """Vectors of the known images, the unknown images, and the blocks that were used."""
        index = self._index.get(key, {})
        found, unknown, used = dict[bytes, Vectors](), list[bytes](), set[Block]()
        for image in images:
            entry = index.get(image)
            if entry is None:
                unknown.append(image)
            else:
                block, position = entry
                found[image] = block.vectors[position]
                used.add(block)
        for block in used:
            self._blocks.move_to_end(block)
        return found, unknown, used

    def add(self, key: bytes, block: Block) -> None:
        """Keep a block of the space `key`."""
        index = self._index.setdefault(key, {})
        if all(image in index for image in block.images):
            return
        index.update((image, (block, position)) for position, image in enumerate(block.images))
        self._blocks[block] = key
        self._bytes += block.vectors.nbytes
        while self._bytes > FRONT_BYTES and len(self._blocks) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        block, key = self._blocks.popitem(last=False)
        self._bytes -= block.vectors.nbytes
        index = self._index[key]
        for image in block.images:
            if index.get(image, (None,))[0] is block:
                del index[image]
