"""A block of a few columns for a column of images among columns of numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from sktransfer.backbones import Backbone
from sktransfer.extractor import PretrainedFeatureExtractor

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline


def make_image_block(
    backbone: str | os.PathLike[str] | Backbone = "default",
    n_components: float | None = 32,
    *,
    root: str | os.PathLike[str] | None = None,
    **parameters: Any,
) -> Pipeline:
    """Principal components of the embeddings of one column of images, and a flag for rows without one.

    The block for a ``ColumnTransformer`` over a table with photos. Empty cells and unreadable files become NaN,
    the mean, and then components near zero; the flag goes past imputer and PCA as it is. (``SimpleImputer`` with
    ``add_indicator=True`` would make a flag of every feature: 4,096 columns of 2,048.)

    Parameters
    ----------
    backbone : str, Path or Backbone, default="default"
        As for :class:`PretrainedFeatureExtractor`.
    n_components : int, float or None, default=32
        As for scikit-learn's ``PCA``: at most the number of rows in `fit`.
    root : str, Path or None, default=None
        Folder that relative paths start from.
    **parameters
        Further parameters of :class:`PretrainedFeatureExtractor`, for example ``layer``, ``views`` or
        ``broken_images="error"``.

    Returns
    -------
    Pipeline
        Steps "extractor" and "reduce", plain scikit-learn: ``block.set_params(reduce__components__pca__whiten=True)``.
        Its output has n_components + 1 columns, the last of them "<column>_missing". Of a frame with several columns
        of images, the components are common to all, with one flag for each; use a block a column for components of
        their own.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.datasets import load_sample_images
    >>> china, flower = load_sample_images().images
    >>> table = pd.DataFrame({"price": [3.0, 2.0, 1.0], "photo": [china, None, flower]})
    >>> block = make_image_block(n_components=2)
    >>> make_column_transformer((block, "photo"), ("passthrough", ["price"])).fit_transform(table).shape
    (3, 4)
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline

    if "add_indicator" in parameters:
        raise TypeError("add_indicator must not be given: the block always has one flag for each column of images.")
    extractor = _NamingExtractor(
        backbone,
        **{"missing_images": "nan", "broken_images": "nan", **parameters},
        root=root,
        add_indicator=True,
    )
    components = Pipeline(
        [
            ("imputer", SimpleImputer(keep_empty_features=True)),
            ("pca", PCA(n_components, random_state=0)),
        ]
    )
    reduce = ColumnTransformer(
        [("components", components, _select_embeddings), ("missing", "passthrough", _select_flags)],
        verbose_feature_names_out=False,
    )
    return Pipeline([("extractor", extractor.set_output()), ("reduce", reduce)])


class _NamingExtractor(PretrainedFeatureExtractor):
    """An extractor whose output is a frame of pandas, whatever the pipeline around it is asked for.

    Only by names can flags of several columns be told from features.
    """

    def set_output(self, *, transform: Any = None) -> Self:  # noqa: ARG002
        super().set_output(transform="pandas")
        return self


def _select_embeddings(X: pd.DataFrame) -> list[str]:
    return [name for name in X.columns if not name.endswith("_missing")]


def _select_flags(X: pd.DataFrame) -> list[str]:
    return [name for name in X.columns if name.endswith("_missing")]
