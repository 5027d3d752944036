"""A table in, a table with embeddings out: part by part, so that it may be larger than memory and survives a kill."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

import sktransfer
from sktransfer.averages import Averages
from sktransfer.cache import open_cache
from sktransfer.digests import digest_bytes, digest_file, digest_pixels
from sktransfer.embedding import Run
from sktransfer.exceptions import ImageFailure, ImageReadError
from sktransfer.extraction import (
    apply_broken_policy,
    describe_empty,
    fill_output,
    name_features,
    summarise_failures,
)
from sktransfer.images import read_pixels
from sktransfer.locations import locate
from sktransfer.options import ExtractionOptions, ExtractionPlan, find_spaces
from sktransfer.outputs import replacing
from sktransfer.progress import Progress
from sktransfer.references import References, list_images, list_references
from sktransfer.tables import Table
from sktransfer.writers import Writer, open_writer, read_metadata

if TYPE_CHECKING:
    import pandas as pd

PART_ROWS = 4096
MANIFEST = "_manifest.json"  # readers of Parquet folders pass over names that begin with _
JOB = "_job.json"
_REMEDY = "Choose another folder, or remove its files."
SAMPLE = 24  # images that a dry run embeds to know how long the others take

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Job:
    """What is embedded, how, and what the result looks like."""

    table: Table
    plan: ExtractionPlan
    options: ExtractionOptions
    form: str = "parquet"
    layout: str = "columns"
    dtype: str = "float32"
    part_rows: int = PART_ROWS
    shard: tuple[int, int] = (1, 1)  # which of how many, from 1
    max_failures: int | None = None
    features: list[str] = field(init=False)

    def __post_init__(self) -> None:
        table, n_features = self.table, self.plan.graph.n_features
        names = name_features(table.columns, self.plan.backbone.name, n_features, self.options.add_indicator)
        object.__setattr__(self, "features", names)
        if self.layout == "list" and self.form not in ("parquet", "feather"):
            raise ValueError(f'layout "list" needs the format parquet or feather. Got {self.form!r} instead.')
        reserved = {*names, *self.lists, *(("index", "embeddings", "columns", "file") if self.form == "npz" else ())}
        if taken := reserved.intersection(table.others):
            raise ValueError(f"Columns of the table must not have the name of a new one. Rename {min(taken)!r}.")

    @property
    def lists(self) -> dict[str, slice]:
        """Columns of lists, and the features in them."""
        if self.layout != "list":
            return {}
        columns, name, d = self.table.columns, self.plan.backbone.name, self.plan.graph.n_features
        names = [name] if len(columns) == 1 else [f"{column}_{name}" for column in columns]
        return {name: slice(i * d, (i + 1) * d) for i, name in enumerate(names)}

    def describe(self) -> dict[str, Any]:
        """What the numbers depend on, for the file's metadata."""
        graph, backbone = self.plan.graph, self.plan.backbone
        return {
            "backbone": backbone.name,
            "backbone_sha256": backbone.digest,
            "graph_digest": graph.digest,
            "layer": graph.layer,
            "preprocessing": graph.preprocessing.to_dict(),
            **({} if self.plan.views.name == "center" else {"views": self.plan.views.name}),
            "provider": self.plan.device.family,
            "n_features": graph.n_features,
            "images": list(self.table.columns),
            "table_digest": self.table.digest,
        }

    def state(self) -> dict[str, Any]:
        """The same with the versions of what computed it."""
        packages = ("onnxruntime", "pillow", "numpy")
        versions = {name: importlib.import_module("PIL" if name == "pillow" else name).__version__ for name in packages}
        return {"versions": {"sktransfer": sktransfer.__version__, **versions}, **self.describe()}

    def parts(self) -> list[tuple[int, int, int]]:
        """(number, first row, row after the last) of the parts of this shard, for a folder."""
        number, of = self.shard
        starts = range(0, self.table.n_rows, self.part_rows)
        return [(i, start, min(start + self.part_rows, self.table.n_rows)) for i, start in enumerate(starts)
                if i % of == number - 1]  # fmt: skip

    def stretches(self) -> list[tuple[int, int]]:
        """(first row, row after the last) of the rows of this shard, a part at a time, for a file."""
        number, of = self.shard
        first, after = self.table.n_rows * (number - 1) // of, self.table.n_rows * number // of
        return [(start, min(start + self.part_rows, after)) for start in range(first, after, self.part_rows)]


