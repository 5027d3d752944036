"""Dask: partition by partition."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.distributed.batches import BatchEmbedder, plan_batches

if TYPE_CHECKING:
    import pandas as pd

    from sktransfer.extractor import PretrainedFeatureExtractor


def extract_dask(frame: Any, image_column: str | Sequence[str], extractor: PretrainedFeatureExtractor) -> Any:
    """Append a column of float32 for each feature, and reasons, to a frame of Dask, lazily: see `extract_dataframe`.

    Not lists in one column: Dask does not shuffle those of pandas' ArrowDtype, and pandas cannot read a Parquet file in
    which it has written them; of objects Dask infers no Parquet schema.
    """
    import_optional("dask.dataframe", "dask")
    import_optional("pyarrow", "dask")
    embedder = plan_batches(extractor, image_column)
    embedder.refuse_taken(list(frame.columns), embedder.features)
    append = functools.partial(_append, embedder)
    return frame.map_partitions(append, meta=append(frame._meta))


def _append(embedder: BatchEmbedder, part: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    arrays = embedder.embed(part)
    vectors = np.full((len(part), len(embedder.features)), np.nan, dtype=np.float32)
    for block, name in zip(np.hsplit(vectors, len(embedder.columns)), embedder.new_columns, strict=True):
        block[np.asarray(arrays[name].is_valid())] = np.asarray(arrays[name].values).reshape(-1, embedder.n_features)
    features = pd.DataFrame(vectors, part.index, pd.Index(embedder.features))
    reasons = {name: pd.array(arrays[name].to_pylist(), dtype="string") for name in embedder.new_columns.values()}
    return pd.concat([part, features], axis=1).assign(**reasons)
