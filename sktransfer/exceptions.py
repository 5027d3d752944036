"""Errors and warnings that a caller may catch.

SktransferError
├── ImageReadError (ValueError)       a row of X could not be read as an image
├── BackboneError (ValueError)        a backbone cannot be found, read or cut
├── DeviceError (RuntimeError)        the requested device cannot run a session
└── MissingExtraError (ImportError)   an optional dependency is not installed

ImageReadWarning (UserWarning)        rows that were filled because broken_images or missing_images allowed it
DeviceWarning (UserWarning)           device="auto" found a GPU that onnxruntime cannot use
CacheWarning (UserWarning)            embeddings cannot be kept on disk, which costs speed and nothing else
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """One cell of X without a usable image."""

    row: int  # position in X, from 0
    column: str | None  # None where X has no names
    reference: str  # shortened text of the reference
    reason: str
    missing: bool  # True: an empty cell; False: a reference that could not be read

    def __str__(self) -> str:
        where = f"Row {self.row}" if self.column is None else f"Row {self.row}, column {self.column!r}"
        return f"{where} is empty" if self.missing else f"{where} ({self.reference}) could not be read: {self.reason}"


class SktransferError(Exception):
    """Base class of all errors raised on purpose by sktransfer."""


class ImageReadError(SktransferError, ValueError):
    """Rows of X could not be read as images.

    Attributes
    ----------
    failures : tuple of ImageFailure
        Every failed cell (row, column, reference, reason), in the order of the rows.
    """

    def __init__(self, message: str, failures: Sequence[ImageFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class BackboneError(SktransferError, ValueError):
    """A backbone cannot be found, read or cut at the requested layer."""


class DeviceError(SktransferError, RuntimeError):
    """The requested device cannot run an onnxruntime session."""


class MissingExtraError(SktransferError, ImportError):
    """An optional dependency is not installed."""


class ImageReadWarning(UserWarning):
    """Rows of X had no usable image and were filled.

    Attributes
    ----------
    failures : tuple of ImageFailure
        Every filled cell (row, column, reference, reason), in the order of the rows.
    """

    def __init__(self, message: str, failures: Sequence[ImageFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class DeviceWarning(UserWarning):
    """``device="auto"`` found a GPU that onnxruntime cannot use, and took the CPU."""


class CacheWarning(UserWarning):
    """Embeddings cannot be kept on disk, or not as they should: it costs speed, the results are right."""