@dataclass
class Outcome:
    """What was done."""

    rows: int = 0
    images: int = 0
    kept_parts: int = 0  # that an earlier run had finished
    failures: list[ImageFailure] = field(default_factory=list)

    @property
    def broken(self) -> list[ImageFailure]:
        """Failures that are no empty cells."""
        return [failure for failure in self.failures if not failure.missing]


def count_images(job: Job, stretches: Sequence[tuple[int, int]]) -> int:
    """How many images rows have; refuses cells that hold none, and empty ones where they are an error.

    Raises
    ------
    ImageReadError
        If cells are empty and `missing_images` is "error".
    """
    images, empty = 0, list[ImageFailure]()
    for start, stop in stretches:
        references = _list_references(job.table, job.table.read(start, stop))
        listed = list_images(references)
        images += len(listed.places)
        if job.options.missing_images == "error":
            empty += _shift(describe_empty(references, listed), start)
    if empty:
        raise ImageReadError(f"{summarise_failures(empty)}. Pass --missing-images nan to keep such rows.", empty)
    return images


def write_file(job: Job, path: Path, progress: Progress | None = None) -> Outcome:
    """Write one file; it appears when it is complete, and not at all if images fail and the policy is "error".

    Raises
    ------
    ImageReadError
        If images cannot be read and `broken_images` is "error", or more than half cannot, or more than `max_failures`.
    """
    outcome = Outcome()
    with replacing(path) as temporary:
        with open_writer(temporary, job.form, job.features, job.lists, job.dtype, job.state()) as writer:
            for start, stop in job.stretches():
                _embed_part(job, start, stop, outcome, progress, writer)
        _apply_policy(job, outcome)
    return outcome


PartWriter = Callable[[Sequence[int], Progress | None], Generator[Outcome, None, None]]  # in any order


