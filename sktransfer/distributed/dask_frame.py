"""Dask: partition by partition."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sktransfer._optional import import_optional
from sktransfer.distributed.batches import BatchEmbedder, plan_batches

if TYPE_CHECKING:
    import pandas as pd

    from sktransfer.extractor import PretrainedFeatureExtractor


def extract_dask(frame: Any, image_column: str | Sequence[str], extractor: PretrainedFeatureExtractor) -> Any:
    """Append lists of float32 and reasons (columns of pandas' ArrowDtype) to a frame of Dask, lazily.

    See `extract_dataframe`.
    """
    import_optional("dask.dataframe", "dask")
    import_optional("pyarrow", "dask")
    embedder = plan_batches(extractor, image_column)
    embedder.refuse_taken(list(frame.columns))
    append = functools.partial(_append, embedder)
    return frame.map_partitions(append, meta=append(frame._meta))


def _append(embedder: BatchEmbedder, part: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    arrays = embedder.embed(part)
    return part.assign(**{name: pd.arrays.ArrowExtensionArray(array) for name, array in arrays.items()})
