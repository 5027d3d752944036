"""How fast are 10,000 images whose embeddings are known?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_warm [--rounds 5]

`transform` of 10,000 paths, 1,280 features each, all in the cache: the first call in a new process, which reads the
store, and the next calls, which find everything in memory. The floors beside it, in the same processes: asking the file
system whether the 10,000 files have changed, and copying the ready array. The peer is `joblib.Memory` around `extract`,
which hashes the list of paths and loads one array; it does not look at the files at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from PIL import Image

from benchmarks.measure import assets_folder, write_markdown
from sktransfer import PretrainedFeatureExtractor, cache_info, prefetch
from sktransfer.extraction import extract
from sktransfer.session import forward_passes

BACKBONE = "mobilenetv2_features"
N = 10_000
ROWS = {
    "stat": "floor: stat of the files",
    "copy": "floor: copy of the ready array",
    "first": "transform, first call in a new process",
    "next": "transform, next calls",
    "memory_first": "joblib.Memory, first call in a new process",
}


def write_images(folder: Path) -> list[str]:
    """10,000 different PNG files."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    paths = [folder / f"{index:05d}.png" for index in range(N)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path, compress_level=1)
    return list(map(str, paths))


def timed(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def run_once(folder: Path) -> dict[str, float]:
    """In a process of its own, in which nothing is known yet."""
    paths = sorted(map(str, (folder / "images").glob("*.png")))
    backbone = assets_folder() / "models" / BACKBONE
    extractor = PretrainedFeatureExtractor(backbone, cache_dir=folder / "cache").fit(paths[:1])
    seconds = {"first": timed(lambda: extractor.transform(paths))}
    seconds["next"] = float(np.median([timed(lambda: extractor.transform(paths)) for _ in range(3)]))
    seconds["stat"] = timed(lambda: [os.stat(path) for path in paths])
    ready = extractor.transform(paths)
    seconds["copy"] = timed(ready.copy)
    remembered = joblib.Memory(folder / "memory", verbose=0).cache(extract)
    seconds["memory_first"] = timed(lambda: remembered(paths, backbone, cache_dir=folder / "cache"))
    assert forward_passes() == 0
    assert (remembered(paths, backbone, cache_dir=folder / "cache") == ready).all()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", type=Path)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(arguments.once)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        paths = write_images(folder / "images")
        time.sleep(2.1)  # files that have just changed are not trusted
        backbone = assets_folder() / "models" / BACKBONE
        prefetch(paths, backbone, cache_dir=folder / "cache", verbose=True)
        joblib.Memory(folder / "memory", verbose=0).cache(extract)(paths, backbone, cache_dir=folder / "cache")
        per_vector = cache_info(folder / "cache").bytes / N
        command = [sys.executable, "-m", "benchmarks.bench_warm", "--once", str(folder)]
        runs = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(arguments.rounds)
        ]
    rows = []
    for key, label in ROWS.items():
        rates = [N / run[key] for run in runs]
        ratios = [run[key] / (run["stat"] + run["copy"]) for run in runs]
        rows.append(
            [label, f"{np.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})", f"{np.median(ratios):.2f}"]
        )
    write_markdown(
        "warm",
        "How fast are 10,000 images whose embeddings are known?",
        "python -m benchmarks.bench_warm",
        ["what", "images per second, median (range)", "time ÷ both floors"],
        rows,
        f"{N:,} PNG files, {BACKBONE} (1,280 features), {arguments.rounds} processes. For each vector of 5,120 bytes "
        f"the store takes {per_vector:,.0f} bytes, shortcuts from paths included: {per_vector / 5120:.3f}.",
    )


if __name__ == "__main__":
    main()
