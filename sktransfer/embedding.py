"""Cells of references -> rows of vectors: the only place where images, sessions and the cache meet."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sktransfer.averages import Averages, Batch, Share
from sktransfer.batching import Batcher
from sktransfer.blocks import Space
from sktransfer.cache import open_cache
from sktransfer.claims import NO_CLAIM, Claim
from sktransfer.crops import Crops
from sktransfer.devices import identify_gpu
from sktransfer.digests import digest_bytes, digest_pixels
from sktransfer.exceptions import MissingExtraError
from sktransfer.images import decoding, describe_error, quiet_decoder, read_pixels
from sktransfer.locations import check_place, is_file, is_remote, locate, read_place
from sktransfer.options import ExtractionOptions, ExtractionPlan, count_gpu_processes, count_threads, find_spaces
from sktransfer.progress import Progress, open_progress
from sktransfer.references import Images
from sktransfer.session import open_session
from sktransfer.turns import take_turn

CHUNK_SECONDS = 0.25  # of work that a thread on the CPU claims, embeds and publishes together
CHUNK_IMAGES = (4, 64)  # in as many images: fewer make a longer file, more a longer wait for others
PART_IMAGES = 8192  # whose known vectors are looked up together
LEAVE_SECONDS = 1.5  # that an interrupted call waits for its threads
GPU_THREADS = 2  # for each core: one waits for its vectors while the other decodes
GPU_BLOCK = 16  # images that a thread hands in together
POLL_SECONDS = (0.01, 0.1)  # first and longest pause between two looks at what other processes have done

URLS = Space(bytes(32), "", "", 0)  # in which the names of URLs are claimed while they are fetched

logger = logging.getLogger(__name__)

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Content = bytes | Pixels
Task = tuple[int, bytes, Content | None]  # index of a cell, digest of its image, the image unless it is to be read


class Run:
    """One call: rows that are known are filled at once; threads take chunks of the others, read and embed them.

    `outputs` has a block (rows, n_features) for each of the columns of `images`; without it vectors go to the cache
    alone. A `progress` of the caller's is told of every image, and left open. `crops` has the pixels of images that
    another plan's Run has decoded, and keeps those of images that this one decodes.

    A chunk is claimed in the cache before it is embedded, so that no other process embeds it too, and published
    before the next one is claimed. What others have claimed is waited for at the end. An image is decoded once for all
    of its views that are not known.
    """

    def __init__(
        self,
        images: Images,
        plan: ExtractionPlan,
        options: ExtractionOptions,
        outputs: Sequence[Embeddings] | None,
        progress: Progress | None = None,
        crops: Crops | None = None,
    ) -> None:
        self.images, self.plan, self.options, self.outputs = images, plan, options, outputs
        self.cells, self.progress, self.crops = images.places, progress, crops
        self.cache = open_cache(options.cache_dir)
        self.spaces = find_spaces(plan, options)
        self.vectors = Averages(self.cache, self.spaces)
        self.lock = threading.Lock()
        self.todo: list[int] = []  # cells whose vector is not known
        self.taken = 0  # of them, by threads
        self.first_of: dict[bytes, int] = {}  # digest -> cell that gets the vector in this call
        self.same_place = array("q")  # a cell, an earlier one with the same reference, the next cell, …
        self.same_image = array("q")  # a cell, another one with the same content, the next cell, …
        self.broken: dict[int, str] = {}
        self.hits = self.passes = 0  # images
        self.working = 0  # threads
        self.batcher: Batcher | None = None  # of all threads, on anything but the CPU
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self.stopped = False

    def embed_all(self) -> dict[int, str]:
        """Fill the output; returns the reason for each cell that could not be read."""
        in_worker = multiprocessing.current_process().name != "MainProcess"
        verbose = bool(self.options.verbose)
        own = open_progress(len(self.cells)) if self.progress is None and shows_progress(self.options) else None
        self.progress = self.progress or own
        try:
            self._recall()
            if self.todo:
                self._work_in_turn()
            self._copy()
        finally:
            self.cache.flush()
            self.cache.count(self.spaces[0], self.hits, self.passes, report=verbose and in_worker)
            if own is not None:
                own.close(*self.cache.reports_of_children())
        return self.broken

    # -- what is known --------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Fill the rows of places that have not changed and whose vectors are known."""
        first_at: dict[str, int] = {}
        places: list[str] = []  # of the cells in self.todo, "" where there is none
        columns, root = self.images.columns, self.options.root
        for index, (column, row) in enumerate(self.cells):
            try:
                place = locate(columns[column][row], root)
            except Exception as error:
                self._give_up_on(index, error)
                continue
            if place is not None:
                first = first_at.setdefault(place, index)
                if first != index:
                    self.same_place.extend((index, first))
                    continue
            self.todo.append(index)
            places.append(place or "")
        self._fill_places(places)

    def _fill_places(self, places: Sequence[str]) -> None:
        """Fill the rows of self.todo that lie at `places`, where nothing has changed and the vectors are known."""
        if self.cache.folder is None or not any(places):
            return
        left: list[int] = []
        for start in range(0, len(self.todo), PART_IMAGES):
            part = slice(start, start + PART_IMAGES)
            digests = self.cache.places.recall(filter(None, places[part]))
            left += self._fill_known(self.todo[part], [digests.get(place, b"") for place in places[part]])
        self.todo = left

    def _fill_known(self, indices: Sequence[int], digests: Sequence[bytes]) -> list[int]:
        """Fill the rows of cells whose vectors are known by their digests; returns the other cells."""
        vectors = self._find_vectors({digest for digest in digests if digest})
        left, cells, outputs = [], self.cells, self.outputs
        for index, digest in zip(indices, digests, strict=True):
            vector = vectors.get(digest)
            if vector is None:
                left.append(index)
            elif outputs is not None:
                column, row = cells[index]
                outputs[column][row] = vector
        self._advance(hits=len(indices) - len(left))
        return left

    def _find_vectors(self, digests: Collection[bytes]) -> Mapping[bytes, Any]:
        """Known vectors; without an output something that says that they are known."""
        if not digests:
            return {}
        if self.outputs is None:
            return dict.fromkeys(self.vectors.contains(digests), True)
        return self.vectors.fetch(digests)

    # -- work -----------------------------------------------------------------------------------------------------

    def _work_in_turn(self) -> None:
        """Work; on a GPU when it is this process's turn, since each process that computes there takes memory of it."""
        gpu = self.plan.device.gpu
        turn: contextlib.AbstractContextManager[bool] = contextlib.nullcontext(False)
        if gpu is not None:
            turn = take_turn(f"gpu-{identify_gpu(gpu)}", count_gpu_processes(), self._say_that_we_wait)
        with turn as waited:
            if waited:  # for a process that may have computed the same
                self._fill_places([locate(self._reference(index), self.options.root) or "" for index in self.todo])
            if self.todo:
                self._work_in_threads()

    def _say_that_we_wait(self) -> None:
        logger.info("Waiting for another process to be done with %s.", self.plan.device.name)
        if self.progress is not None:
            self.progress.say(f"waiting for {self.plan.device.name}")

    def _work_in_threads(self) -> None:
        # Threads do all the work, so that Ctrl-C meets a thread that only waits, and nothing finished is lost.
        cpu = self.plan.device.is_cpu
        n_threads = count_threads(self.options.n_jobs) * (1 if cpu else GPU_THREADS)
        n_threads = self.n_threads = max(1, min(n_threads, len(self.todo)))
        batch = 1 if self.options.batch_size == "auto" else self.options.batch_size
        # On the CPU, threads run batches of their own and get equal shares; elsewhere batches are put together of all.
        self.least = min(batch, -(-len(self.todo) // n_threads)) if cpu else 1
        self.block = self.least if cpu else max(1, GPU_BLOCK // len(self.spaces))
        threads = [threading.Thread(target=self._work_and_keep_error, daemon=True) for _ in range(n_threads)]
        with quiet_decoder():
            try:
                self.working = n_threads
                for thread in threads:
                    thread.start()
                # Not by Thread.join: interrupted, it may take a running thread for a finished one (Python 3.11).
                while not self.finished.wait(0.5):
                    pass
            finally:
                self.stopped = True
                self._leave(sum(thread.ident is None for thread in threads))
                # A thread that waits for a server, or runs a very slow network, finds out alone and publishes the rest.
                if self.finished.wait(LEAVE_SECONDS):
                    for thread in threads:
                        if thread.ident is not None:
                            thread.join()
                if self.batcher is not None:
                    self.batcher.close()
        if self.error is not None:
            raise self.error

    def _work_and_keep_error(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
            self.stopped = True
        finally:
            self._leave(1)

    def _leave(self, n_threads: int) -> None:
        with self.lock:
            self.working -= n_threads
            if self.working <= 0:
                self.finished.set()

    def _work(self) -> None:
        deferred: dict[bytes, int] = {}  # digest -> cell, that other processes are embedding
        later: list[int] = []  # cells whose URL other processes are fetching
        size = CHUNK_IMAGES[0]
        while chunk := self._take_chunk(size):
            started = time.perf_counter()
            later += self._process(chunk, deferred)
            pace = (time.perf_counter() - started) / len(chunk)
            size = min(max(int(CHUNK_SECONDS / pace), CHUNK_IMAGES[0]), CHUNK_IMAGES[1])
        while later and not self.stopped:
            left = self._process(later, deferred)
            if len(left) == len(later):
                time.sleep(POLL_SECONDS[1])
            later = left
        self._wait_for_others(deferred)

    def _process(self, chunk: Sequence[int], deferred: dict[bytes, int]) -> list[int]:
        """Identify and embed cells; returns those whose URL other processes are fetching."""
        known, later, claim = self._claim_urls(chunk)
        try:
            tasks = []
            for index in chunk:
                if index not in later and not self.stopped:
                    task = self._identify(index, known.get(index))
                    tasks += [] if task is None else [task]
            deferred.update((digest, index) for index, digest, _ in self._embed(tasks))
        finally:
            if claim.id or self.cache.places.n_new >= PART_IMAGES:
                self.cache.keep_shortcuts()
            if claim.id:
                self.cache.release(claim)
        return sorted(later)

    def _claim_urls(self, chunk: Sequence[int]) -> tuple[dict[int, bytes], set[int], Claim]:
        """(digests of URLs that have not changed, cells whose URL others are fetching, a claim on the other URLs)."""
        places = {index: locate(self._reference(index), self.options.root) for index in chunk}
        urls = {index: place for index, place in places.items() if place is not None and is_remote(place)}
        known: dict[int, bytes] = {}
        self._recall_urls(urls, known)
        names = {
            digest_bytes(url.encode("utf-8", "surrogatepass")): index
            for index, url in urls.items()
            if index not in known
        }
        claim = self.cache.claim(URLS, list(names)) if self.cache.folder is not None else NO_CLAIM
        # Another process may have fetched them before they were claimed here.
        self._recall_urls({names[name]: urls[names[name]] for name in claim.images}, known)
        return known, {names[name] for name in claim.held}, claim

    def _recall_urls(self, urls: Mapping[int, str], known: dict[int, bytes]) -> None:
        for index, url in urls.items():
            digest = self.cache.places.recall_remote(url, check_place)
            if digest is not None:
                known[index] = digest

    def _reference(self, index: int) -> Any:
        return self.images.reference(index)

    def _take_chunk(self, wanted: int) -> Sequence[int]:
        """The next cells; fewer towards the end, so that threads finish together."""
        with self.lock:
            if self.stopped:
                return ()
            left = len(self.todo) - self.taken
            size = max(self.least, min(wanted, left // (2 * self.n_threads)))
            self.taken += size
            return self.todo[self.taken - size : self.taken]

    def _identify(self, index: int, known: bytes | None) -> Task | None:
        """Digest and content of a cell's image; None where it cannot be read or is in the call already."""
        reference, content = self._reference(index), None
        try:
            place = locate(reference, self.options.root)
            if known is None and place is not None and not (is_file(place) or is_remote(place)):
                known = self.cache.places.recall_remote(place, check_place)
            if known is not None:
                digest = known
            elif place is None:
                content = read_pixels(reference, self.options.pixel_range)
                digest = _digest(content)
            else:
                digest, content = self._read(place)
                self.cache.renew()
        except Exception as error:
            self._give_up_on(index, error)
            return None
        with self.lock:
            first = self.first_of.setdefault(digest, index)
            if first != index:
                self.same_image.extend((index, first))
                return None
        return index, digest, content

    def _read(self, place: str) -> tuple[bytes, bytes]:
        content, validator = read_place(place)
        digest = digest_bytes(content)
        self.cache.places.remember(place, validator, digest)
        return digest, content

    def _give_up_on(self, index: int, error: Exception) -> None:
        if isinstance(error, (MemoryError, MissingExtraError)):
            raise error
        reason = describe_error(error)
        reference = self._reference(index)
        if isinstance(error.__cause__, FileNotFoundError) and self.options.root is None:
            place = locate(reference, "")
            if place is not None and not os.path.isabs(place) and not is_remote(place):
                reason += f" (relative to {os.getcwd()}; see the parameter root)"
        self.broken[index] = reason
        self._advance(failed=1)

    def _embed(self, tasks: Sequence[Task], limit: int | None = None) -> list[Task]:
        """Take known vectors and compute what nobody has, at most `limit` images; returns what is not done.

        That is what others are computing, or what is beyond the limit.
        """
        tasks = self._take_known(tasks)
        if not tasks:
            return []
        share = self.vectors.claim([digest for _, digest, _ in tasks], limit)
        self._compute([task for task in tasks if task[1] in share.wanted], share)
        stored = [task for task in tasks if task[1] not in share.wanted and task[1] not in share.waiting]
        return [*(task for task in tasks if task[1] in share.waiting), *self._take_known(stored)]

    def _take_known(self, tasks: Sequence[Task]) -> list[Task]:
        """Fill the rows of known vectors; returns the other tasks."""
        left = set(self._fill_known([index for index, _, _ in tasks], [digest for _, digest, _ in tasks]))
        return [task for task in tasks if task[0] in left]

    def _compute(self, tasks: Sequence[Task], share: Share) -> None:
        """Decode, run and publish; the claims end, whatever happens."""
        try:
            for start in range(0, len(tasks), self.block):
                if self.stopped:
                    break
                self._run_batch(tasks[start : start + self.block], share)
                self.cache.renew()
        finally:
            self.vectors.publish(share)

    def _run_batch(self, tasks: Sequence[Task], share: Share) -> None:
        batch = Batch(share)
        for index, digest, content in tasks:
            try:
                seen, made_from = self._see(index, digest, content)
            except Exception as error:
                self._give_up_on(index, error)
                batch.drop(digest)
                continue
            batch.add(index, digest, made_from, seen)
        done = batch.finish(self._run_pixels(batch.pixels))
        for index, vector in done:
            self._store(index, vector)
        self._advance(passes=len(done))

    def _see(self, index: int, digest: bytes, content: Content | None) -> tuple[Sequence[Pixels], bytes]:
        """The pixels that the graph takes of an image, for each view, and the digest of what they were made from."""
        views = self.plan.views
        kept = self.crops.recall(digest, views) if self.crops is not None else None
        if kept is not None:
            return kept, digest
        if content is None:
            content = self._read_again(index)
            digest = _digest(content)
        with decoding(content, self.options.pixel_range) as image:
            if self.crops is not None:
                return self.crops.cut(digest, image, views), digest
            return views.cut(image), digest

    def _run_pixels(self, pixels: Sequence[Pixels]) -> Sequence[Embeddings]:
        if not pixels:
            return ()
        session = open_session(self.plan.graph, self.plan.device)
        if self.plan.device.is_cpu:
            parts = (pixels[start : start + self.block] for start in range(0, len(pixels), self.block))
            return [vector for part in parts for vector in session.run(_stack(part))]
        with self.lock:
            if self.batcher is None:
                if self.options.batch_size != "auto":
                    session.resize_batch(self.options.batch_size)
                self.batcher = Batcher(session.run, session.batch_size)
        return list(self.batcher.run(_stack(pixels)))

    def _read_again(self, index: int) -> Content:
        reference = self._reference(index)
        place = locate(reference, self.options.root)
        return read_pixels(reference, self.options.pixel_range) if place is None else self._read(place)[1]

    def _wait_for_others(self, deferred: dict[bytes, int]) -> None:
        """Take what other processes publish; compute what they give up, or leave behind when they die."""
        pause = POLL_SECONDS[0]
        while deferred and not self.stopped:
            left = self._embed([(index, digest, None) for digest, index in deferred.items()], CHUNK_IMAGES[0])
            progressed = len(left) < len(deferred)
            deferred = {digest: index for index, digest, _ in left}
            pause = POLL_SECONDS[0] if progressed else min(2 * pause, POLL_SECONDS[1])
            if deferred and not progressed:
                time.sleep(pause)

    # -- rows and counts ------------------------------------------------------------------------------------------

    def _store(self, index: int, vector: Any) -> None:
        if self.outputs is not None:
            column, row = self.cells[index]
            self.outputs[column][row] = vector

    def _copy(self) -> None:
        """Rows of images that came up more than once."""
        pairs = self.same_image + self.same_place  # whose sources may be among the former
        for index, source in zip(pairs[::2], pairs[1::2], strict=True):
            if source in self.broken:
                self.broken[index] = self.broken[source]
            elif self.outputs is not None:
                column, row = self.cells[source]
                self._store(index, self.outputs[column][row])
        failed = sum(index in self.broken for index in pairs[::2])
        self._advance(copies=len(pairs) // 2 - failed, failed=failed)

    def _advance(self, *, hits: int = 0, passes: int = 0, copies: int = 0, failed: int = 0) -> None:
        with self.lock:
            self.hits += hits
            self.passes += passes
            if self.progress is not None:
                self.progress.advance(hits=hits, passes=passes, copies=copies, failed=failed)


def shows_progress(options: ExtractionOptions) -> bool:
    """Whether a call with these options shows a bar here: worker processes and other threads would write into it."""
    main = multiprocessing.current_process().name == "MainProcess"
    return bool(options.verbose) and main and threading.current_thread() is threading.main_thread()


def _digest(content: Content) -> bytes:
    return digest_bytes(content) if isinstance(content, bytes) else digest_pixels(content)


def _stack(pixels: Sequence[Pixels]) -> Pixels:
    return pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
