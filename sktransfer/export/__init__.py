"""A fitted pipeline -> one ONNX file, which needs onnxruntime and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktransfer._optional import import_optional
from sktransfer.exported import ExportedModel
from sktransfer.outputs import replacing

__all__ = ["ExportReport", "export_onnx"]

TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` wrote.

    Attributes
    ----------
    path : Path
        The file.
    max_difference : float or None
        The largest difference between its probabilities and the pipeline's on the rows of `check`; of values, scores
        and features relative to the larger of 1 and the pipeline's. None without a check.
    label_agreement : float or None
        Share of rows with the same label, which is 1; None without labels or a check.
    """

    path: Path
    max_difference: float | None = None
    label_agreement: float | None = None


def export_onnx(
    pipeline: Any,
    path: str | os.PathLike[str],
    check: Any = None,
    *,
    include_resize: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Write a fitted pipeline of photos to one ONNX file, which needs onnxruntime and nothing of Python's.

    Parameters
    ----------
    pipeline : estimator
        Fitted, with a :class:`PretrainedFeatureExtractor` in it: a ``Pipeline`` that ends in a classifier, a regressor
        or a transformer, if you like with a ``ColumnTransformer`` of images and other columns at its beginning, or in a
        search, ``FrozenEstimator``, ``TransformedTargetRegressor``, ``CalibratedClassifierCV``, ….
        With ``views="flip"`` the file mirrors the photo itself; "five_crop" is refused.
    path : str or Path
        The ``.onnx`` file.
    check : sequence, frame or array of n rows, or None
        What the pipeline takes. The file is run on it, and kept only if it gives the same labels, and probabilities
        (or values) within `tolerance`. Estimators that sktransfer's tests do not compare need it.
    include_resize : bool, default=False
        Whether resize and crop are in the file, too: its photos are then uint8 of any size, upright and RGB, all of
        one size in one call. Pixels differ from Pillow's by one level here and there (docs/export.md); `check` measures
        what that does to the predictions, and needs a larger tolerance, such as 0.01.
    tolerance : float, default=1e-5
        Largest difference that `check` allows.

    Returns
    -------
    ExportReport

    Raises
    ------
    ValueError
        If something in the pipeline cannot be exported exactly, or the file disagrees with it; nothing is left behind.
    BackboneError
        If the backbone is not the one seen by `fit`.
    MissingExtraError
        If skl2onnx is not installed.

    Notes
    -----
    Inputs are ``image``, uint8 (n, h, w, 3) as :meth:`Preprocessing.resize_and_crop` gives it, or one for each
    column of images, under its name; the other columns under theirs, (n, 1) of float64, int64 or strings; and where
    the extractor allows missing photos, ``has_image``, bool (n,) (``has_image_<column>`` of several). Outputs are
    ``label`` (n,), int64 or strings, and ``probabilities`` float32 (n, n_classes), or ``scores`` where there are no
    probabilities; or ``value``; or ``features``. The metadata entry "sktransfer" is JSON with inputs,
    preprocessing, classes, backbones (SHA-256, licence) and versions. Heads compute in float64, and in float32
    where scikit-learn or onnxruntime do.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sktransfer import PretrainedFeatureExtractor, export_onnx
    >>> photos = load_sample_images().images
    >>> pipeline = make_pipeline(PretrainedFeatureExtractor(), LogisticRegression())
    >>> export_onnx(pipeline.fit(photos, ["temple", "flower"]), "flowers.onnx", check=photos)  # doctest: +SKIP
    ExportReport(path=PosixPath('flowers.onnx'), max_difference=0.0, label_agreement=1.0)
    """
    target = Path(path)
    if target.suffix != ".onnx" or not target.parent.is_dir():
        raise ValueError(f"path must be an .onnx file in an existing folder. Got {str(target)!r} instead.")
    import_optional("skl2onnx", "export")
    from sktransfer.export.drafts import Draft  # brings much of scikit-learn

    draft = Draft(pipeline, checked=check is not None, include_resize=include_resize)
    model = draft.build()
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
        try:
            file = ExportedModel(temporary)
        except ValueError as error:
            raise ValueError(f"The pipeline cannot be exported: {error.__cause__}") from error
        report = ExportReport(target)
        if check is not None:
            found = draft.compare(file, check)
            if found.agreement not in (None, 1.0) or not found.difference <= tolerance:
                labels = "" if found.agreement is None else f", and {found.agreement:.4g} of the labels are the same"
                raise ValueError(
                    f"The file must agree with the pipeline within tolerance={tolerance:g}. The largest difference is "
                    f"{found.difference:.3g} (row {found.row}){labels}; nothing was written."
                )
            report = ExportReport(target, found.difference, found.agreement)
    return report
