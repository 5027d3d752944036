"""Images -> array: parameters are resolved to a plan, and cells without an image are dealt with as asked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sktransfer.backbones import Backbone, find_backbone, resolve_preprocessing
from sktransfer.cache import CacheDir, open_cache
from sktransfer.devices import resolve_device
from sktransfer.embedding import Embeddings, Run
from sktransfer.exceptions import ImageFailure, ImageReadError, ImageReadWarning
from sktransfer.graph import EmbeddingGraph, Layer, plan_graph
from sktransfer.images import describe_reference
from sktransfer.layers import POOLINGS
from sktransfer.options import ExtractionOptions, ExtractionPlan, Policy
from sktransfer.outputs import Output, open_output
from sktransfer.preprocessing import Preprocessing
from sktransfer.progress import Progress
from sktransfer.references import (
    Cell,
    Images,
    References,
    describe_flat_images,
    is_numeric_table,
    list_images,
    list_references,
    reshape_flat_images,
)
from sktransfer.views import Views, ViewsName

if TYPE_CHECKING:
    import pandas as pd

_FILL = {"nan": np.nan, "zero": 0.0}


def plan_extraction(
    backbone: str | os.PathLike[str] | Backbone,
    layer: Layer = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    device: Any = "auto",
    precision: str = "float32",
    cache_dir: CacheDir = "auto",
    *,
    views: ViewsName = "center",
    progress: bool = False,
) -> ExtractionPlan:
    """Resolve names and files to an ExtractionPlan; no image is read and nothing is run.

    A backbone that is not on this machine is fetched, with a progress bar if `progress` is true.
    """
    loaded, graph = plan_embedding(backbone, layer, pooling, preprocessing, precision, cache_dir, progress=progress)
    resolved_device = resolve_device(device)
    if precision == "float16" and resolved_device.is_cpu:
        raise ValueError('precision="float16" needs a GPU. Got the CPU instead; use "float32".')
    return ExtractionPlan(loaded, graph, resolved_device, Views(graph.preprocessing, views))


def plan_embedding(
    backbone: str | os.PathLike[str] | Backbone,
    layer: Layer = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    precision: str = "float32",
    cache_dir: CacheDir = "auto",
    *,
    progress: bool = False,
) -> tuple[Backbone, EmbeddingGraph]:
    """The part of `plan_extraction` that is the same on every machine: no device is asked for."""
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"pooling must be None or one of {', '.join(map(repr, POOLINGS))}. Got {pooling!r} instead.")
    if layer is not None and not isinstance(layer, str):
        layer = list(layer) if isinstance(layer, Sequence) else layer
        if not isinstance(layer, list) or not layer or not all(isinstance(name, str) for name in layer):
            raise ValueError(f"layer must be None, a name or a list of names. Got {layer!r} instead.")
    if precision not in ("float32", "float16"):
        raise ValueError(f'precision must be "float32" or "float16". Got {precision!r} instead.')
    cache = open_cache(cache_dir)
    loaded = find_backbone(backbone, cache, progress=progress)
    graph = plan_graph(
        loaded.path,
        loaded.digest,
        resolve_preprocessing(loaded, preprocessing, cache),
        loaded.layer if layer is None and pooling is None else layer,
        pooling,
        precision,
        cache,
    )
    return loaded, graph


def read_references(X: Any, image_shape: Any) -> References:
    """The references in X; a 2-D numeric X is read as flattened images of `image_shape`."""
    if not is_numeric_table(X):
        return list_references(X)
    try:
        table = np.asarray(X)
        if table.dtype.kind == "O":  # of nullable columns, and of lists of numbers
            table = np.array(table.tolist())
    except ValueError as error:
        raise ValueError("Rows of flattened images must all have the same number of values.") from error
    if table.ndim != 2 or table.dtype.kind not in "iufb":
        return list_references(table)
    if image_shape is None:
        raise ValueError(describe_flat_images(table.shape[1]))
    return reshape_flat_images(table, image_shape)


def extract(
    images: Any,
    backbone: str | os.PathLike[str] | Backbone = "default",
    *,
    layer: Layer = None,
    pooling: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    views: ViewsName = "center",
    device: Any = "auto",
    precision: str = "float32",
    batch_size: int | Literal["auto"] = "auto",
    missing_images: Policy = "error",
    broken_images: Policy = "error",
    add_indicator: bool = False,
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    pixel_range: tuple[float, float] | None = None,
    cache_dir: CacheDir = "auto",
    n_jobs: int | None = None,
    verbose: bool | int = False,
    out: Output = None,
    return_report: bool = False,
) -> Embeddings | tuple[Embeddings, pd.DataFrame]:
    """Embed images with a pretrained backbone.

    The function under :class:`PretrainedFeatureExtractor`; the parameters are described there.

    Parameters
    ----------
    images : sequence, Series, frame or array of n images
    out : ndarray, path or None
        Where the embeddings go: a float32 array of the shape that is returned; a ``.npy`` file, which is mapped into
        memory, so that the result may be larger than it, and appears when it is complete; None is a new array.
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
    plan = plan_extraction(
        backbone, layer, pooling, preprocessing, device, precision, cache_dir, views=views, progress=bool(verbose)
    )
    embeddings, failures = extract_references(read_references(images, image_shape), plan, options, out=out)
    return (embeddings, report_failures(failures)) if return_report else embeddings


def report_failures(failures: Sequence[ImageFailure]) -> pd.DataFrame:
    """A frame with one line for each failure."""
    import pandas as pd

    names = ["row", "column", "reference", "reason", "missing"]
    return pd.DataFrame([[getattr(failure, name) for name in names] for failure in failures], columns=names)


