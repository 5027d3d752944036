"""One onnxruntime session for each process, graph and device: looked up, never owned."""

from __future__ import annotations

import math
import os
import queue
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import onnxruntime as ort

from sktransfer.batching import N_LANES
from sktransfer.costs import count_macs
from sktransfer.devices import Device
from sktransfer.exceptions import BackboneError, DeviceError
from sktransfer.graph import INPUT_NAME, OUTPUT_NAME, EmbeddingGraph
from sktransfer.network import Network, load_model

MAX_SESSIONS = 8  # open in one process; the least recently used is dropped
GPU_BATCHES = (16, 256)  # smallest and largest that is chosen
GPU_BATCH_MACS = 256e9  # multiply-accumulates that a batch should hold: 64 images for ResNet-50
GPU_MEMORY = "cuda"  # onnxruntime's name for where CUDA and TensorRT read and write

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_OUT_OF_MEMORY = re.compile("out of memory|failed to allocate memory|ALLOC_FAILED", re.IGNORECASE)


class EmbeddingSession:
    """An open onnxruntime session of one embedding graph. Safe for threads.

    On the CPU a run takes any number of images, elsewhere at most `batch_size`. On an NVIDIA GPU it takes exactly so
    many, of which the last are copies where there are fewer, so that the device sees one shape only.
    """

    def __init__(self, graph: EmbeddingGraph, device: Device) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # threads come from extraction: one image a run, one run a core
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        providers = [(name, dict(provider_options)) for name, provider_options in device.providers]
        try:
            model = graph.build_model().SerializeToString()
            self._session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:
            if isinstance(error, BackboneError):
                raise
            raise BackboneError(f"onnxruntime cannot open {graph.path}: {error}") from error
        opened = self._session.get_providers()
        if device.providers[0][0] not in opened:
            raise DeviceError(f"onnxruntime fell back from {device.providers[0][0]} to {opened[0]}.")
        self._graph, self._device = graph, device
        self.batch_size = 1 if device.is_cpu or graph.frozen_batch else choose_batch(graph)
        self._lanes: tuple[int, queue.Queue[_Lane]] | None = None  # with the size of their batches
        self._lock = threading.Lock()
        self._run_lock = threading.Lock()

    def run(self, pixels: Pixels) -> Vectors:
        """Embed images: uint8 (n, h, w, 3) -> float32 (n, d).

        Raises
        ------
        DeviceError
            If the GPU has too little memory for a single image.
        """
        vectors: list[Vectors] = []
        if self._device.is_cpu:
            size = 1 if self._graph.frozen_batch else max(1, len(pixels))
            for start in range(0, len(pixels), size):
                vectors += self._session.run([OUTPUT_NAME], {INPUT_NAME: pixels[start : start + size]})
        start = 0
        while start < len(pixels) and not self._device.is_cpu:
            size = self.batch_size
            try:
                vectors.append(self._run_batch(pixels[start : start + size], size))
                start += size
            except Exception as error:
                if not _OUT_OF_MEMORY.search(str(error)):
                    raise
                self._halve(size, error)
        _count_rows(len(pixels))
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)

    def resize_batch(self, batch_size: int) -> None:
        """Run batches of this size from now on, where the device runs batches."""
        with self._lock:
            if batch_size != self.batch_size and not (self._device.is_cpu or self._graph.frozen_batch):
                self.batch_size, self._lanes = batch_size, None

    def _run_batch(self, pixels: Pixels, size: int) -> Vectors:
        n = len(pixels)
        if self._device.gpu is None:
            with self._run_lock:
                vectors: Vectors = self._session.run([OUTPUT_NAME], {INPUT_NAME: pixels})[0]
            return vectors
        if n < size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], size - n, axis=0)])
        lanes = self._open_lanes(size)
        lane = lanes.get()
        try:
            return lane.run(pixels, self._run_lock)[:n]
        finally:
            lanes.put(lane)

    def _open_lanes(self, size: int) -> queue.Queue[_Lane]:
        """Lanes of this size, as many as `Batcher` uses; kept while batches have it."""
        with self._lock:
            if self._lanes is not None and self._lanes[0] == size:
                return self._lanes[1]
            lanes: queue.Queue[_Lane] = queue.Queue()
            for _ in range(N_LANES):
                lanes.put(_Lane(self._session, self._graph, size, self._device.gpu or 0))
            if size == self.batch_size:
                self._lanes = size, lanes
            return lanes

    def _halve(self, size: int, error: Exception) -> None:
        """Half of `size` images a run from now on, unless another thread has seen to it."""
        with self._lock:
            if self.batch_size == size == 1:
                raise DeviceError(
                    f"{self._device.name} has too little memory for one image of {self._graph.path}: {error} "
                    'Free some of it, or use device="cpu".'
                ) from error
            if self.batch_size == size:
                self.batch_size, self._lanes = size // 2, None


