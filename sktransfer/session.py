"""One onnxruntime session for each process, graph and device: looked up, never owned."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from sktransfer.exceptions import BackboneError, DeviceError, DeviceWarning
from sktransfer.graph import INPUT_NAME, OUTPUT_NAME, EmbeddingGraph

MAX_SESSIONS = 8  # open in one process; the least recently used is dropped
GPU_BATCH = 64  # images a run
DEVICE_VARIABLE = "SKTRANSFER_DEVICE"

Provider = str | tuple[str, dict[str, Any]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Device:
    """What computes: a name for people, and what onnxruntime is told."""

    name: str  # "cpu", "cuda:0" or the first provider's name
    providers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def family(self) -> str:
        """What vectors are interchangeable within: "cpu", "cuda" or a provider's name."""
        return self.name.partition(":")[0]

    @property
    def is_cpu(self) -> bool:
        """Whether nothing but the CPU computes."""
        return self.family == "cpu"


CPU = Device("cpu", (("CPUExecutionProvider", ()),))


def resolve_device(device: str | Sequence[Provider] = "auto") -> Device:
    """The device that sessions will run on.

    Parameters
    ----------
    device : str or sequence
        "auto" (CUDA where it works, else the CPU), "cpu", "cuda", "cuda:1", or a list as for onnxruntime's
        ``providers=``. The environment variable SKTRANSFER_DEVICE overrides it.

    Raises
    ------
    DeviceError
        If CUDA or a listed provider is asked for and cannot run here; the message says what to install.
    """
    device = os.environ.get(DEVICE_VARIABLE) or device
    if not isinstance(device, str):
        return _resolve_providers(device)
    if device == "cpu":
        return CPU
    kind, _, number = device.partition(":")
    if device != "auto" and (kind != "cuda" or not (number.isdecimal() or device == "cuda")):
        raise ValueError(
            f'device must be "auto", "cpu", "cuda", "cuda:<number>" or a list of providers. Got {device!r} instead.'
        )
    problem = _probe_cuda(int(number or 0))
    if problem is None:
        options = (("device_id", number or "0"),)
        return Device(f"cuda:{number or 0}", (("CUDAExecutionProvider", options), ("CPUExecutionProvider", ())))
    if device != "auto":
        raise DeviceError(f'device={device!r} cannot run here: {problem} Use device="auto" to fall back to the CPU.')
    if _count_gpus():
        _warn_once(f"A GPU is present, but the CPU is used: {problem}")
    return CPU


def _resolve_providers(providers: Sequence[Provider]) -> Device:
    pairs = [(entry, {}) if isinstance(entry, str) else (entry[0], entry[1]) for entry in providers]
    known = ort.get_available_providers()
    for name, _ in pairs:
        if name not in known:
            raise DeviceError(f"device must list providers of this onnxruntime, {known}. Got {name!r} instead.")
    if not pairs:
        raise ValueError("device must be a name or a non-empty list of providers. Got an empty list instead.")
    name = "cpu" if pairs[0][0] == "CPUExecutionProvider" else pairs[0][0]
    frozen = ((entry, tuple((str(k), str(v)) for k, v in options.items())) for entry, options in pairs)
    return Device(name, tuple(frozen))


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, DeviceWarning, stacklevel=2)


@functools.cache
def _count_gpus() -> int:
    """NVIDIA GPUs that the driver reports; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


@functools.cache
def _probe_cuda(number: int) -> str | None:
    """Why CUDA device `number` cannot be used, or None; opens a session on a graph of one node and runs nothing."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime is built without CUDA. Run: pip uninstall onnxruntime; pip install onnxruntime-gpu."
    gpus = _count_gpus()
    if number >= gpus:
        found = f"the NVIDIA driver reports {gpus} GPUs" if gpus else "no NVIDIA driver or no GPU was found"
        return f"{found}. Install the driver, or choose another device."
    preload_cuda_libraries()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    providers = [("CUDAExecutionProvider", {"device_id": str(number)})]
    with _quiet_onnxruntime():
        session = ort.InferenceSession(_IDENTITY_MODEL, options, providers=providers)
    if "CUDAExecutionProvider" in session.get_providers():
        return None
    return (
        f"onnxruntime {ort.__version__} could not load its CUDA or cuDNN libraries. "
        'Run: pip install "sktransfer[cuda]".'
    )


def preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries that pip installed; onnxruntime does not look for them by itself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        ort.preload_dlls()


@contextlib.contextmanager
def _quiet_onnxruntime() -> Any:
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


# One Identity node on a float tensor of one element, opset 13: bytes, so that to ask for the device imports no onnx.
_IDENTITY_MODEL = (
    b'\x08\x08:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


class EmbeddingSession:
    """An open onnxruntime session of one embedding graph. Safe for threads."""

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
        self._frozen_batch = graph.frozen_batch
        self._run_lock = contextlib.nullcontext() if device.is_cpu else threading.Lock()

    def run(self, pixels: Pixels, pad_to: int = 0) -> Vectors:
        """Embed a batch: uint8 (n, h, w, 3) -> float32 (n, d).

        A batch shorter than `pad_to` is filled up with copies of its last image, so that a GPU sees one shape only.
        """
        if self._frozen_batch:
            batches = [pixels[row : row + 1] for row in range(len(pixels))]
        elif len(pixels) < pad_to:
            batches = [np.concatenate([pixels, np.repeat(pixels[-1:], pad_to - len(pixels), axis=0)])]
        else:
            batches = [pixels]
        with self._run_lock:
            vectors = [self._session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] for batch in batches]
        _count_rows(len(pixels))
        joined: Vectors = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
        return joined[: len(pixels)]


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
