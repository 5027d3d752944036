"""sktransfer: embed images with pretrained CNNs, inside scikit-learn pipelines."""

from sktransfer.adaptation import AdaptedClassifier, AdaptedRegressor
from sktransfer.backbones import Backbone, list_backbones, load_backbone
from sktransfer.cache import cache_info, clear_cache
from sktransfer.checks import check_images
from sktransfer.duplicates import duplicate_groups
from sktransfer.exceptions import (
    BackboneError,
    CacheWarning,
    DeviceError,
    DeviceWarning,
    ImageFailure,
    ImageReadError,
    ImageReadWarning,
    MissingExtraError,
    SktransferError,
)
from sktransfer.export import export_onnx
from sktransfer.extraction import extract
from sktransfer.extractor import PretrainedFeatureExtractor
from sktransfer.finetune import finetune_backbone
from sktransfer.image_block import make_image_block
from sktransfer.preprocessing import Preprocessing
from sktransfer.quantization import quantize_backbone
from sktransfer.ranking import h_score, leep_score, linear_probe_score, logme_score, nce_score
from sktransfer.selection import prefetch, rank_backbones
from sktransfer.session import release_sessions
from sktransfer.transfer import TransferLogisticRegression, TransferMLPClassifier, TransferMLPRegressor, TransferRidge

__version__ = "0.1.0"

__all__ = [
    "AdaptedClassifier",
    "AdaptedRegressor",
    "Backbone",
    "BackboneError",
    "CacheWarning",
    "DeviceError",
    "DeviceWarning",
    "ImageFailure",
    "ImageReadError",
    "ImageReadWarning",
    "MissingExtraError",
    "Preprocessing",
    "PretrainedFeatureExtractor",
    "SktransferError",
    "TransferLogisticRegression",
    "TransferMLPClassifier",
    "TransferMLPRegressor",
    "TransferRidge",
    "cache_info",
    "check_images",
    "clear_cache",
    "duplicate_groups",
    "export_onnx",
    "extract",
    "finetune_backbone",
    "h_score",
    "leep_score",
    "linear_probe_score",
    "list_backbones",
    "load_backbone",
    "logme_score",
    "make_image_block",
    "nce_score",
    "prefetch",
    "quantize_backbone",
    "rank_backbones",
    "release_sessions",
]
