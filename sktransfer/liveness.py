"""Which processes are alive: each holds an operating system's lock on a file of its own for as long as it lives."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


class LifeSign:
    """The lock that this process holds in `folder`; its name tells other processes whom to ask about.

    POSIX record locks belong to a process: a forked child does not inherit them, and the kernel drops them with the
    process, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._path = folder / self.name
        self._file = open(self._path, "xb")  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks: claims expire by time alone
            lock_file(self._file.fileno())

    def release(self) -> None:
        """Give the lock up and remove its file."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process behind the life sign `name` may still run. Never ask about this process's own.

    A file that is gone or whose lock is free means that it does not, and the file is removed.
    """
    path = folder / name
    try:
        with open(path, "r+b") as file:
            lock_file(file.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return True  # held, or the file system has no locks
    with contextlib.suppress(OSError):
        path.unlink()
    return False


def lock_file(descriptor: int) -> None:
    """Lock an open file for this process, or raise OSError where another one has locked it."""
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