def write_parts(job: Job, folder: Path, progress: Progress | None = None, write: PartWriter | None = None) -> Outcome:
    """Write a Parquet file for each part of the table; those that an earlier run finished are left as they are.

    `write` has `write_part` done elsewhere; None does one part after the other in this process.

    A part with images that could not be read is tried again by the next run, and is not written where `broken_images`
    is "error". When the last part of the table is there, a manifest is written beside them.

    Raises
    ------
    ImageReadError
        As `write_file`, when all parts have been tried.
    ValueError
        If the folder holds parts of another job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder(job, folder)
    lock = FileLock(folder / f".shard-{job.shard[0]}-of-{job.shard[1]}.lock")
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} must be written by one process a shard. Another one is at this shard.") from error
    try:
        outcome = _write_shard(job, folder, progress, write)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
    return outcome


def claim_folder(job: Job, folder: Path, *, write: bool = True) -> None:
    """Refuse a folder that holds anything but parts of this job; an empty one is made its own.

    Raises
    ------
    ValueError
        If the folder is of another job, or holds other files.
    """
    path, stated = folder / JOB, None
    with suppress(OSError, ValueError):  # not there, or not whole
        stated = json.loads(path.read_text("utf-8"))
    if stated is None:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        if any(name != JOB and not name.startswith(".") for name in names):
            raise ValueError(f"{folder} must be a new or an empty folder, or hold parts of the same job. {_REMEDY}")
        if write:
            path.write_text(json.dumps({"job": _identify(job), **job.describe()}, indent=1), "utf-8")
    elif not isinstance(stated, dict) or stated.get("job") != _identify(job):
        backbone = f" (backbone {stated['backbone']!r})" if isinstance(stated, dict) and "backbone" in stated else ""
        raise ValueError(
            f"{folder} must be empty or hold parts of the same table, backbone and options. It is of another run"
            f"{backbone}. {_REMEDY}"
        )


def _write_shard(job: Job, folder: Path, progress: Progress | None, write: PartWriter | None) -> Outcome:
    outcome, todo = Outcome(), []
    for number, _, _ in job.parts():
        stated = find_part(job, folder, number)
        if stated is None:
            todo.append(number)
        else:
            outcome.kept_parts += 1
            outcome.rows += stated["rows"]
            outcome.images += stated["n_images"]
            outcome.failures += [ImageFailure(**failure) for failure in stated["failures"]]
    here = (write_part(job, folder, number, progress) for number in todo)
    with closing(here if write is None else write(todo, progress)) as parts:
        for part in parts:
            for name in ("rows", "images", "failures"):
                setattr(outcome, name, getattr(outcome, name) + getattr(part, name))
            _refuse_too_many(job, outcome)
    outcome.failures.sort(key=lambda failure: failure.row)
    _apply_policy(job, outcome)
    _write_manifest(job, folder)
    return outcome


def unfinished_parts(job: Job, folder: Path) -> list[tuple[int, int]]:
    """First row and row after the last of the parts that `write_parts` would compute."""
    return [(start, stop) for number, start, stop in job.parts() if find_part(job, folder, number) is None]


def find_part(job: Job, folder: Path, number: int) -> dict[str, Any] | None:
    """What a finished part states; None where it is not there, not whole, or has images that could not be read."""
    path = folder / _name_part(number)
    if not path.is_file() or (stated := read_metadata(path)) is None:
        return None
    is_ours = stated.get("job") == _identify(job)
    return stated if is_ours and all(failure["missing"] for failure in stated["failures"]) else None


def _name_part(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _identify(job: Job) -> str:
    """Digest of everything that the bytes of a part depend on, but the images."""
    o = job.options
    # Parts with unreadable images are done again, so that neither their policy nor the root matters to the others.
    policies = [o.missing_images, o.add_indicator]
    shape = [job.layout, job.dtype, job.part_rows, job.table.others]
    return digest_bytes(json.dumps([job.describe(), policies, shape, o.pixel_range]).encode()).hex()


def write_part(job: Job, folder: Path, number: int, progress: Progress | None = None) -> Outcome:
    """Write the file of one part, whole or not at all; none where images fail and `broken_images` is "error"."""
    name = _name_part(number)
    for left in folder.glob(f".{name.removesuffix('.parquet')}-*"):
        left.unlink(missing_ok=True)  # a run that was killed
    part, start, n_rows = Outcome(), number * job.part_rows, job.table.n_rows
    kept, embeddings = _embed_part(job, start, min(start + job.part_rows, n_rows), part, progress)
    if part.broken and job.options.broken_images == "error":
        return part
    stated = {**job.state(), "job": _identify(job), "rows": part.rows, "n_images": part.images,
              "failures": [dataclasses.asdict(failure) for failure in part.failures]}  # fmt: skip
    with (
        replacing(folder / name) as temporary,
        open_writer(temporary, "parquet", job.features, job.lists, job.dtype, stated) as writer,
    ):
        writer.write(kept, embeddings)
    return part


def _embed_part(
    job: Job, start: int, stop: int, outcome: Outcome, progress: Progress | None, writer: Writer | None = None
) -> tuple[pd.DataFrame, Array]:
    """The columns that are kept and the embeddings of some rows; `outcome` is added to."""
    rows = job.table.read(start, stop)
    embeddings = np.empty((len(rows), len(job.features)), dtype=np.float32)
    failures, images = fill_output(_list_references(job.table, rows), job.plan, job.options, embeddings, progress)
    outcome.rows += len(rows)
    outcome.images += images
    outcome.failures += _shift(failures, start)
    kept = rows[list(job.table.others)]
    if writer is not None:
        _refuse_too_many(job, outcome)
        writer.write(kept, embeddings)
    return kept, embeddings


def _shift(failures: Sequence[ImageFailure], start: int) -> list[ImageFailure]:
    """Failures with rows counted from the beginning of the table."""
    return [dataclasses.replace(failure, row=failure.row + start) for failure in failures]


def _apply_policy(job: Job, outcome: Outcome) -> None:
    apply_broken_policy(outcome.broken, outcome.images if outcome.rows > 1 else 1, job.options)


def _refuse_too_many(job: Job, outcome: Outcome) -> None:
    broken = outcome.broken
    if job.max_failures is not None and len(broken) > job.max_failures:
        raise ImageReadError(
            f"Stopped after {len(broken)} images that could not be read, more than --max-failures {job.max_failures}; "
            f"what is embedded is kept in the cache. The first: {broken[0]}.",
            broken,
        )


def _list_references(table: Table, rows: pd.DataFrame) -> References:
    listed = list_references(rows[list(table.columns)])
    return References(listed.columns, table.names)


def _write_manifest(job: Job, folder: Path) -> None:
    """Once all parts of the table are there: what they hold, with their digests."""
    n_parts = -(-job.table.n_rows // job.part_rows)
    stated = [read_metadata(folder / _name_part(number)) for number in range(n_parts)]
    if any(one is None or one.get("job") != _identify(job) for one in stated):
        return  # other shards are not done
    parts = [{"file": _name_part(number), "rows": one["rows"], "sha256": digest_file(folder / _name_part(number))}
             for number, one in enumerate(filter(None, stated))]  # fmt: skip
    failures = [failure for one in filter(None, stated) for failure in one["failures"]]
    manifest = {**job.state(), "rows": job.table.n_rows, "parts": parts, "failures": failures}
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), "utf-8")


@dataclass(frozen=True)
class Estimate:
    """What a job would cost."""

    rows: int
    images: int
    distinct: int
    cached: int
    empty: int
    output_bytes: int
    images_per_second: float  # measured on some that are not cached; 0 where there are none
    seconds: float


def estimate(job: Job, stretches: Sequence[tuple[int, int]]) -> Estimate:
    """Count what is there, and time some images that are not in the cache yet; nothing is written."""
    cache = open_cache(job.options.cache_dir)
    vectors = Averages(cache, find_spaces(job.plan, job.options))
    counts, seen, new = Counter[str](), set[Any](), list[Any]()
    for start, stop in stretches:
        references = _list_references(job.table, job.table.read(start, stop))
        listed = list_images(references)
        counts.update(rows=references.n_rows, images=len(listed.places), empty=len(listed.empty))
        all_references = (listed.reference(index) for index in range(len(listed.places)))
        fresh = {name: reference for name, reference in _name_images(all_references, job.options) if name not in seen}
        seen.update(fresh)
        places = cache.places.recall([name for name in fresh if isinstance(name, str)])
        digests = {name: places.get(name, b"") if isinstance(name, str) else name for name in fresh}
        known = vectors.contains({digest for digest in digests.values() if digest})
        counts["cached"] += sum(digest in known for digest in digests.values())
        new += [fresh[name] for name, digest in digests.items() if digest not in known]
    rate = _measure(job, new)
    itemsize = 2 if job.dtype == "float16" else 4
    size = counts["rows"] * len(job.features) * itemsize
    seconds = len(new) / rate if rate else 0.0
    return Estimate(counts["rows"], counts["images"], len(seen), counts["cached"], counts["empty"], size, rate, seconds)


def _name_images(references: Iterator[Any], options: ExtractionOptions) -> Iterator[tuple[str | bytes, Any]]:
    """Images with their place, or the digest of those that hold their content."""
    for reference in references:
        place = locate(reference, options.root)
        if place is not None:
            yield place, reference
            continue
        with suppress(ValueError, OSError):
            content = read_pixels(reference, options.pixel_range)
            yield digest_bytes(content) if isinstance(content, bytes) else digest_pixels(content), reference


def _measure(job: Job, references: Sequence[Any]) -> float:
    """Images per second, of some that are spread over all."""
    if not references:
        return 0.0
    chosen = [references[i] for i in np.linspace(0, len(references) - 1, min(SAMPLE, len(references))).astype(int)]
    options = dataclasses.replace(job.options, cache_dir=None)
    elapsed = 0.0
    for part in (chosen[:2], chosen):  # the first opens the session
        started = time.perf_counter()
        Run(list_images(References((part,))), job.plan, options, None).embed_all()
        elapsed = time.perf_counter() - started
    return len(chosen) / elapsed
