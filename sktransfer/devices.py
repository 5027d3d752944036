"""What computes: the CPU, a GPU through CUDA or TensorRT, or providers of the caller's choice."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from sktransfer.exceptions import DeviceError, DeviceWarning
from sktransfer.folders import user_folder
from sktransfer.silence import silence

DEVICE_VARIABLE = "SKTRANSFER_DEVICE"

Provider = str | tuple[str, dict[str, Any]]
_Frozen = tuple[str, tuple[tuple[str, str], ...]]  # a provider and its options, hashable

# What onnxruntime is told of a GPU. Batches have one shape, but a search over all algorithms would still delay the
# first of them by seconds; memory grows by what is asked for, so that other programs find theirs.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
_GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """What computes: a name for people, and what onnxruntime is told."""

    name: str  # "cpu", "cuda:0", "tensorrt:0" or the first provider's name
    providers: tuple[_Frozen, ...]

    @property
    def family(self) -> str:
        """What vectors are interchangeable within: "cpu", "cuda", "tensorrt" or a provider's name."""
        return self.name.partition(":")[0]

    @property
    def is_cpu(self) -> bool:
        """Whether nothing but the CPU computes."""
        return self.family == "cpu"

    @property
    def gpu(self) -> int | None:
        """Number of the NVIDIA GPU that computes; None for anything else."""
        return int(self.name.partition(":")[2]) if self.family in _GPU_PROVIDERS else None


CPU = Device("cpu", (("CPUExecutionProvider", ()),))


def resolve_device(device: str | Sequence[Provider] = "auto") -> Device:
    """The device that sessions will run on.

    Parameters
    ----------
    device : str or sequence
        "auto" (CUDA where it works, else the CPU), "cpu", "cuda", "cuda:1", "tensorrt", "tensorrt:1", or a list as for
        onnxruntime's ``providers=``. The environment variable SKTRANSFER_DEVICE overrides it.

    Raises
    ------
    DeviceError
        If CUDA, TensorRT or a listed provider is asked for and cannot run here; the message says what to install.
    """
    device = os.environ.get(DEVICE_VARIABLE) or device
    if not isinstance(device, str):
        return _resolve_providers(device)
    if device == "cpu":
        return CPU
    kind, _, number = device.partition(":")
    if device != "auto" and (kind not in _GPU_PROVIDERS or not (number.isdecimal() or device == kind)):
        raise ValueError(
            'device must be "auto", "cpu", "cuda", "cuda:<number>", "tensorrt", "tensorrt:<number>" or a list of '
            f"providers. Got {device!r} instead."
        )
    kind = "cuda" if device == "auto" else kind
    problem = _probe(_GPU_PROVIDERS[kind], int(number or 0))
    if problem is None:
        return _make_gpu_device(kind, number or "0")
    if device != "auto":
        raise DeviceError(f'device={device!r} cannot run here: {problem} Use device="auto" to fall back to the CPU.')
    if count_gpus():
        _warn_once(f"A GPU is present, but the CPU is used: {problem}")
    return CPU


def _make_gpu_device(kind: str, number: str) -> Device:
    cuda = ("CUDAExecutionProvider", tuple(({"device_id": number} | _CUDA_OPTIONS).items()))
    providers: tuple[_Frozen, ...] = (cuda, CPU.providers[0])
    if kind == "tensorrt":
        # Building an engine takes minutes; it is kept, and found by the graph, the GPU and TensorRT's version.
        options = {
            "device_id": number,
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(user_folder() / "sktransfer-engines"),
        }
        providers = (("TensorrtExecutionProvider", tuple(options.items())), *providers)
    return Device(f"{kind}:{number}", providers)


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
def _open_driver() -> Any:
    """NVIDIA's driver, initialised; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


@functools.cache
def count_gpus() -> int:
    """NVIDIA GPUs that the driver reports; 0 without a driver."""
    driver, count = _open_driver(), ctypes.c_int(0)
    failed = driver is None or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


@functools.cache
def identify_gpu(number: int) -> str:
    """The GPU's UUID, the same in all processes; its number where the driver does not say."""
    driver, device, uuid = _open_driver(), ctypes.c_int(0), ctypes.create_string_buffer(16)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), number):
        return str(number)
    get_uuid = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid  # v2 tells parts of a GPU apart
    return str(number) if get_uuid(uuid, device) else uuid.raw.hex()


@functools.cache
def _probe(provider: str, number: int) -> str | None:
    """Why `provider` cannot use GPU `number`, or None; opens a session on a graph of one node and runs nothing."""
    if provider not in ort.get_available_providers():
        what = "CUDA" if provider == "CUDAExecutionProvider" else "TensorRT"
        return f"this onnxruntime is built without {what}. Run: pip uninstall onnxruntime; pip install onnxruntime-gpu."
    gpus = count_gpus()
    if number >= gpus:
        found = f"the NVIDIA driver reports {gpus} GPUs" if gpus else "no NVIDIA driver or no GPU was found"
        return f"{found}. Install the driver, or choose another device."
    preload_cuda_libraries()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with _quiet_onnxruntime(), silence():  # without TensorRT's libraries, onnxruntime prints a banner to stdout
        session = ort.InferenceSession(_IDENTITY_MODEL, options, providers=[(provider, {"device_id": str(number)})])
    if provider in session.get_providers():
        return None
    if provider == "TensorrtExecutionProvider":
        return f"onnxruntime {ort.__version__} could not load TensorRT. Run: pip install tensorrt."
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
