"""What is asked for: the plan that vectors depend on, and the options that they do not."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Literal

import joblib
import numpy as np

from sktransfer.backbones import Backbone
from sktransfer.blocks import Space
from sktransfer.cache import CacheDir
from sktransfer.devices import Device
from sktransfer.graph import EmbeddingGraph
from sktransfer.views import Views

KEY_VERSION = 2  # raise it when decoding or resizing changes what pixels are: every embedding gets a new key
GPU_PROCESSES_VARIABLE = "SKTRANSFER_GPU_PROCESSES"

Policy = Literal["error", "nan", "zero"]


@dataclass(frozen=True)
class ExtractionPlan:
    """Which backbone, cut where, on which device, and what it sees of an image."""

    backbone: Backbone
    graph: EmbeddingGraph
    device: Device
    views: Views


@dataclass(frozen=True)
class ExtractionOptions:
    """Everything that does not change a vector; the parameters are those of `extract`."""

    missing_images: Policy = "error"
    broken_images: Policy = "error"
    add_indicator: bool = False
    root: str | os.PathLike[str] | None = None
    pixel_range: tuple[float, float] | None = None
    batch_size: int | Literal["auto"] = "auto"
    cache_dir: CacheDir = "auto"
    n_jobs: int | None = None
    verbose: bool | int = False

    def __post_init__(self) -> None:
        for name in ("missing_images", "broken_images"):
            if getattr(self, name) not in ("error", "nan", "zero"):
                raise ValueError(f'{name} must be "error", "nan" or "zero". Got {getattr(self, name)!r} instead.')
        if self.batch_size != "auto" and not (_is_integer(self.batch_size) and self.batch_size >= 1):
            raise ValueError(f'batch_size must be "auto" or an integer >= 1. Got {self.batch_size!r} instead.')
        if self.n_jobs is not None and not (_is_integer(self.n_jobs) and self.n_jobs != 0):
            raise ValueError(f"n_jobs must be None or an integer other than 0. Got {self.n_jobs!r} instead.")
        if self.pixel_range is not None and not _is_range(self.pixel_range):
            raise ValueError(
                f"pixel_range must be None or (low, high) with low < high. Got {self.pixel_range!r} instead."
            )
        if self.root is not None and not _is_folder(self.root):
            raise ValueError(f"root must be an existing folder. Got {str(self.root)!r} instead.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    return is_pair and all(isinstance(end, (int, float, np.number)) for end in value) and bool(value[0] < value[1])


def _is_folder(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str) and os.path.isdir(value)


def count_threads(n_jobs: int | None) -> int:
    """Threads that `n_jobs` means: None is every core this process may use, negative counts from the end.

    Affinity and cgroup limits are honoured, and the inner limit that joblib gives its workers.
    """
    cores = int(joblib.cpu_count())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None:
        return max(1, min(cores, int(limit))) if limit.isdecimal() else cores
    return n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)


def count_gpu_processes() -> int:
    """Processes that may compute on one GPU at a time: SKTRANSFER_GPU_PROCESSES, or 1."""
    text = os.environ.get(GPU_PROCESSES_VARIABLE) or "1"
    if not (text.isdecimal() and int(text) >= 1):
        raise ValueError(f"{GPU_PROCESSES_VARIABLE} must be an integer >= 1. Got {text!r} instead.")
    return int(text)


def find_spaces(plan: ExtractionPlan, options: ExtractionOptions) -> list[Space]:
    """What the keys of an image's embeddings hold beside its digest, one for each of its views."""
    graph, family, spaces = plan.graph, plan.device.family, []
    for window, geometry in zip(plan.views.windows, plan.views.geometries, strict=True):
        context = repr((KEY_VERSION, geometry, graph.digest, family, options.pixel_range))
        layer = graph.layer if window == "center" else f"{graph.layer} ({window})"
        spaces.append(Space(hashlib.sha256(context.encode()).digest(), plan.backbone.name, layer, graph.n_features))
    return spaces
