"""What does each engine cost against a single process on the same cores?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_distributed [--photos N] [--rounds N] [--backbone NAME]

A frame of photos, embedded by `extract` in this process on all cores (the floor) and by `extract_dataset` and
`extract_dataframe` on a cluster of Ray, Spark or Dask with one worker a core, alternating, caches off. Clusters run
already; what an engine starts for each call counts. Each is measured on a quarter of the photos, too: what grows with
them is its rate, the rest its start. Vectors are compared first, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import alternate, assets_folder, clothing_photos, spread, write_markdown
from sktransfer import PretrainedFeatureExtractor, extract
from sktransfer.distributed import extract_dataframe, extract_dataset
from sktransfer.options import count_threads

CORES = count_threads(None)
PARTS = 4  # a worker: partitions of a frame
BATCH = 64
FLOOR = "extract, one process"

Run = Callable[[pd.DataFrame], Any]  # a table with the columns "i" and the embeddings


def copy_photos(folder: Path, n: int) -> list[str]:
    """So many photos of different content: behind the end of a JPEG image a decoder reads nothing."""
    photos, paths = clothing_photos(), []
    for number in range(n):
        path = folder / f"{number:06}.jpg"
        path.write_bytes(Path(photos[number % len(photos)]).read_bytes() + number.to_bytes(4))
        paths.append(str(path))
    return paths


@contextlib.contextmanager
def open_ray(extractor: PretrainedFeatureExtractor) -> Iterator[Run]:
    import pyarrow as pa
    import ray
    import ray.data

    # One more CPU, for what brings the rows: it does next to nothing, and Ray waits for ever if actors hold them all.
    ray.init(address="local", num_cpus=CORES + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def run(frame: pd.DataFrame) -> Any:
        rows = ray.data.from_pandas(frame).repartition(CORES * PARTS)
        found = extract_dataset(rows, "photo", extractor, concurrency=CORES, batch_size=BATCH)
        return pa.concat_tables(ray.get(found.to_arrow_refs()))

    yield run
    ray.shutdown()


@contextlib.contextmanager
def open_spark(extractor: PretrainedFeatureExtractor) -> Iterator[Run]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local-cluster[{CORES},1,1024]").config("spark.log.level", "OFF")
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    session = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH)).getOrCreate()

    def run(frame: pd.DataFrame) -> Any:
        rows = session.createDataFrame(
            list(zip(frame["i"].tolist(), frame["photo"], strict=True)), "i long, photo string"
        )
        return extract_dataframe(rows.repartition(CORES * PARTS), "photo", extractor).toArrow()

    yield run
    session.stop()


@contextlib.contextmanager
def open_dask(extractor: PretrainedFeatureExtractor) -> Iterator[Run]:
    import dask.dataframe
    import pyarrow as pa
    from distributed import Client, LocalCluster

    def run(frame: pd.DataFrame) -> Any:
        rows = dask.dataframe.from_pandas(frame, npartitions=CORES * PARTS)
        return pa.Table.from_pandas(extract_dataframe(rows, "photo", extractor).compute())

    with LocalCluster(n_workers=CORES, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        yield run


def check(run: Run, frame: pd.DataFrame, name: str, expected: np.ndarray) -> None:
    """Stop if a bit differs; also brings up what workers keep from call to call."""
    found = run(frame).sort_by("i").to_pandas()
    vectors = np.stack(found[name]) if name in found else found.filter(like=f"{name}_").to_numpy()
    if not np.array_equal(vectors, expected):
        raise SystemExit("Vectors differ.")


def measure(runs: dict[str, Callable[[list[str]], object]], paths: list[str], rounds: int) -> list[list[str]]:
    """A line for each candidate: time ÷ the floor's, photos a second beyond the start, and the start."""
    few = paths[: len(paths) // 4]
    sizes = {"few": few, "all": paths}
    candidates = {f"{size} {name}": (lambda run=run, part=part: run(part)) for size, part in sizes.items()
                  for name, run in runs.items()}  # fmt: skip
    seconds = alternate(candidates, rounds)
    lines = []
    for name in runs:
        ours, less, floor = (np.array(seconds[key]) for key in (f"all {name}", f"few {name}", f"all {FLOOR}"))
        rate = (len(paths) - len(few)) / statistics.median(ours - less)
        start = statistics.median(ours) - len(paths) / rate
        times = f"{statistics.median(ours):.1f}"
        lines.append([name, times, spread(list(ours / floor)), f"{rate:.0f}", f"{max(start, 0.0):.1f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=3864)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="mobilenetv2_features")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    backbone = assets_folder() / "models" / arguments.backbone
    extractor = PretrainedFeatureExtractor(str(backbone), device="cpu", cache_dir=None)
    engines = {"Ray Data": open_ray, "Spark": open_spark, "Dask": open_dask}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        paths = copy_photos(Path(name), arguments.photos)
        runs: dict[str, Callable[[list[str]], object]] = {
            FLOOR: lambda paths: extract(paths, str(backbone), device="cpu", cache_dir=None)
        }
        frame, starts = pd.DataFrame({"i": range(BATCH), "photo": paths[:BATCH]}), {}
        expected = extract(paths[:BATCH], str(backbone), device="cpu", cache_dir=None)
        for engine, open_engine in engines.items():
            started = time.perf_counter()
            run = stack.enter_context(open_engine(extractor))
            check(run, frame, arguments.backbone, expected)
            starts[engine] = time.perf_counter() - started
            runs[engine] = lambda paths, run=run: run(pd.DataFrame({"i": range(len(paths)), "photo": paths}))
        lines = measure(runs, paths, arguments.rounds)
    rows = [[*line, f"{starts[line[0]]:.0f}" if line[0] in starts else "–"] for line in lines]
    versions = ", ".join(f"{package} {version(package)}" for package in ("ray", "pyspark", "dask", "pyarrow"))
    write_markdown(
        "distributed",
        "What does each engine cost against a single process on the same cores?",
        f"python -m benchmarks.bench_distributed --photos {arguments.photos} --rounds {arguments.rounds}",
        [
            "where",
            "seconds",
            "time ÷ one process",
            "photos/s beyond the start",
            "start of a call, s",
            "start of the cluster, s",
        ],
        rows,
        f"{versions}. {arguments.photos} JPEG files of about 400×533 pixels, all of different content, "
        f"{arguments.backbone}, caches off, {CORES} workers with one thread each, {arguments.rounds} alternating "
        "rounds: medians, and for the ratio median (smallest–largest) over the rounds. Vectors agree to the bit. "
        "Rate: what the last three quarters of the photos take; start of a call: the rest of its time, in which Ray "
        "starts its actors and all engines plan. Start of the cluster: once, with a first batch.",
    )


if __name__ == "__main__":
    main()
