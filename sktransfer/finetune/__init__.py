"""Fine-tuning: the last part of a backbone is trained on labelled images, and stays an ONNX backbone."""

from __future__ import annotations

import os
from typing import Any

from sktransfer.backbones import Backbone
from sktransfer.cache import CacheDir
from sktransfer.finetune.recipe import Recipe
from sktransfer.finetune.tuning import tune
from sktransfer.options import ExtractionOptions
from sktransfer.preprocessing import Preprocessing

__all__ = ["finetune_backbone"]


def finetune_backbone(
    backbone: str | os.PathLike[str] | Backbone,
    images: Any,
    y: Any,
    *,
    groups: Any = None,
    trainable: str = "last_third",
    source_weight: float = 1.0,
    C: float = 0.1,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    augment: str | None = "flip+crop",
    n_views: int = 4,
    validation_fraction: float = 0.1,
    early_stopping: bool = False,
    fresh_weights: bool = False,
    adapt_batch_norm: bool = False,
    random_state: int = 0,
    device: Any = "auto",
    preprocessing: str | Preprocessing | None = None,
    root: str | os.PathLike[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
    output: str | os.PathLike[str] | None = None,
    cache_dir: CacheDir = "auto",
    n_jobs: int | None = None,
    verbose: bool | int = False,
) -> Backbone:
    """Train the last part of a backbone on labelled images; the same ONNX graph with new weights.

    The part before it is run once for each image and each random crop of it, and kept in the cache; all epochs run on
    what came out. A linear classifier (a regression where `y` holds floats) is trained on top and then left out. What
    is least is the sum over the images of the loss, plus ``½ / C ‖head‖² + ½ source_weight ‖w − w₀‖²``, where w are
    the trained weights and w₀ those that the backbone came with.

    Parameters
    ----------
    backbone : str, Path or Backbone
        As for :func:`load_backbone`; a float network.
    images : sequence, Series, frame or array of n images
        As for :class:`PretrainedFeatureExtractor`, in one column. Empty cells are passed over; several images in a
        cell are learnt from one by one.
    y : array-like of shape (n,)
        Labels; floats are the values of a regression.
    groups : array-like of shape (n,), optional
        Images of one group (photos by one person) are held out together.
    trainable : "last_third", "last_stage", "all" or str
        What is trained: the last stages with at least a third of the convolutions, the last one, the whole network, or
        what stands behind a tensor ("stage2", or a name that ``sktransfer models layers`` lists).
    source_weight : float >= 0
        How hard weights are pulled to those they had; infinity leaves them there. It counts against the summed loss:
        twice the images halve its effect.
    C : float > 0
        Inverse strength of the head's own penalty, as in LogisticRegression.
    epochs : int
        Times that each image is seen, each time in one of its views. The learning rate rises over the first tenth and
        then falls to zero.
    learning_rate : float > 0
        Of Adam, the largest.
    batch_size : int
        Images a step.
    augment : "flip+crop" or None
        Random crops of at least a quarter of the area, half of them mirrored; or the images as they are used.
    n_views : int
        Crops of each image, drawn once.
    validation_fraction : float from 0 to 0.5
        Share of the images, or of the groups, that is held out to judge by.
    early_stopping : bool
        Keep the weights of the epoch with the least loss on the images held out, instead of the last ones: rarely
        better, since the learning rate falls to zero, and noisy where few images are held out.
    fresh_weights : bool
        Begin from random weights (structure transfer); nothing is pulled then, and batch normalisations adapt.
    adapt_batch_norm : bool
        Normalise by the batches' statistics while training, and keep their moving averages. Otherwise statistics stay
        as they are.
    random_state : int
        Seed of crops, of the split, of the order of the images and of fresh weights.
    device : "auto", "cpu", "cuda", "cuda:1"
        As for :class:`PretrainedFeatureExtractor`, for onnxruntime and torch.
    preprocessing : str, Preprocessing or None
        As for :class:`PretrainedFeatureExtractor`; it is written into the file.
    root : str, Path or None
        Folder that relative paths start from.
    image_shape : (h, w), (h, w, 3) or None
        Shape of the images that rows of a 2-D numeric `images` are.
    output : str, Path or None
        The ``.onnx`` file to write; None keeps it in the folder of fetched backbones.
    cache_dir : "auto", path or None
        Where what the frozen part yields is kept.
    n_jobs : int or None
        Threads; None is every core this process may use.
    verbose : bool, default=False
        Show progress bars.

    Returns
    -------
    Backbone
        With a digest of its own. Operators and names are those of the original, so its layers, too. A classifier
        behind the embedding is the original's, and was not trained.

    Raises
    ------
    BackboneError
        If the part has operators that cannot be trained here; they are named. If `trainable` fits no tensor.
    ImageReadError
        If an image cannot be read.
    MissingExtraError
        If torch is not installed.
    ValueError
        If a parameter or the labels are not what is listed above.

    Notes
    -----
    The file's metadata state the recipe, and the accuracy (R²) of a linear model on the embeddings of the images held
    out, before and after; ``sktransfer models show`` prints it. Early stopping makes the latter a little too good. The
    same images and seed give the same file with ``n_jobs=1`` on one machine.

    Fine-tune on training data alone: embeddings of images that it has seen tell their labels too well.

    Examples
    --------
    >>> from sktransfer import finetune_backbone
    >>> tuned = finetune_backbone("resnet50", photos, labels)  # doctest: +SKIP
    >>> extractor = PretrainedFeatureExtractor(tuned)  # doctest: +SKIP
    """
    recipe = Recipe(
        trainable=trainable, source_weight=source_weight, C=C, epochs=epochs, learning_rate=learning_rate,
        batch_size=batch_size, augment=augment, n_views=n_views, validation_fraction=validation_fraction,
        early_stopping=early_stopping, random_state=random_state, fresh_weights=fresh_weights,
        adapt_batch_norm=adapt_batch_norm,
    )  # fmt: skip
    options = ExtractionOptions(root=root, cache_dir=cache_dir, n_jobs=n_jobs, verbose=verbose)
    return tune(
        backbone, images, y, groups, recipe, options,
        device=device, preprocessing=preprocessing, image_shape=image_shape, output=output,
    ).backbone  # fmt: skip
