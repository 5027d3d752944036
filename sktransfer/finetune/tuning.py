"""From a backbone, images and labels to a tuned file: everything around the epochs."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer._optional import import_optional
from sktransfer.backbones import Backbone, find_backbone, load_backbone, resolve_preprocessing
from sktransfer.cache import open_cache
from sktransfer.derived import check_output, describe_origin, install
from sktransfer.devices import CPU, Device, resolve_device
from sktransfer.exceptions import BackboneError, DeviceError
from sktransfer.extraction import plan_extraction, read_references
from sktransfer.finetune.card import CARD_KEY, FinetuningCard, write_card
from sktransfer.finetune.part import TrainedPart
from sktransfer.finetune.recipe import Recipe
from sktransfer.finetune.rows import Prefix, Rows, compute_rows
from sktransfer.finetune.task import Task, fit_head, read_task
from sktransfer.finetune.training import Epoch, Trainer, embed
from sktransfer.finetune.weights import replace_weights
from sktransfer.layers import CONVOLUTIONS, LINEAR, Cut, find_cut_points, find_stages, resolve_layer
from sktransfer.network import METADATA_PREFIX, Network, load_model
from sktransfer.options import ExtractionOptions, count_threads
from sktransfer.preprocessing import Preprocessing
from sktransfer.references import Images, References, list_images
from sktransfer.session import EmbeddingSession

if TYPE_CHECKING:
    import onnx

EXTRA = "torch"
TOLERANCE = 1e-3  # relative distance between the embeddings of torch and of onnxruntime
_CHECKED = 4  # images that it is measured on


@dataclass(frozen=True)
class Tuned:
    """A tuned backbone, and what its file states of it."""

    backbone: Backbone
    card: FinetuningCard


@dataclass(frozen=True)
class Job:
    """All that was asked for, checked."""

    original: Backbone  # with its preprocessing
    recipe: Recipe
    task: Task
    references: References
    images: Images
    prefix: Prefix
    part: TrainedPart
    options: ExtractionOptions


def tune(
    backbone: str | os.PathLike[str] | Backbone, images: Any, y: Any, groups: Any, recipe: Recipe,
    options: ExtractionOptions, *, device: Any, preprocessing: str | Preprocessing | None,
    image_shape: tuple[int, ...] | None, output: str | os.PathLike[str] | None,
) -> Tuned:  # fmt: skip
    """What `finetune_backbone` does, with the card."""
    import_optional("torch", EXTRA)
    target = None if output is None else check_output(Path(output))
    cache = open_cache(options.cache_dir)
    loaded = find_backbone(backbone, cache, progress=bool(options.verbose))
    original = replace(loaded, preprocessing=resolve_preprocessing(loaded, preprocessing, cache))
    job = _plan(original, read_references(images, image_shape), y, groups, recipe, options, device)
    rows = compute_rows(
        job.prefix, job.references, job.images, range(len(job.images.places)), recipe.n_crops, recipe.random_state,
        options,
    )  # fmt: skip
    with _limit_threads(count_threads(options.n_jobs)):
        model, card = _learn(job, rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{original.name}-tuned.onnx"
        _write(model, path, job, card)
        _compare(Backbone(path.stem, path, preprocessing=original.preprocessing, layer=original.layer), job, rows)
        return Tuned(load_backbone(install(path, target, "finetuned")), card)


def _plan(
    original: Backbone, references: References, y: Any, groups: Any, recipe: Recipe, options: ExtractionOptions,
    device: Any,
) -> Job:  # fmt: skip
    if len(references.columns) != 1:
        raise ValueError(f"images must have one column. Got {len(references.columns)} instead.")
    listed = list_images(references)
    owners = np.array([listed.cell(index)[1] for index in range(len(listed.places))], dtype=np.int64)
    task = read_task(y, groups, owners, references.n_rows, recipe.validation_fraction, recipe.random_state)
    assert original.preprocessing is not None
    network = Network(load_model(original.path), original.path, original.preprocessing)
    if network.is_quantized:
        raise BackboneError(f"{original.path} must be a float network to be tuned. Got a quantised one instead.")
    cut = resolve_layer(network, original.layer, None)
    part = TrainedPart(
        network, find_source(network, recipe.trainable, cut), cut, _find_torch_device(resolve_device(device))
    )
    if recipe.adapt_batch_norm and not part.statistics:
        raise BackboneError(
            f"adapt_batch_norm=True needs batch normalisations, and {original.path} has none behind {part.source!r}."
        )
    prefix = Prefix(original, network, part.source, part.input_shape, device, options.cache_dir)
    return Job(original, recipe, task, references, listed, prefix, part, options)


def find_source(network: Network, trainable: str, cut: Cut) -> str:
    """The tensor behind which a network is trained.

    Raises
    ------
    BackboneError
        If there is none that `trainable` means, or some way from the image to the embedding passes it by.
    """
    if trainable == "all":
        return network.image_input.name
    points = find_cut_points(network, cut.tensor)[:-1]
    if trainable in ("last_third", "last_stage"):
        least = count_layers(network.ancestors([cut.tensor])) / 3 if trainable == "last_third" else 1
        for stage in reversed(find_stages(network)):
            if stage in points and count_layers(network.between(stage, [cut.tensor])) >= least:
                return stage
        raise BackboneError(
            f'{network.path} has no stage that {trainable!r} could begin at; use trainable="all", or name a tensor.'
        )
    tensor = resolve_layer(network, trainable, None).tensor if trainable not in points else trainable
    if tensor not in points:
        near = ", ".join(map(repr, points[-4:]))
        raise BackboneError(
            f'trainable must be "last_third", "last_stage", "all", or a stage or tensor of {network.path} that all '
            f"ways to the embedding go through. Got {trainable!r} instead; the last such tensors are {near}."
        )
    return tensor


def count_layers(nodes: Sequence[onnx.NodeProto]) -> int:
    """Convolutions and linear layers."""
    return sum(node.op_type in CONVOLUTIONS | LINEAR for node in nodes)


def _find_torch_device(device: Device) -> str:
    """What torch calls the device."""
    import torch

    if device.gpu is None:
        return "cpu"
    if not torch.cuda.is_available():
        raise DeviceError(f'{device.name} cannot train: this torch has no CUDA. Install one that has, or use "cpu".')
    return f"cuda:{device.gpu}"


@contextlib.contextmanager
def _limit_threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _learn(job: Job, rows: Rows) -> tuple[onnx.ModelProto, FinetuningCard]:
    """Train; the model with its new weights, and what is to be said of it."""
    recipe, part, task = job.recipe, job.part, job.task
    before = embed(part, rows, recipe.batch_size)
    _check_same(before[:_CHECKED], _extract(job.original, job, rows), job.original.path)
    first = score_before = _score(before, task, recipe)
    if recipe.fresh_weights:
        part.renew(recipe.random_state)
        recipe = replace(recipe, adapt_batch_norm=bool(part.statistics))
        first = _score(embed(part, rows, recipe.batch_size), task, recipe)
    trainer = Trainer(part, rows, task, recipe, first[0])
    with _follow(recipe.epochs, task.metric, bool(job.options.verbose)) as follow:
        history = trainer.train(follow)
    weights = part.copy_weights()
    part.round()
    after = _score(embed(part, rows, recipe.batch_size), task, recipe)[1]
    model = type(job.prefix.network.model)()
    model.CopyFrom(job.prefix.network.model)
    replace_weights(model, weights)
    numbers = [[_shorten(value) for value in asdict(epoch).values()] for epoch in history]
    card = FinetuningCard(
        job.original.name, job.original.digest, part.source, len(task.learnt), len(task.held_out), task.n_classes,
        task.metric, _shorten(score_before[1]), _shorten(after), _describe_recipe(job.recipe), numbers,
    )  # fmt: skip
    return model, card


def _score(X: np.ndarray[Any, Any], task: Task, recipe: Recipe) -> tuple[Any, float]:
    """A linear model of embeddings, and its score on the rows held out."""
    head = fit_head(X, task, recipe.C)
    return head, task.score(head.predict(X[task.held_out]), task.held_out) if len(task.held_out) else math.nan


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    return {name: "inf" if value == math.inf else value for name, value in asdict(recipe).items()}


def _shorten(value: float) -> float | None:
    """Six digits; None for what JSON does not know."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@contextlib.contextmanager
