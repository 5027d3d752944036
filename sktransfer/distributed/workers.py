"""What every engine offers: calls on other processes, and how many run at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

QUEUE = 2  # calls handed in for each that can run, so that no worker waits for the next


@dataclass(frozen=True)
class Needs:
    """Of a call, and of a cluster that is started for it."""

    threads: int = 1
    gpus: int = 0
    cores: int = 1  # of this machine


@dataclass(frozen=True)
class Workers:
    """An open cluster."""

    submit: Callable[..., Future[Any]]  # function, arguments
    count: Callable[[], int]  # calls that can run now; clusters grow
