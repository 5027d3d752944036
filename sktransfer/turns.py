"""Processes take turns at something that only a few of them can use at a time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sktransfer.folders import user_folder
from sktransfer.liveness import lock_file

POLL_SECONDS = 0.2

_lock = threading.Lock()
_taken: dict[str, tuple[BinaryIO | None, int]] = {}  # name -> the locked file of this process, and how many use it


@contextlib.contextmanager
def take_turn(name: str, n_processes: int = 1, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Wait until fewer than `n_processes` other processes hold `name`, and hold it in the block.

    A process that ends, however it ends, no longer holds anything. Threads of one process hold it together. Where no
    lock can be taken, nobody waits.

    Parameters
    ----------
    name : str
        Part of a file's name.
    on_wait : callable
        Called once, if others hold it.

    Yields
    ------
    bool
        Whether there was a wait.
    """
    waited = False
    while not _try_take(name, n_processes):
        if not waited:
            on_wait()
        waited = True
        time.sleep(POLL_SECONDS)
    try:
        yield waited
    finally:
        _give_back(name)


def _try_take(name: str, n_processes: int) -> bool:
    with _lock:
        file, users = _taken.get(name, (None, 0))
        if not users:
            try:
                file = _lock_one(user_folder() / "sktransfer-turns", name, n_processes)
            except BlockingIOError:
                return False
            except OSError:  # a folder that cannot be written, or a file system without locks
                file = None
        _taken[name] = (file, users + 1)
        return True


def _lock_one(folder: Path, name: str, n_processes: int) -> BinaryIO:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(n_processes):
        file = open(folder / f"{name}-{number}", "ab")  # noqa: SIM115
        try:
            lock_file(file.fileno())
        except (BlockingIOError, PermissionError):
            file.close()
        except OSError:
            file.close()
            raise
        else:
            return file
    raise BlockingIOError(name)


def _give_back(name: str) -> None:
    with _lock:
        file, users = _taken.pop(name)
        if users > 1:
            _taken[name] = (file, users - 1)
        elif file is not None:
            file.close()


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _taken.clear()  # a lock is its process's: closing the child's descriptor does not end the parent's turn


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
