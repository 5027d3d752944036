"""Where images lie: files, URLs and members of archives. What is there, and whether it is still the same.

A *place* is an absolute path, a URL, or ``archive.zip::member`` (also ``.tar``). Its *validator* is a short text that
changes when the content does: size, times and inode of a file, the ETag of a URL, the checksum of an archive's member.
An empty one stands for a place that changed a moment ago and may change again unnoticed; None for a place without any.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import struct
import tarfile
import threading
import time
import weakref
import zipfile
from collections import OrderedDict
from typing import Any

from sktransfer._optional import import_optional
from sktransfer.exceptions import ImageReadError

MEMBER = "::"  # between an archive and the name of its member
MAX_ARCHIVES = 8  # kept open
TIMEOUT_SECONDS = 30.0  # without a byte from a server

RACY_NS = 2_000_000_000  # a file changed this recently may change again without new times

Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode

_STAMP = struct.Struct("<QqqQ")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def locate(reference: Any, root: str | os.PathLike[str] | None) -> str | None:
    """The place that a reference names, or None where it holds the image itself."""
    if type(reference) is str and reference.startswith("/") and os.sep == "/":  # by far the most
        return reference
    if isinstance(reference, dict) and reference.get("bytes") is None:
        reference = reference.get("path")
    if not isinstance(reference, (str, os.PathLike)):
        return None
    text = os.fspath(reference)
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if os.path.isabs(text) or "://" in text:
        return text
    return os.path.join(root if root is not None else os.getcwd(), text)


def is_file(place: str) -> bool:
    """Whether a place is a plain path, whose validator costs no more than a stat."""
    return ":" not in place or ("://" not in place and MEMBER not in place)


def is_remote(place: str) -> bool:
    """Whether a place is a URL: asking for its validator takes a while."""
    return "://" in place


def stamp_file(path: str) -> Stamp:
    """What changes with a file: its size, mtime_ns, ctime_ns and inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def pack_stamp(stamp: Stamp) -> bytes:
    """A stamp as a validator."""
    size, mtime, ctime, inode = stamp
    return _STAMP.pack(size, mtime, ctime, inode & 0xFFFFFFFFFFFFFFFF)


def is_racy(stamp: Stamp, now_ns: int) -> bool:
    """Whether a file changed so recently that it may change again under the same times."""
    return now_ns - max(stamp[1], stamp[2]) < RACY_NS


def read_place(place: str) -> tuple[bytes, bytes | None]:
    """The content of a place and its validator.

    Raises
    ------
    ImageReadError
        If nothing can be read there; the message says why.
    OSError
        If the file system refuses.
    """
    if is_file(place):
        return _read_file(place)
    if place.startswith(("http://", "https://")):
        return _fetch(place)
    if "://" in place:
        return _read_remote(place)
    archive, member = _split(place)
    if archive is None:
        return _read_file(place)
    return archive.read(member)


def check_place(place: str) -> bytes | None:
    """The validator of a place as it is now, without its content; None where it has none or is not there."""
    with contextlib.suppress(OSError, ImageReadError, ValueError):
        if is_file(place):
            stamp = stamp_file(place)
            return b"" if is_racy(stamp, time.time_ns()) else pack_stamp(stamp)
        if place.startswith(("http://", "https://")):
            return _ask_server(place)
        if "://" in place:
            filesystem, path = _open_filesystem(place)
            return _validate_remote(filesystem.info(path))
        archive, member = _split(place)
        if archive is not None:
            return archive.check(member)
    return None


def _read_file(path: str) -> tuple[bytes, bytes | None]:
    try:
        with open(path, "rb") as file:
            now = time.time_ns()
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
    except IsADirectoryError as error:
        raise ImageReadError("it is a folder, not an image; pass the paths of the files in it") from error
    except FileNotFoundError as error:
        raise ImageReadError("no such file") from error
    stamps = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in (before, after)]
    trusted = stamps[0] == stamps[1] and not is_racy(stamps[0], now)
    return content, pack_stamp(stamps[0]) if trusted else b""


# -- servers ----------------------------------------------------------------------------------------------------------


_lock = threading.Lock()
_clients: dict[int, Any] = {}  # by process: a forked child opens its own


def _open_client() -> Any:
    import httpx2 as httpx

    with _lock:
        if os.getpid() not in _clients:
            transport = httpx.HTTPTransport(retries=2)
            _clients[os.getpid()] = httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS, transport=transport)
        return _clients[os.getpid()]