def choose_batch(graph: EmbeddingGraph) -> int:
    """Images a run that keep a GPU busy: a power of two, fewer for networks that cost more."""
    network = Network(load_model(graph.path, weights=False), graph.path, graph.preprocessing)
    macs = count_macs(network, network.ancestors(cut.tensor for cut in graph.cuts))
    smallest, largest = GPU_BATCHES
    wanted = 2 ** round(math.log2(GPU_BATCH_MACS / max(macs, 1)))
    return int(min(max(wanted, smallest), largest))


class _Lane:
    """Memory of the device for one batch and its vectors, and their binding to a session: made once, used again."""

    def __init__(self, session: ort.InferenceSession, graph: EmbeddingGraph, batch_size: int, number: int) -> None:
        self._session, self._binding = session, session.io_binding()
        allocate = ort.OrtValue.ortvalue_from_shape_and_type
        self._pixels = allocate((batch_size, *graph.preprocessing.crop, 3), np.uint8, GPU_MEMORY, number)
        self._vectors = allocate((batch_size, graph.n_features), np.float32, GPU_MEMORY, number)
        self._binding.bind_ortvalue_input(INPUT_NAME, self._pixels)
        self._binding.bind_ortvalue_output(OUTPUT_NAME, self._vectors)

    def run(self, pixels: Pixels, lock: threading.Lock) -> Vectors:
        """Send whole batches up while another lane computes; `lock` lets one compute at a time."""
        self._pixels.update_inplace(np.ascontiguousarray(pixels))
        with lock:
            self._session.run_with_iobinding(self._binding)
        return np.array(self._vectors.numpy())


_lock = threading.Lock()
_count_lock = threading.Lock()
_sessions: OrderedDict[tuple[int, str, Device], EmbeddingSession] = OrderedDict()
_rows_run = 0


def open_session(graph: EmbeddingGraph, device: Device) -> EmbeddingSession:
    """The session of `graph` on `device` in this process, opened on first use.

    Raises
    ------
    BackboneError
        If onnxruntime refuses the graph.
    DeviceError
        If onnxruntime drops the requested provider.
    """
    key = (os.getpid(), graph.digest, device)
    with _lock:
        if key not in _sessions:
            _sessions[key] = EmbeddingSession(graph, device)
        _sessions.move_to_end(key)
        while len(_sessions) > MAX_SESSIONS:
            _sessions.popitem(last=False)
        return _sessions[key]


def release_sessions() -> None:
    """Close every session of this process and free its memory; the next extraction opens them again."""
    with _lock:
        _sessions.clear()


def forward_passes() -> int:
    """Images that this process has sent through a backbone so far."""
    return _rows_run


def _count_rows(n: int) -> None:
    global _rows_run
    with _count_lock:
        _rows_run += n


_inherited: list[EmbeddingSession] = []  # of the parent process: kept, since closing them here could touch its device


def _reset_after_fork() -> None:
    global _lock, _count_lock, _rows_run
    _lock, _count_lock = threading.Lock(), threading.Lock()
    _inherited.extend(_sessions.values())
    _sessions.clear()
    _rows_run = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