def extract_references(
    references: References,
    plan: ExtractionPlan,
    options: ExtractionOptions,
    *,
    out: Output = None,
    stacklevel: int = 3,
) -> tuple[Embeddings, list[ImageFailure]]:
    """Embed every cell of `references`: float32 (n, columns * d + indicators), and what failed."""
    width = len(references.columns) * (plan.graph.n_features + bool(options.add_indicator))
    with open_output(out, (references.n_rows, width)) as output:
        failures, n_images = fill_output(references, plan, options, output)
        open_cache(options.cache_dir).warn(stacklevel)
        failed = [failure for failure in failures if not failure.missing]
        apply_broken_policy(failed, n_images if references.n_rows > 1 else 1, options)
    if failed:
        message = f"{summarise_failures(failed)}. Such rows are filled (broken_images={options.broken_images!r})."
        warnings.warn(ImageReadWarning(message, failures), stacklevel=stacklevel)
    return output, failures


def fill_output(
    references: References,
    plan: ExtractionPlan,
    options: ExtractionOptions,
    output: Embeddings,
    progress: Progress | None = None,
) -> tuple[list[ImageFailure], int]:
    """Embed every cell into `output`, unreadable ones as NaN or zeros; what failed, and how many images there are.

    Raises
    ------
    ImageReadError
        If a cell is empty and `missing_images` is "error", before the work.
    """
    images, d = list_images(references), plan.graph.n_features
    failures = describe_empty(references, images)
    if failures and options.missing_images == "error":
        raise ImageReadError(_summarise(failures, "missing_images"), failures)
    blocks = [output[:, column * d : (column + 1) * d] for column in range(len(references.columns))]
    listed = [np.empty((len(images.owners), d), dtype=np.float32)] if images.several else []
    broken = Run(images, plan, options, [*blocks, *listed], progress).embed_all()
    failures += [describe_failure(references, images, index, reason) for index, reason in sorted(broken.items())]
    unusable = fill_cells(images, broken, blocks, listed, options)
    if options.add_indicator:
        indicators = output[:, len(blocks) * d :]
        indicators[:] = 0.0
        for column, row in unusable:
            indicators[row, column] = 1.0
    return sorted(failures, key=lambda failure: failure.row), len(images.places)


def fill_cells(
    images: Images,
    broken: Mapping[int, str],
    blocks: Sequence[Embeddings],
    listed: Sequence[Embeddings],
    options: ExtractionOptions,
) -> list[Cell]:
    """Write the mean of several images, and what stands for none; returns the cells without a usable image."""
    lost = {images.places[index] for index in broken}
    last = len(images.columns) - 1
    unusable = [place for place in lost if not images.several or place[0] != last]
    for (column, row), positions in images.several.items():
        kept = [position for position in positions if (last, position) not in lost]
        if kept:
            blocks[column][row] = listed[0][kept].mean(axis=0, dtype=np.float64)
        else:
            unusable.append((column, row))
    for cells, policy in ((unusable, options.broken_images), (images.empty, options.missing_images)):
        for column, row in cells:
            blocks[column][row] = _FILL.get(policy, np.nan)
    return [*unusable, *images.empty]


def name_features(columns: Sequence[str], backbone: str, n_features: int, add_indicator: bool) -> list[str]:
    """``<backbone>_<i>``, or ``<column>_<backbone>_<i>`` for several columns of images; then ``<column>_missing``."""
    prefixes = [""] if len(columns) == 1 else [f"{column}_" for column in columns]
    names = [f"{prefix}{backbone}_{i}" for prefix in prefixes for i in range(n_features)]
    return names + [f"{column}_missing" for column in columns if add_indicator]


def describe_empty(references: References, images: Images) -> list[ImageFailure]:
    """The cells without an image."""
    cells = [(row, references.name(column), references.columns[column][row]) for column, row in images.empty]
    return [ImageFailure(row, name, repr(cell)[:80], "empty cell", missing=True) for row, name, cell in cells]


def describe_failure(references: References, images: Images, index: int, reason: str) -> ImageFailure:
    """The failure of one image."""
    column, row = images.cell(index)
    reference = describe_reference(images.reference(index))
    return ImageFailure(row, references.name(column), reference, reason, missing=False)


def apply_broken_policy(failed: Sequence[ImageFailure], n_images: int, options: ExtractionOptions) -> None:
    """Raise ImageReadError where `broken_images` says so, or more than half of several images are unreadable."""
    if not failed:
        return
    if options.broken_images == "error":
        raise ImageReadError(_summarise(failed, "broken_images"), failed)
    # One row is a prediction, not a wrong folder.
    if n_images > 1 and len(failed) * 2 > n_images:
        where = f" (root={os.fspath(options.root)!r})" if options.root is not None else ""
        raise ImageReadError(
            f"{len(failed)} of {n_images} images could not be read{where}, so broken_images="
            f"{options.broken_images!r} does not apply: is this the right folder? The first: {failed[0]}.",
            failed,
        )


def _summarise(failures: Sequence[ImageFailure], parameter: str) -> str:
    return f'{summarise_failures(failures)}. Pass {parameter}="nan" or "zero" to keep such rows.'


def summarise_failures(failures: Sequence[ImageFailure]) -> str:
    """The first failure, and how many more there are."""
    rest = len(failures) - 1
    one_a_row = len({failure.row for failure in failures}) == len(failures)
    what = "row" if one_a_row else "cell" if failures[0].missing else "image"
    more = f" ({rest} more {what}{'' if rest == 1 else 's'} {'too' if failures[0].missing else 'failed'})"
    return f"{failures[0]}{more if rest else ''}"