def _request(method: str, url: str) -> Any:
    import httpx2 as httpx

    try:
        response = _open_client().request(method, url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageReadError(f"the server did not answer: {error or type(error).__name__}") from error
    if response.is_error:
        raise ImageReadError(f"the server answered {response.status_code} {response.reason_phrase}")
    return response


def _fetch(url: str) -> tuple[bytes, bytes | None]:
    response = _request("GET", url)
    return response.content, _validate_response(response)


def _ask_server(url: str) -> bytes | None:
    return _validate_response(_request("HEAD", url))


def _validate_response(response: Any) -> bytes | None:
    """The ETag, else the time of the last change, and the length."""
    headers = response.headers
    tag, changed = headers.get("etag"), headers.get("last-modified")
    if tag is None:
        if changed is None:
            return None
        if _is_recent(changed):
            return b""
        tag = changed
    return f"{tag} {headers.get('content-length', '')}".encode()


def _is_recent(http_date: str) -> bool:
    # Times of HTTP count whole seconds.
    try:
        changed = email.utils.parsedate_to_datetime(http_date).timestamp()
    except ValueError:
        return True
    return time.time() - changed < RACY_NS / 1e9 + 1


# -- object stores ----------------------------------------------------------------------------------------------------


def _open_filesystem(url: str) -> tuple[Any, str]:
    fsspec = import_optional("fsspec", "remote")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ImageReadError(f"fsspec cannot open it: {error}") from error
    return filesystem, path


def _read_remote(url: str) -> tuple[bytes, bytes | None]:
    filesystem, path = _open_filesystem(url)
    try:
        validator = _validate_remote(filesystem.info(path))
        return bytes(filesystem.cat_file(path)), validator
    except FileNotFoundError as error:
        raise ImageReadError("there is no such object") from error


def _validate_remote(info: dict[str, Any]) -> bytes | None:
    names = ("ETag", "etag", "version_id", "VersionId", "generation", "md5Hash", "content_hash")
    tags = [f"{name}={info[name]}" for name in names if info.get(name)]
    return f"{tags} {info.get('size')}".encode() if tags else None


# -- archives ---------------------------------------------------------------------------------------------------------


class _Archive:
    """An open .zip or .tar file and the index of its members. Safe for threads."""

    def __init__(self, path: str, stamp: Stamp) -> None:
        self.path, self.stamp, self._lock = path, stamp, threading.Lock()
        try:
            if path.endswith(".zip"):
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
            else:
                self._zip, self._tar = None, tarfile.open(path)  # noqa: SIM115
                weakref.finalize(self, self._tar.close)  # a ZipFile closes itself
                self._members = {member.name: member for member in self._tar if member.isfile()}
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ImageReadError(f"{path!r} is a damaged archive: {error}") from error
        except FileNotFoundError as error:
            raise ImageReadError(f"no such archive {path!r}") from error

    def read(self, member: str) -> tuple[bytes, bytes | None]:
        validator = self.check(member)
        try:
            with self._lock:
                if self._zip is not None:
                    return self._zip.read(member), validator
                file = self._tar.extractfile(self._members[member])
                assert file is not None
                return file.read(), validator
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
            raise ImageReadError(f"{member!r} in {self.path!r} cannot be read: {error}") from error

    def check(self, member: str) -> bytes | None:
        try:
            if self._zip is not None:
                entry = self._zip.getinfo(member)
                own: tuple[Any, ...] = (entry.CRC, entry.file_size, entry.header_offset)
            else:
                found = self._members[member]
                own = (found.size, found.offset_data)
        except KeyError as error:
            raise ImageReadError(f"there is no {member!r} in {self.path!r}") from error
        return b"" if is_racy(self.stamp, time.time_ns()) else pack_stamp(self.stamp) + repr(own).encode()


def _split(place: str) -> tuple[_Archive | None, str]:
    """The archive and the name of its member; None where the place is a file whose name holds ``::``."""
    path, _, member = place.partition(MEMBER)
    if not path.lower().endswith(_ARCHIVES):
        return None, place
    try:
        stamp = stamp_file(path)
    except FileNotFoundError as error:
        raise ImageReadError(f"no such archive {path!r}") from error
    with _lock:
        key = (os.getpid(), path, stamp)
        if key not in _archives:
            _archives[key] = _Archive(path, stamp)
            while len(_archives) > MAX_ARCHIVES:
                _archives.popitem(last=False)
        return _archives[key], member


_archives: OrderedDict[tuple[int, str, Stamp], _Archive] = OrderedDict()


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
