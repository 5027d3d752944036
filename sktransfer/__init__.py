"""sktransfer: embed images with pretrained CNNs, inside scikit-learn pipelines."""

from sktransfer.backbones import Backbone, load_backbone
from sktransfer.exceptions import (
    BackboneError,
    DeviceError,
    DeviceWarning,
    ImageFailure,
    ImageReadError,
    ImageReadWarning,
    MissingExtraError,
    SktransferError,
)
from sktransfer.extraction import extract
from sktransfer.extractor import PretrainedFeatureExtractor
from sktransfer.preprocessing import Preprocessing
from sktransfer.session import release_sessions

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BackboneError",
    "DeviceError",
    "DeviceWarning",
    "ImageFailure",
    "ImageReadError",
    "ImageReadWarning",
    "MissingExtraError",
    "Preprocessing",
    "PretrainedFeatureExtractor",
    "SktransferError",
    "extract",
    "load_backbone",
    "release_sessions",
]
