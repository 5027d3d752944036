"""What this installation can run on, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import platform

import onnxruntime

from sktransfer.devices import resolve_device
from sktransfer.exceptions import DeviceError
from sktransfer.options import count_threads

_PACKAGES = ("sktransfer", "scikit-learn", "onnx", "numpy", "pillow", "pyarrow", "matplotlib")


def diagnose() -> tuple[list[str], bool]:
    """Lines for people, and whether all is well."""
    installed = {name: _version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name) or 'is not installed'}" for name in _PACKAGES]
    lines += [f"{name} {version}" for name, version in installed.items() if version]
    healthy = True
    if all(installed.values()):
        healthy = False
        lines.append(
            "Problem: onnxruntime and onnxruntime-gpu are both installed and overwrite each other. "
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu"
        )
    lines.append(f"CPU: {count_threads(None)} threads")
    try:
        lines.append(f"CUDA: works, {resolve_device('cuda').name}")
    except DeviceError as error:
        lines.append(f"CUDA: {error}")
    lines.append(f"onnxruntime providers: {', '.join(onnxruntime.get_available_providers())}")
    return lines, healthy


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
