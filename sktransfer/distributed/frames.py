"""Frames of Spark and of Dask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sktransfer.distributed.dask_frame import extract_dask
from sktransfer.distributed.spark_frame import extract_spark

if TYPE_CHECKING:
    from sktransfer.extractor import PretrainedFeatureExtractor


def extract_dataframe(frame: Any, image_column: str | Sequence[str], extractor: PretrainedFeatureExtractor) -> Any:
    """Append embeddings to a frame of Spark or of Dask, lazily, on the engine's workers.

    Parameters
    ----------
    frame : DataFrame of pyspark or of dask
        Rows keep their order within a partition, and partitions theirs.
    image_column : str or list of str
        Columns of references or bytes.
    extractor : PretrainedFeatureExtractor
        Fitted or not; its parameters travel to the workers, which check that they find the same embedding. Relative
        paths in cells start from its `root`. Each task has one thread where the engine gives it one core
        (``OMP_NUM_THREADS``); with Dask's threaded scheduler pass ``n_jobs=1``.

    Returns
    -------
    DataFrame of the same engine
        All columns and, for each of images, lists of float32 named after the backbone (for several columns
        ``<column>_<backbone>``) and ``<column>_error``: null, or what failed. A row without a usable image has NaN or
        zeros if the extractor says so, and null under its default, "error": one broken file must not end a job of many.
        In Dask, a column of float32 for each feature (``<backbone>_<i>``), with NaN for null.

    Raises
    ------
    MissingExtraError
        If the engine is not installed.
    BackboneError
        If the backbone cannot be used, or is not the one seen by the extractor's `fit`.

    Notes
    -----
    Spark starts its workers with ``PYSPARK_PYTHON``: let it be the path of an interpreter that has sktransfer, on every
    machine. A partition is repeated when its worker dies, which is safe: nothing is changed but the cache.
    """
    engine = type(frame).__module__.partition(".")[0]
    if engine == "pyspark":
        return extract_spark(frame, image_column, extractor)
    if engine in ("dask", "dask_expr"):
        return extract_dask(frame, image_column, extractor)
    kind = f"{type(frame).__module__}.{type(frame).__qualname__}"
    raise TypeError(f"frame must be a DataFrame of Spark or of Dask. Got a {kind} instead.")
