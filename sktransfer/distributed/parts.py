"""The unfinished parts of a folder, as tasks of an engine; all else is as in one process."""

from __future__ import annotations

import functools
import pickle
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from sktransfer.distributed.dask_cluster import open_dask
from sktransfer.distributed.ray_cluster import open_ray
from sktransfer.distributed.spark_cluster import open_spark
from sktransfer.distributed.workers import QUEUE, Needs, Workers
from sktransfer.exceptions import SktransferError
from sktransfer.jobs import JOB, Job, Outcome, PartWriter, claim_folder, write_part
from sktransfer.options import count_threads
from sktransfer.progress import Progress
from sktransfer.table_command import Request, open_job

_OPEN = {"ray": open_ray, "spark": open_spark, "dask": open_dask}


def write_on(engine: str, address: str | None, request: Request) -> PartWriter:
    """What does parts on the workers of "ray", "spark" or "dask", for `write_parts`.

    They open the table anew, so that every machine has to find it, the images and the folder under the same paths.
    """

    def write(numbers: Sequence[int], progress: Progress | None) -> Generator[Outcome, None, None]:
        if numbers:
            with _open_workers(engine, address, request) as workers:
                yield from _collect(workers, pickle.dumps(request.anchor()), numbers, progress)

    return write


def _open_workers(engine: str, address: str | None, request: Request) -> AbstractContextManager[Workers]:
    threads = count_threads(request.options["n_jobs"] or 1)
    gpus = int(str(request.options["device"]).startswith(("cuda", "tensorrt")))
    return _OPEN[engine](address, Needs(threads, gpus, count_threads(None)))


def _collect(
    workers: Workers, request: bytes, numbers: Sequence[int], progress: Progress | None
) -> Generator[Outcome, None, None]:
    """Outcomes as they come; a few parts are handed in at a time.

    Raises
    ------
    SktransferError
        If parts could not be written, when all others are.
    """
    waiting, running, failed = iter(numbers), dict[Future[Any], int](), dict[int, str]()
    while True:
        for number in islice(waiting, max(1, QUEUE * workers.count()) - len(running)):
            running[workers.submit(write_here, request, number)] = number
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number = running.pop(future)
            try:
                outcome, counts = future.result()
            except Exception as error:  # of the engine, or of a worker
                failed[number] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                continue
            if progress is not None:
                progress.advance(**counts)
            yield outcome
    if failed:
        first = min(failed)
        raise SktransferError(
            f"{len(failed)} of {len(numbers)} parts could not be written; the same command tries them again. "
            f"Part {first}: {failed[first]}"
        )


class _Counts:
    """A Progress of one part, told to the one that waits for it."""

    def __init__(self) -> None:
        self.images = Counter[str]()

    def advance(self, **counts: int) -> None:
        self.images.update(counts)

    def say(self, text: str) -> None:
        pass

    def close(self, worker_hits: int = 0, worker_passes: int = 0) -> None:
        pass


def write_here(request: bytes, number: int) -> tuple[Outcome, dict[str, int]]:
    """Write one part, on a worker: its outcome, and the images that were known, computed, copied and broken."""
    job, folder = _open(request)
    if not (folder / JOB).is_file():
        raise OSError(f"{folder} must be a folder that all workers share. One of them does not see {JOB} there.")
    claim_folder(job, folder, write=False)
    counts = _Counts()
    return write_part(job, folder, number, counts), dict(counts.images)


@functools.lru_cache(maxsize=1)
def _open(request: bytes) -> tuple[Job, Any]:
    opened: Request = pickle.loads(request)  # noqa: S301 - our own
    return open_job(opened), opened.target.path
