"""Spark: one Python worker, one session."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sktransfer._optional import import_optional
from sktransfer.distributed.batches import BatchEmbedder, plan_batches

if TYPE_CHECKING:
    from sktransfer.extractor import PretrainedFeatureExtractor


def extract_spark(frame: Any, image_column: str | Sequence[str], extractor: PretrainedFeatureExtractor) -> Any:
    """Append arrays of float32 and reasons to a frame of Spark, lazily: see `extract_dataframe`.

    By mapInArrow and not by mapInPandas, in whose frames a column of whole numbers with a hole becomes one of floats,
    which rounds those above 2**53.
    """
    types = import_optional("pyspark.sql.types", "spark")
    import_optional("pyarrow", "spark")
    embedder = plan_batches(extractor, image_column)
    embedder.refuse_taken(frame.columns)
    fields = list(frame.schema.fields)
    for vectors, reasons in embedder.new_columns.items():
        fields.append(types.StructField(vectors, types.ArrayType(types.FloatType())))
        fields.append(types.StructField(reasons, types.StringType()))
    return frame.mapInArrow(functools.partial(_append, embedder), types.StructType(fields))


def _append(embedder: BatchEmbedder, batches: Iterator[Any]) -> Iterator[Any]:
    return map(embedder.append, batches)
