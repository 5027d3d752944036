"""PretrainedFeatureExtractor: the scikit-learn skin on extraction."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from sktransfer.backbones import pin_reference
from sktransfer.exceptions import BackboneError
from sktransfer.extraction import extract_references, name_features, plan_extraction
from sktransfer.options import ExtractionOptions
from sktransfer.references import describe_flat_images, is_numeric_table, list_references, reshape_flat_images


class PretrainedFeatureExtractor(TransformerMixin, BaseEstimator):
    """Embed images with a pretrained convolutional network.

    Each image is decoded, resized and cropped as the network expects, and sent through the network up to `layer`; the
    activations there are its features. Nothing is trained: `fit` resolves names and checks parameters, and an
    embedding depends on the image and the network alone. An image is sent through the network once, however often
    cross-validation, worker processes or later runs ask for it.

    Parameters
    ----------
    backbone : str, Path or Backbone, default="default"
        A registered name ("resnet50", "vgg16"; see :func:`~sktransfer.list_backbones`), the path of an ``.onnx`` file
        or of the folder of a ``model.onnx``, ``"hf:owner/repo[/file.onnx][@revision]"``, a URL, or a
        :class:`~sktransfer.Backbone`. What is not on this machine is fetched by `fit`, once, and its SHA-256 checked.
    layer : str, list of str or None, default=None
        Where the network is cut: a tensor of its graph, "penultimate" (the input of the classifier, found from the
        graph), "last_map" (the last map with more than one pixel), "stage1", "stage2", … (the last map of each size) or
        "logits". Several are computed in one pass and concatenated. None is the backbone's own default, else
        "penultimate". ``sktransfer models layers`` lists them with their shapes and costs.
    pooling : {"avg", "max", "gem", "flatten"} or None, default=None
        How the last spatial map at or before `layer` becomes a vector; an error where there is none. "gem" is the
        generalised mean with p = 3. Of a transformer's tokens, those of the patches are pooled. None is the network's
        own way: a map named by `layer` is averaged, and of tokens the class token is taken, or their mean.
    preprocessing : {"imagenet", "tf", "caffe"}, Preprocessing or None, default=None
        None is the backbone's own. Needed where the file does not bring one.
    views : {"center", "flip", "five_crop"}, default="center"
        What the network sees of an image, one by one; the features are the mean of the embeddings. "center" is the
        centre crop; "flip" is the centre crop and its mirror image, at twice the cost; "five_crop" is the centre and
        the four corners of the resized image, at up to five times the cost. Views with the same pixels cost one pass,
        so that corners cost nothing along a side where the resize leaves no room, and five crops that are the same for
        every image are an error. Each view is kept in the cache, and an image is decoded once for all of them.
    device : str or list, default="auto"
        "auto" (CUDA where it works, else the CPU), "cpu", "cuda", "cuda:1", "tensorrt", or a list as for onnxruntime's
        ``providers=``. The environment variable ``SKTRANSFER_DEVICE`` overrides it. One process at a time computes on a
        GPU, others wait for it; ``SKTRANSFER_GPU_PROCESSES`` allows more.
    precision : {"float32", "float16"}, default="float32"
        float16 needs a GPU.
    batch_size : int or "auto", default="auto"
        Images a run. "auto" is 1 on the CPU, where threads run side by side; on a GPU 16 to 256, as many as hold 256 G
        multiply-accumulates (64 for ResNet-50), and half as many, again and again, where its memory does not suffice.
    missing_images : {"error", "nan", "zero"}, default="error"
        What an empty cell (None, NaN, an empty string) becomes: an error before the work, or a row of NaN or zeros.
    broken_images : {"error", "nan", "zero"}, default="error"
        What an unreadable reference becomes: an error after all other images are embedded, or a row of NaN or zeros
        and an ImageReadWarning. If more than half of several images are unreadable it is always an error. In a list,
        it is left out of the mean.
    add_indicator : bool, default=False
        Append one 0/1 column ``<column>_missing`` for each column of images: 1 where there is no usable image.
    root : str, Path or None, default=None
        Folder that relative paths start from; None is the working directory.
    image_shape : (h, w), (h, w, c) or None, default=None
        Shape of the images in a 2-D numeric X whose rows are flattened images. Without it such an X is refused.
    pixel_range : (low, high) or None, default=None
        Scale of pixels in arrays: mapped linearly to 0..255 and clipped. None takes integers as 0..255 and floats as
        0..1, and refuses values outside.
    cache_dir : "auto", str, Path or None, default="auto"
        Folder in which embeddings are kept, for all processes and later runs, in a file of 5 GB at most
        (``SKTRANSFER_CACHE_SIZE``). "auto" is ``SKTRANSFER_CACHE_DIR`` or the user's cache folder. None remembers
        nothing between calls. A folder that cannot be used costs speed and one CacheWarning, never a result.
    n_jobs : int or None, default=None
        Threads, never processes. None is every core this process may use; negative values count from the end.
    verbose : bool, default=False
        Show a progress bar, with the images found in the cache and the forward passes. Workers of a search show none;
        what they did is shown beside the bar of the final fit.

    Attributes
    ----------
    backbone_ : str
        Resolved name of the backbone.
    graph_digest_ : str
        SHA-256 of everything an embedding depends on but the image. `transform` refuses another graph.
    device_ : str
        What runs: "cpu", "cuda:0" or the first provider.
    n_features_in_ : int
        Columns of X seen by `fit`.
    feature_names_in_ : ndarray of str
        Their names, where X was a frame with string names.

    See Also
    --------
    extract : The same as a function.
    make_image_block : Principal components and a flag, for a ``ColumnTransformer``.
    check_images : What is wrong with images, before a long run.
    duplicate_groups : Which rows show the same photo.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from sktransfer import PretrainedFeatureExtractor
    >>> photos = load_sample_images().images
    >>> PretrainedFeatureExtractor().fit_transform(photos).shape
    (2, 256)
    """

    views = _views = "center"  # of extractors that were pickled when there were no others

    def __init__(
        self,
        backbone="default",
        *,
        layer=None,
        pooling=None,
        preprocessing=None,
        views="center",
        device="auto",
        precision="float32",
        batch_size="auto",
        missing_images="error",
        broken_images="error",
        add_indicator=False,
        root=None,
        image_shape=None,
        pixel_range=None,
        cache_dir="auto",
        n_jobs=None,
        verbose=False,
    ):
        self.backbone = backbone
        self.layer = layer
        self.pooling = pooling
        self.preprocessing = preprocessing
        self.views = views
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.missing_images = missing_images
        self.broken_images = broken_images
        self.add_indicator = add_indicator
        self.root = root
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.cache_dir = cache_dir
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X, y=None):  # noqa: ARG002
        """Check the parameters and X, and resolve the backbone. No image is read.

        Parameters
        ----------
        X : sequence, Series, frame or array of images
            Paths, URLs, ``archive.zip::member``, bytes, PIL images, arrays (h, w), (h, w, 3), (h, w, 4), binary files,
            base64 or ``data:`` URLs, or dicts ``{"bytes": ..., "path": ...}``; None, NaN or "" where there is none; a
            list in a cell is several images of one row, whose embeddings are averaged. A frame of pandas or polars
            has a column, or several, of these. Or one array of shape (n, h, w[, c]); or flattened images
            (n, h * w * c) with `image_shape`.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter or the form of X does not fit.
        BackboneError, DeviceError
            If the backbone or the device cannot be used.
        """
        self._make_options()
        references = self._list_references(X, reset=True)
        self._pinned = (self.backbone, pin_reference(self.backbone))
        plan = self._plan()
        self.backbone_ = plan.backbone.name
        self.graph_digest_ = plan.graph.digest
        self.device_ = plan.device.name
        self._n_embedding = plan.graph.n_features
        self._views = self.views
        self._columns = references.names or self._default_names(len(references.columns))
        return self

    def transform(self, X):
        """Embed the images of X.

        Parameters
        ----------
        X : as for `fit`

        Returns
        -------
        ndarray of shape (n, columns * d), float32
            d features for each column of images, then the indicators if `add_indicator` is true.

        Raises
        ------
        ImageReadError
            If cells are empty or unreadable and the policy is "error", or more than half are unreadable.
        BackboneError
            If the file behind `backbone` is not the one seen by `fit`, or `views` were others.
        """
        check_is_fitted(self)
        options = self._make_options()
        references = self._list_references(X, reset=False)
        return extract_references(references, self._fitted_plan(), options, stacklevel=4)[0]

    def _fitted_plan(self):
        """The plan of `fit`; refuses another graph behind the same parameters."""
        plan = self._plan()
        if plan.graph.digest != self.graph_digest_:
            raise BackboneError(
                f"The embedding must be the one seen by fit, {self.backbone_} (graph {self.graph_digest_[:12]}). "
                f"Got {plan.backbone.name} (graph {plan.graph.digest[:12]}) instead: the file, layer, pooling, "
                "preprocessing or precision changed; bring the former back or fit again."
            )
        self._check_views()
        return plan

    def _check_views(self) -> None:
        if self.views != self._views:
            raise BackboneError(
                f"views must be those seen by fit, {self._views!r}. Got {self.views!r} instead; bring the former back "
                "or fit again."
            )

    def get_feature_names_out(self, input_features=None):
        """Names of the features: ``<backbone>_<i>``, or ``<column>_<backbone>_<i>`` for several columns of images.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the columns of X, for several columns without names.

        Returns
        -------
        ndarray of str objects
        """
        check_is_fitted(self)
        columns = self._columns
        if input_features is not None:
            names = tuple(map(str, input_features))
            known = getattr(self, "feature_names_in_", None)
            if known is not None and names != tuple(known):
                raise ValueError("input_features is not equal to feature_names_in_")
            if len(names) != self.n_features_in_:
                raise ValueError(
                    f"input_features should have length equal to number of features ({self.n_features_in_}), "
                    f"got {len(names)}"
                )
            if len(columns) > 1:
                columns = names
        names_out = name_features(columns, self.backbone_, self._n_embedding, self.add_indicator)
        return np.asarray(names_out, dtype=object)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.input_tags.allow_nan = self.missing_images != "error"
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _make_options(self):
        return ExtractionOptions(
            missing_images=self.missing_images,
            broken_images=self.broken_images,
            add_indicator=self.add_indicator,
            root=self.root,
            pixel_range=self.pixel_range,
            batch_size=self.batch_size,
            cache_dir=self.cache_dir,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )

    def _plan(self):
        # An alias keeps the meaning it had in fit.
        given, pinned = self._pinned
        reference = pinned if self.backbone is given or self.backbone == given else self.backbone
        return plan_extraction(
            reference,
            self.layer,
            self.pooling,
            self.preprocessing,
            self.device,
            self.precision,
            self.cache_dir,
            views=self.views,
            progress=bool(self.verbose),
        )

    def _list_references(self, X, *, reset):
        # Numbers that are no table, where one is expected, get scikit-learn's own errors.
        numeric = getattr(getattr(X, "dtype", None), "kind", "O") in "iufb" and getattr(X, "ndim", 4) < 3
        if is_numeric_table(X) or (numeric and self._flat_shape(1) is not None):
            table = validate_data(self, X, reset=reset)
            shape = self._flat_shape(table.shape[1])
            if shape is None:
                raise ValueError(describe_flat_images(table.shape[1]))
            return reshape_flat_images(table, shape)
        references = list_references(X)
        _check_feature_names(self, X, reset=reset)
        n_columns = len(references.columns)
        if reset:
            self.n_features_in_ = n_columns
        elif n_columns != self.n_features_in_:
            raise ValueError(
                f"X has {n_columns} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input."
            )
        return references

    def _flat_shape(self, n_features):  # noqa: ARG002
        """Shape of the image in a row of `n_features` numbers, or None where such rows are refused."""
        return self.image_shape

    @staticmethod
    def _default_names(n_columns):
        return ("image",) if n_columns == 1 else tuple(f"x{i}" for i in range(n_columns))
