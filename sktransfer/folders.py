"""The folder in which sktransfer keeps what can be made or fetched again."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import platformdirs

DIRECTORY_VARIABLE = "SKTRANSFER_CACHE_DIR"


def user_folder() -> Path:
    """The folder named by SKTRANSFER_CACHE_DIR, else one in the user's cache folder; it need not exist."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get(DIRECTORY_VARIABLE) or _system_folder())))


@functools.cache
def _system_folder() -> str:
    return platformdirs.user_cache_dir("sktransfer", appauthor=False)
