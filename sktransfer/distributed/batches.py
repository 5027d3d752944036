"""A batch of rows -> the same rows with their embeddings: what the workers of every engine run."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.backbones import anchor_reference
from sktransfer.cache import open_cache
from sktransfer.exceptions import BackboneError, ImageFailure
from sktransfer.extraction import fill_output, name_features, plan_embedding, plan_extraction
from sktransfer.extractor import PretrainedFeatureExtractor
from sktransfer.options import ExtractionOptions, ExtractionPlan
from sktransfer.references import list_references
from sktransfer.views import Views

if TYPE_CHECKING:
    import pandas as pd

_EMBEDDING = ("backbone", "layer", "pooling", "preprocessing", "precision", "cache_dir")  # parameters of the embedding
_OPTIONS = ("missing_images", "broken_images", "root", "pixel_range", "batch_size", "cache_dir", "n_jobs")


@dataclass(frozen=True)
class BatchEmbedder:
    """Embeds batches. Its pickle holds parameters and digests, never weights or sessions."""

    columns: tuple[str, ...]  # of images
    parameters: dict[str, Any]  # of the extractor
    backbone: str  # resolved name
    digest: str  # of the graph that every worker must find
    n_features: int

    @property
    def new_columns(self) -> dict[str, str]:
        """Names of the columns of embeddings, and of the reasons beside each."""
        several = len(self.columns) > 1
        names = [f"{column}_{self.backbone}" if several else self.backbone for column in self.columns]
        return dict(zip(names, [f"{column}_error" for column in self.columns], strict=True))

    @property
    def features(self) -> list[str]:
        """Names of the features, for an engine that wants a column for each."""
        return name_features(self.columns, self.backbone, self.n_features, add_indicator=False)

    def refuse_taken(self, names: Collection[str], new: Collection[str] = ()) -> None:
        """Refuse rows that lack a column of images, or have one with the name of a new one."""
        for column in self.columns:
            if column not in names:
                raise ValueError(f"image_column must name a column. Got {column!r} instead of one of {list(names)}.")
        reserved = {*(new or self.new_columns), *self.new_columns.values()}
        if taken := reserved.intersection(names):
            raise ValueError(f"Columns must not have the name of a new one. Rename {min(taken)!r}.")

    @property
    def plan(self) -> ExtractionPlan:
        """What this worker computes.

        Raises
        ------
        BackboneError
            If it is not what was planned where the work was shared out.
        """
        chosen = _select(self.parameters, ("device", "views", *_EMBEDDING))
        return _plan_once(pickle.dumps((chosen, self.backbone, self.digest)))

    def embed(self, images: pd.DataFrame) -> dict[str, Any]:
        """The new columns as arrays of pyarrow.

        For each column of images: lists of float32, and texts that say what failed (null where nothing did).
        Where there is no usable image, the extractor's policy says what the list is: "nan" and "zero" as in `extract`,
        null under "error", since one broken file must not end a job of many. In a cell with several images, those that
        fail are left out of the mean. No row is dropped or moved.
        """
        n, d, n_columns = len(images), self.n_features, len(self.columns)
        output = np.zeros((n, n_columns * (d + 1)), dtype=np.float32)
        failures: list[ImageFailure] = []
        if n:
            references = list_references(images[list(self.columns)])
            failures, _ = fill_output(references, self.plan, self._options(), output)
            open_cache(self.parameters["cache_dir"]).warn(stacklevel=2)
        arrays: dict[str, Any] = {}
        for index, (column, name) in enumerate(zip(self.columns, self.new_columns, strict=True)):
            own = [failure for failure in failures if failure.column == column]
            unusable = output[:, n_columns * d + index] == 1
            vectors = output[:, index * d : (index + 1) * d]
            arrays |= {name: _list_vectors(vectors, unusable & self._refused(own, n)), **_list_reasons(own, n, column)}
        return arrays

    def append(self, table: Any) -> Any:
        """A pyarrow table or record batch with its new columns; the others are as they were."""
        self.refuse_taken(table.schema.names)
        images = table.select(list(self.columns)).to_pandas()
        for name, array in self.embed(images).items():
            table = table.append_column(name, array)
        return table

    def _options(self) -> ExtractionOptions:
        """Those under which nothing raises; the indicators tell which cells have no usable image."""
        options = ExtractionOptions(**_select(self.parameters, _OPTIONS), add_indicator=True)
        policies = ("missing_images", "broken_images")
        softened: dict[str, Any] = {name: "nan" for name in policies if getattr(options, name) == "error"}
        return replace(options, **softened)

    def _refused(self, failures: Sequence[ImageFailure], n: int) -> np.ndarray[Any, Any]:
        """Rows whose failure the extractor would raise."""
        refused = np.zeros(n, dtype=bool)
        for failure in failures:
            refused[failure.row] = self.parameters["missing_images" if failure.missing else "broken_images"] == "error"
        return refused


def plan_batches(extractor: PretrainedFeatureExtractor, image_column: str | Sequence[str]) -> BatchEmbedder:
    """What workers need to know; nothing is read but the backbone, and no device is asked for.

    Raises
    ------
    TypeError, ValueError
        If the extractor or the name of the column does not fit.
    BackboneError
        If the backbone cannot be used, or is not the one seen by the extractor's `fit`.
    """
    if not isinstance(extractor, PretrainedFeatureExtractor):
        kind = type(extractor).__name__
        raise TypeError(f"extractor must be a PretrainedFeatureExtractor. Got a {kind} instead.")
    columns = (image_column,) if isinstance(image_column, str) else tuple(image_column)
    if not columns or not all(isinstance(column, str) for column in columns):
        raise ValueError(f"image_column must be a name or a list of names. Got {image_column!r} instead.")
    parameters = extractor.get_params()
    if parameters["add_indicator"]:
        raise ValueError(f"add_indicator must be False: {columns[0]}_error says where there is no image. Got True.")
    root, cache_dir = parameters["root"], parameters["cache_dir"]
    parameters["root"] = root if root is None else os.path.abspath(root)
    parameters["cache_dir"] = cache_dir if cache_dir in ("auto", None) else os.path.abspath(cache_dir)
    backbone, graph = plan_embedding(**_select(parameters, _EMBEDDING), progress=bool(parameters["verbose"]))
    wanted = getattr(extractor, "graph_digest_", graph.digest)
    if wanted != graph.digest:
        raise _describe_other(backbone.name, graph.digest, extractor.backbone_, wanted)
    if hasattr(extractor, "graph_digest_"):
        extractor._check_views()
    Views(graph.preprocessing, parameters["views"])  # refuses those that the geometry has not
    parameters["backbone"] = anchor_reference(parameters["backbone"])
    embedder = BatchEmbedder(columns, parameters, backbone.name, graph.digest, graph.n_features)
    embedder._options()  # refuses those that do not fit
    return embedder


@functools.lru_cache(maxsize=8)
def _plan_once(pickled: bytes) -> ExtractionPlan:
    """A worker gets many tasks, and without a cache on disk a plan reads the whole network."""
    chosen, backbone, digest = pickle.loads(pickled)  # noqa: S301 - our own
    plan = plan_extraction(**chosen)
    if plan.graph.digest != digest:
        raise _describe_other(plan.backbone.name, plan.graph.digest, backbone, digest)
    return plan


def _select(parameters: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: parameters[name] for name in names}


def _describe_other(name: str, digest: str, wanted: str, wanted_digest: str) -> BackboneError:
    return BackboneError(
        f"The embedding must be the planned one, {wanted} (graph {wanted_digest[:12]}). Got {name} (graph "
        f"{digest[:12]}) instead: the backbone's file, or the version of sktransfer, is another one here."
    )


def _list_vectors(vectors: np.ndarray[Any, Any], null: np.ndarray[Any, Any]) -> Any:
    import pyarrow as pa

    # Not fixed-size lists: Spark knows none, and pyarrow 18 writes none with a null to Parquet.
    offsets = np.concatenate([[0], np.cumsum(np.where(null, 0, vectors.shape[1]))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(vectors[~null].ravel()), mask=pa.array(null)
    )


def _list_reasons(failures: Sequence[ImageFailure], n: int, column: str) -> dict[str, Any]:
    import pyarrow as pa

    reasons: list[str | None] = [None] * n
    for failure in failures:
        earlier = reasons[failure.row]
        reasons[failure.row] = failure.reason if earlier is None else f"{earlier}; {failure.reason}"
    return {f"{column}_error": pa.array(reasons, pa.string())}
