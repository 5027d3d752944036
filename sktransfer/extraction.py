"""References and an embedding graph -> array: the only place where images, sessions and the cache meet."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import joblib
import numpy as np
from PIL import Image

from sktransfer.backbones import Backbone, load_backbone, resolve_preprocessing
from sktransfer.cache import EmbeddingCache, open_cache
from sktransfer.digests import digest_bytes, digest_pixels
from sktransfer.exceptions import ImageFailure, ImageReadError, ImageReadWarning
from sktransfer.graph import POOLINGS, EmbeddingGraph, plan_graph
from sktransfer.images import (
    decode_content,
    describe_error,
    describe_reference,
    is_missing,
    quiet_decoder,
    read_content,
)
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import (
    References,
    describe_flat_images,
    is_numeric_table,
    list_references,
    reshape_flat_images,
)
from sktransfer.session import GPU_BATCH, Device, open_session, resolve_device

if TYPE_CHECKING:
    import pandas as pd

Policy = Literal["error", "nan", "zero"]
Embeddings = np.ndarray[Any, np.dtype[np.float32]]

_FILL = {"nan": np.nan, "zero": 0.0}


@dataclass(frozen=True)
class ExtractionPlan:
    """Which backbone, cut where, on which device."""

    backbone: Backbone
    graph: EmbeddingGraph
    device: Device


@dataclass(frozen=True)
class ExtractionOptions:
    """Everything that does not change a vector; the parameters are those of `extract`."""

    missing_images: Policy = "error"
    broken_images: Policy = "error"
    add_indicator: bool = False
    root: str | os.PathLike[str] | None = None
    pixel_range: tuple[float, float] | None = None
    batch_size: int | Literal["auto"] = "auto"
    cache_dir: str | os.PathLike[str] | None = "auto"
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
        if self.root is not None and not os.path.isdir(self.root):
            raise ValueError(f"root must be an existing folder. Got {os.fspath(self.root)!r} instead.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and bool(value[0] < value[1])


def plan_extraction(
    backbone: str | os.PathLike[str] | Backbone,
    layer: str | None = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    device: Any = "auto",
    precision: str = "float32",
) -> ExtractionPlan:
    """Resolve names and files to an ExtractionPlan; no image is read and nothing is run."""
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"pooling must be None or one of {', '.join(map(repr, POOLINGS))}. Got {pooling!r} instead.")
    if precision not in ("float32", "float16"):
        raise ValueError(f'precision must be "float32" or "float16". Got {precision!r} instead.')
    loaded = load_backbone(backbone)
    resolved_device = resolve_device(device)
    if precision == "float16" and resolved_device.is_cpu:
        raise ValueError('precision="float16" needs a GPU. Got the CPU instead; use "float32".')
    graph = plan_graph(
        loaded.path,
        loaded.digest,
        resolve_preprocessing(loaded, preprocessing),
        loaded.layer if layer is None and pooling is None else layer,
        pooling,
        precision,
    )
    return ExtractionPlan(loaded, graph, resolved_device)


def read_references(X: Any, image_shape: Any) -> References:
    """The references in X; a 2-D numeric X is read as flattened images of `image_shape`."""
    if not is_numeric_table(X):
        return list_references(X)
    table = np.asarray(X)
    if table.ndim != 2:
        return list_references(table)
    if image_shape is None:
        raise ValueError(describe_flat_images(table.shape[1]))
    return reshape_flat_images(table, image_shape)


def extract(
    images: Any,
    backbone: str | os.PathLike[str] | Backbone = "default",
    *,
    layer: str | None = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    device: Any = "auto",
    precision: str = "float32",
    batch_size: int | Literal["auto"] = "auto",
    missing_images: Policy = "error",
    broken_images: Policy = "error",
    add_indicator: bool = False,
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
    n_jobs: int | None = None,
    verbose: bool | int = False,
    return_report: bool = False,
) -> Embeddings | tuple[Embeddings, pd.DataFrame]:
    """Embed images with a pretrained backbone.

    The function under :class:`PretrainedFeatureExtractor`; the parameters are described there.

    Parameters
    ----------
    images : sequence, Series, frame or array of n images
    return_report : bool
        Also return a frame with one line for each cell without a usable image: row, column, reference, reason, missing.

    Returns
    -------
    ndarray of shape (n, d), float32
        One block of d columns for each column of images, then the indicators if `add_indicator` is true.
    DataFrame
        The report, if `return_report` is true.

    Raises
    ------
    ImageReadError
        If a cell is empty or cannot be read and the policy is "error", or if more than half cannot be read.
    BackboneError, DeviceError
        If the backbone or the device cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> extract(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    (2, 256)
    """
    options = ExtractionOptions(
        missing_images=missing_images,
        broken_images=broken_images,
        add_indicator=add_indicator,
        root=root,
        pixel_range=pixel_range,
        batch_size=batch_size,
        cache_dir=cache_dir,
        n_jobs=n_jobs,
        verbose=verbose,
    )
    plan = plan_extraction(backbone, layer, pooling, preprocessing, device, precision)
    embeddings, failures = extract_references(read_references(images, image_shape), plan, options)
    return (embeddings, _report(failures)) if return_report else embeddings


def _report(failures: Sequence[ImageFailure]) -> pd.DataFrame:
    import pandas as pd

    names = ["row", "column", "reference", "reason", "missing"]
    return pd.DataFrame([[getattr(failure, name) for name in names] for failure in failures], columns=names)


def extract_references(
    references: References, plan: ExtractionPlan, options: ExtractionOptions, *, stacklevel: int = 3
) -> tuple[Embeddings, list[ImageFailure]]:
    """Embed every cell of `references`: float32 (n, columns * d + indicators), and what failed."""
    n_rows, n_columns, d = references.n_rows, len(references.columns), plan.graph.n_features
    missing = [(column, row) for column in range(n_columns) for row in _find_missing(references.columns[column])]
    missing.sort(key=lambda cell: cell[1])
    failures = [_describe_cell(references, column, row, "empty cell", missing=True) for column, row in missing]
    if failures and options.missing_images == "error":
        raise ImageReadError(_summarise(failures, "missing_images"), failures)
    output = np.empty((n_rows, n_columns * d + n_columns * bool(options.add_indicator)), dtype=np.float32)
    for column, row in missing:
        output[row, column * d : (column + 1) * d] = _FILL[options.missing_images]

    skipped = set(missing)
    cells = [(column, row) for row in range(n_rows) for column in range(n_columns) if (column, row) not in skipped]
    run = _Run(references, plan, options, output, cells)
    broken = run.embed_all()
    failed = [_describe_cell(references, *cells[index], reason) for index, reason in sorted(broken.items())]
    _apply_broken_policy(failed, len(cells), options)
    for index in broken:
        column, row = cells[index]
        output[row, column * d : (column + 1) * d] = _FILL[options.broken_images]
    failures = sorted(failures + failed, key=lambda failure: failure.row)
    if options.add_indicator:
        output[:, n_columns * d :] = 0.0
        for column, row in [*missing, *(cells[index] for index in broken)]:
            output[row, n_columns * d + column] = 1.0
    if failed:
        message = f"{_name_first(failed)}. Such rows are filled (broken_images={options.broken_images!r})."
        warnings.warn(ImageReadWarning(message, failures), stacklevel=stacklevel)
    return output, failures


def _find_missing(column: Sequence[Any] | np.ndarray[Any, Any]) -> list[int]:
    return [] if isinstance(column, np.ndarray) else [row for row, cell in enumerate(column) if is_missing(cell)]


def _describe_cell(
    references: References, column: int, row: int, reason: str, *, missing: bool = False
) -> ImageFailure:
    name = references.names[column] if references.names is not None else None
    return ImageFailure(row, name, describe_reference(references.columns[column][row]), reason, missing)


def _apply_broken_policy(failed: Sequence[ImageFailure], n_cells: int, options: ExtractionOptions) -> None:
    if not failed:
        return
    if options.broken_images == "error":
        raise ImageReadError(_summarise(failed, "broken_images"), failed)
    # One row is a prediction, not a wrong folder.
    if n_cells > 1 and len(failed) * 2 > n_cells:
        where = f" (root={os.fspath(options.root)!r})" if options.root is not None else ""
        raise ImageReadError(
            f"{len(failed)} of {n_cells} images could not be read{where}, so broken_images="
            f"{options.broken_images!r} does not apply: is this the right folder? The first: {failed[0]}.",
            failed,
        )


def _summarise(failures: Sequence[ImageFailure], parameter: str) -> str:
    return f'{_name_first(failures)}. Pass {parameter}="nan" or "zero" to keep such rows.'


def _name_first(failures: Sequence[ImageFailure]) -> str:
    rest = len(failures) - 1
    more = f" ({rest} more {'row' if rest == 1 else 'rows'} {'too' if failures[0].missing else 'failed'})"
    return f"{failures[0]}{more if rest else ''}"


def count_threads(n_jobs: int | None) -> int:
    """Threads that `n_jobs` means: None is every core this process may use, negative counts from the end.

    Affinity and cgroup limits are honoured, and the inner limit that joblib gives its workers.
    """
    cores = int(joblib.cpu_count())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None:
        return max(1, min(cores, int(limit))) if limit.isdecimal() else cores
    return n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)


class _Run:
    """One call: threads that take cells from a shared iterator, decode them, run them and write their rows."""

    def __init__(
        self,
        references: References,
        plan: ExtractionPlan,
        options: ExtractionOptions,
        output: Embeddings,
        cells: Sequence[tuple[int, int]],
    ) -> None:
        self.references, self.plan, self.options, self.output, self.cells = references, plan, options, output, cells
        self.cache: EmbeddingCache | None = open_cache(options.cache_dir)
        graph, device = plan.graph, plan.device
        context = repr((graph.preprocessing.geometry, graph.digest, device.family, options.pixel_range))
        self.context = hashlib.sha256(context.encode()).digest()
        self.n_threads = max(1, min(count_threads(options.n_jobs), len(cells)))
        self.batch = options.batch_size if options.batch_size != "auto" else 1 if device.is_cpu else GPU_BATCH
        self.lock = threading.Lock()
        # A GPU gets whole batches, since each is padded to one shape; threads of the CPU get equal shares.
        share = -(-len(cells) // self.n_threads)
        self.chunks = _chunk(len(cells), min(self.batch, share) if device.is_cpu else self.batch)
        self.first_of: dict[bytes, int] = {}  # key -> cell that computes it in this call
        self.copies: list[tuple[int, int]] = []  # (cell, the cell with the same image)
        self.broken: dict[int, str] = {}
        self.error: BaseException | None = None
        self.stopped = False

    def embed_all(self) -> dict[int, str]:
        """Fill the output; returns the reason for each cell that could not be read."""
        threads = [threading.Thread(target=self._work_and_keep_error) for _ in range(self.n_threads - 1)]
        with self._open_progress() as self.progress, quiet_decoder():
            try:
                for thread in threads:
                    thread.start()
                self._work()
            finally:
                self.stopped = True
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
        if self.error is not None:
            raise self.error
        for index, source in self.copies:
            if source in self.broken:
                self.broken[index] = self.broken[source]
            else:
                self._row_of(index)[:] = self._row_of(source)
        return self.broken

    def _open_progress(self) -> Any:
        from tqdm import tqdm

        return tqdm(total=len(self.cells), desc="images", unit="image", disable=not self.options.verbose)

    def _work_and_keep_error(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
            self.stopped = True

    def _work(self) -> None:
        while not self.stopped:
            with self.lock:
                chunk = next(self.chunks, None)
            if chunk is None:
                # Every chunk is taken; those of the other threads are finished by them.
                return
            self._embed_chunk(chunk)
            if self.options.verbose:
                with self.lock:
                    self.progress.update(len(chunk))

    def _embed_chunk(self, chunk: range) -> None:
        pixels, targets = [], []
        for index in chunk:
            try:
                prepared = self._prepare(index)
            except Exception as error:
                if isinstance(error, MemoryError):
                    raise
                self.broken[index] = describe_error(error)
                continue
            if prepared is not None:
                pixels.append(prepared[0])
                targets.append((index, prepared[1]))
        if not pixels:
            return
        session = open_session(self.plan.graph, self.plan.device)
        batch = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        vectors = session.run(batch, pad_to=0 if self.plan.device.is_cpu else self.batch)
        for vector, (index, key) in zip(vectors, targets, strict=True):
            self._row_of(index)[:] = vector
            if self.cache is not None:
                self.cache.put(key, vector)

    def _prepare(self, index: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], bytes] | None:
        """Pixels for the graph and the key of their embedding; None where the vector is known or being computed."""
        column, row = self.cells[index]
        options = self.options
        content = read_content(self.references.columns[column][row], options.root, options.pixel_range)
        digest = digest_bytes(content) if isinstance(content, bytes) else digest_pixels(content)
        key = digest + self.context
        with self.lock:
            first = self.first_of.setdefault(key, index)
            if first != index:
                self.copies.append((index, first))
                return None
        vector = self.cache.get(key) if self.cache is not None else None
        if vector is not None:
            self._row_of(index)[:] = vector
            return None
        image: Image.Image = decode_content(content, options.pixel_range)
        return self.plan.graph.preprocessing.resize_and_crop(image), key

    def _row_of(self, index: int) -> Embeddings:
        column, row = self.cells[index]
        d = self.plan.graph.n_features
        return self.output[row, column * d : (column + 1) * d]


def _chunk(n: int, size: int) -> Iterator[range]:
    starts = itertools.count(0, max(1, size))
    return (range(start, min(start + size, n)) for start in itertools.takewhile(lambda start: start < n, starts))
