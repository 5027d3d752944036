"""Ray Data: one actor, one session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sktransfer._optional import import_optional
from sktransfer.distributed.batches import BatchEmbedder, plan_batches

if TYPE_CHECKING:
    from sktransfer.extractor import PretrainedFeatureExtractor


def extract_dataset(
    dataset: Any,
    image_column: str | Sequence[str],
    extractor: PretrainedFeatureExtractor,
    *,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Any:
    """Append embeddings to a dataset of Ray, lazily: blocks stream through actors with a session each.

    Parameters
    ----------
    dataset : ray.data.Dataset
    image_column : str or list of str
        Columns of references, bytes or pixels.
    extractor : PretrainedFeatureExtractor
        Fitted or not; as for `extract_dataframe`.
    concurrency : int, (int, int) or None
        Actors, or the least and the most of them; None is as many as there is work and room for. Leave a CPU for what
        comes before: Ray waits for ever if actors hold them all.
    num_cpus : float or None
        Of an actor, which then has as many threads; None is 1.
    num_gpus : float or None
        Of an actor, for an extractor with ``device="cuda"``: without it Ray shows an actor no GPU.
    batch_size : int
        Rows that an actor gets at a time, and all that the death of one repeats.
    **options
        Passed to ``Dataset.map_batches``.

    Returns
    -------
    ray.data.Dataset
        With the columns that `extract_dataframe` adds. Ray keeps the order of rows if
        ``ExecutionOptions.preserve_order`` is set; else carry an id along.

    Raises
    ------
    MissingExtraError, BackboneError
        As `extract_dataframe`.
    """
    data = import_optional("ray.data", "ray")
    embedder = plan_batches(extractor, image_column)
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(embedder,),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **options,
    )


class _Actor:
    def __init__(self, embedder: BatchEmbedder) -> None:
        self.embedder = embedder

    def __call__(self, table: Any) -> Any:
        return self.embedder.append(table)