def _follow(n_epochs: int, metric: str, verbose: bool) -> Iterator[Callable[[Epoch], object]]:
    if not verbose:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=n_epochs, desc="tuning", unit="epoch") as bar:

        def follow(epoch: Epoch) -> None:
            numbers = {"loss": epoch.loss, "held out": epoch.held_out_loss, metric: epoch.held_out_score}
            bar.set_postfix({name: f"{value:.3f}" for name, value in numbers.items() if math.isfinite(value)})
            bar.update()

        yield follow


# The file


def _write(model: onnx.ModelProto, path: Path, job: Job, card: FinetuningCard) -> None:
    import onnx

    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA_PREFIX)}
    del model.metadata_props[:]
    entries = describe_origin(job.original, "fine-tuned weights") | {CARD_KEY: write_card(card)}
    onnx.helper.set_model_props(model, kept | entries)
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf and onnx raise what they like
        raise BackboneError(f"The tuned {job.original.name} could not be written: {error}") from error


def _compare(tuned: Backbone, job: Job, rows: Rows) -> None:
    """Refuse a file in which onnxruntime computes something else than torch."""
    ours = embed(job.part, replace(rows, values=rows.values[:1, :_CHECKED]), _CHECKED)
    _check_same(ours, _extract(tuned, job, rows), tuned.path)


def _extract(backbone: Backbone, job: Job, rows: Rows) -> np.ndarray[Any, Any]:
    """Embeddings of the first images by onnxruntime, without the cache."""
    from sktransfer.finetune.views import make_pixels

    n, p = min(_CHECKED, rows.values.shape[1]), job.prefix.preprocessing
    pixels = make_pixels(job.references, job.images, range(n), 1, lambda image, _: p.resize_and_crop(image), p.crop,
                         job.options.root, 1)  # fmt: skip
    session = EmbeddingSession(plan_extraction(backbone, preprocessing=p, device="cpu", cache_dir=None).graph, CPU)
    return np.concatenate([session.run(row[None]) for row in pixels[0]])


def _check_same(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], path: Path) -> None:
    distance = float(np.linalg.norm(ours - theirs)) / max(float(np.linalg.norm(theirs)), 1e-30)
    if not distance <= TOLERANCE:  # not "greater": NaN fails too
        raise BackboneError(
            f"torch and onnxruntime disagree on the embeddings of {path}: they are {distance:.1e} apart."
        )
