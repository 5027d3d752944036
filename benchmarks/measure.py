"""Run candidates in alternation, and write what came out with the machine it came from."""

from __future__ import annotations

import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RESULTS = Path(__file__).parent / "results"


def assets_folder() -> Path:
    """Folder of real backbones and photos."""
    folder = os.environ.get("SKTRANSFER_ASSETS")
    if not folder:
        raise SystemExit("Set SKTRANSFER_ASSETS to a folder with models/ and datasets/ (see CONTRIBUTING.md).")
    return Path(folder)


def clothing_photos() -> list[str]:
    """Paths of the 966 photos of the clothing data set, sorted."""
    return sorted(map(str, (assets_folder() / "datasets" / "clothing" / "images").glob("*.jpg")))


def decode(path: str, preprocessing: Any) -> np.ndarray:
    """What a user writes with Pillow, for a shorter side and a square crop: uint8 (h, w, 3)."""
    p, image = preprocessing, ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = p.resize / min(image.size)
    size = [p.resize if side == min(image.size) else int(side * scale) for side in image.size]
    image = image.resize(size, Image.Resampling[p.resample.upper()])
    left, top = (round((side - crop) / 2) for side, crop in zip(image.size, p.crop[::-1], strict=True))
    return np.asarray(image.crop((left, top, left + p.crop[1], top + p.crop[0])))


def alternate(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every candidate in every round; the order turns round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(rounds):
        names = list(candidates)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            gc.collect()
            started = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest, as text."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def machine() -> str:
    """One line: processor, cores, versions, date."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        processor = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), processor
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime-gpu", "scikit-learn", "pillow", "numpy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, Python {platform.python_version()}, {packages}, {datetime.date.today()}"


def write_markdown(name: str, question: str, command: str, header: Sequence[str], rows: Sequence[Sequence[object]],
                   notes: str = "") -> None:  # fmt: skip
    """Write and print ``results/<name>.md``."""
    lines = [f"# {question}", "", f"`{command}`", "", machine() + ".", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines += ["", notes.strip()] if notes else []
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join(lines).rstrip() + "\n"
    (RESULTS / f"{name}.md").write_text(text, "utf-8")
    print(text)
