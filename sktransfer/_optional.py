"""Import an optional dependency, or say which extra brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

from sktransfer.exceptions import MissingExtraError


def import_optional(name: str, extra: str) -> ModuleType:
    """Import module `name`, or raise MissingExtraError with the pip line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f'This needs {package}, which is not installed. Run: pip install "sktransfer[{extra}]"'
        ) from error
