"""Where images lie: files, URLs and members of archives. What is there, and whether it is still the same.

A *place* is an absolute path, a URL, or ``archive.zip::member`` (also ``.tar``). Its *validator* is a short text that
changes when the content does: size, times and inode of a file, the ETag of a URL, the checksum of an archive's member.
An empty one stands for a place that changed a moment ago and may change again unnoticed; None for a place without any.

No image may fill the memory: its size is checked where it is stated, and again while it is read.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import os
import re
import stat
import struct
import sys
import tarfile
import threading
import time
import urllib.parse
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from sktransfer._optional import import_optional
from sktransfer.downloads import SilenceError, refuse_transient
from sktransfer.exceptions import ImageReadError, MissingExtraError
from sktransfer.images import PixelRange, Pixels, is_inline, read_pixels, split_dict
from sktransfer.limits import MAX_BYTES
from sktransfer.sizes import format_bytes

MEMBER = "::"  # between an archive and the name of its member
MAX_ARCHIVES = 8  # kept open
TIMEOUT_SECONDS = 30.0  # without a byte from a server
DEADLINE_SECONDS = 120.0  # for one image of a server, with all attempts
ATTEMPTS = 3
PAUSE_SECONDS = 0.5  # after the first attempt, doubled after each
MAX_PAUSE_SECONDS = 10.0  # however long a server asks to wait
MAX_REDIRECTS = 5

RACY_NS = 2_000_000_000  # a file changed this recently may change again without new times

Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode

_STAMP = struct.Struct("<QqqQ")
_ADDRESS = re.compile(r"://[^\s'\"]+")
_A_FOLDER = "it is a folder, not an image; pass the paths of the files in it"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def locate(reference: Any, root: str | os.PathLike[str] | None) -> str | None:
    """The place that a reference names, or None where it holds the image itself."""
    # By far the most are absolute paths; "/9j/" may also begin a JPEG in base64.
    if type(reference) is str and reference.startswith("/") and not reference.startswith("/9j/") and os.sep == "/":
        return reference
    if isinstance(reference, str) and is_inline(reference):
        return None
    if isinstance(reference, dict):
        content, reference = split_dict(reference)
        if content is not None:
            return None
    if not isinstance(reference, (str, os.PathLike)):
        return None
    text = os.fspath(reference)
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if text[:7].lower() == "file://":
        text = _strip_scheme(text)
    if os.path.isabs(text) or "://" in text:
        return text
    return os.path.join(root if root is not None else _find_working_directory(), text)


def _find_working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise ImageReadError("it is relative to the working directory, which is gone; pass root") from error


def _strip_scheme(url: str) -> str:
    """The path that a file URL names; the URL as it is where it names another machine."""
    host, slash, path = url[7:].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        return url
    path = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(f"/{path}")))
    return path[1:] if os.name == "nt" else path  # /C:/folder/a.png


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


def read_content(reference: Any, root: str | os.PathLike[str] | None, pixel_range: PixelRange = None) -> bytes | Pixels:
    """The encoded image, or the pixels, that a reference names or holds; errors as of `read_place`."""
    place = locate(reference, root)
    return read_pixels(reference, pixel_range) if place is None else read_place(place)[0]


def read_place(place: str) -> tuple[bytes, bytes | None]:
    """The content of a place and its validator.

    Raises
    ------
    ImageReadError
        If nothing can be read there, or more than MAX_BYTES; the message says why.
    MissingExtraError
        If fsspec is needed and not installed.
    """
    if is_file(place):
        return _read_file(place)
    if _is_http(place):
        return _fetch(place)
    if "://" in place:
        return _read_remote(place)
    archive, member = _split(place)
    if archive is None:
        return _read_file(place)
    return archive.read(member)


def check_place(place: str) -> bytes | None:
    """The validator of a place as it is now, without its content; None where it has none or is not there."""
    with contextlib.suppress(OSError, ImageReadError, SilenceError, ValueError):
        if is_file(place):
            stamp = stamp_file(place)
            return b"" if is_racy(stamp, time.time_ns()) else pack_stamp(stamp)
        if _is_http(place):
            return _ask_server(place)
        if "://" in place:
            return _ask_store(place)
        archive, member = _split(place)
        if archive is not None:
            return archive.check(member)
    return None


def _is_http(place: str) -> bool:
    return place[:8].lower().startswith(("http://", "https://"))


def _check_size(size: int, more: str = "") -> None:
    """Refuse an image for its size; `more` says " or more" where not all of it was read."""
    if size > MAX_BYTES:
        limit = format_bytes(MAX_BYTES)
        raise ImageReadError(f"it has {format_bytes(size)}{more}, and an image may have {limit} at most")


def _quote(error: Exception) -> str:
    """One clause of somebody else's error, without addresses: they may hold tokens."""
    lines = str(error).strip().splitlines()
    return _ADDRESS.sub("://...", lines[0])[:300].rstrip(".:") if lines else type(error).__name__


# -- files ------------------------------------------------------------------------------------------------------------


def _read_file(path: str) -> tuple[bytes, bytes | None]:
    try:
        _refuse_special(path)
        with open(path, "rb") as file:
            now = time.time_ns()
            before = os.fstat(file.fileno())
            _check_size(before.st_size)
            content = file.read(before.st_size + 1)
            if len(content) > before.st_size:  # it grows, or is one of the kernel's, which have no size
                content += file.read(MAX_BYTES + 1 - len(content))
                _check_size(len(content), " or more")
            after = os.fstat(file.fileno())
    except (OSError, UnicodeError) as error:
        raise ImageReadError(_explain(error)) from error
    stamps = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in (before, after)]
    trusted = stamps[0] == stamps[1] and not is_racy(stamps[0], now)
    return content, pack_stamp(stamps[0]) if trusted else b""


def _refuse_special(path: str) -> None:
    """Refuse what is no regular file: to open a pipe or a device may block."""
    if "\0" in path:
        raise ImageReadError("its name holds a NUL character, which no file can have")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageReadError(_A_FOLDER)
    if not stat.S_ISREG(mode):
        raise ImageReadError("it is not a regular file")


def _explain(error: Exception) -> str:
    """One clause for what the operating system says about a file."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "the name is too long for a file"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return _quote(error)


# -- servers ----------------------------------------------------------------------------------------------------------


_lock = threading.Lock()
_clients: dict[int, Any] = {}  # by process: a forked child opens its own


def _open_client() -> Any:
    import httpx2 as httpx

    with _lock:
        if os.getpid() not in _clients:
            # Compressing an image again saves nothing, and hides its size.
            headers = {"User-Agent": "sktransfer", "Accept-Encoding": "identity"}
            _clients[os.getpid()] = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS)
        return _clients[os.getpid()]


def _insist(attempt: Callable[[float], tuple[bytes, bytes | None]]) -> tuple[bytes, bytes | None]:
    """Try again after a pause where a failure may be another one in a while; `attempt` is told the deadline."""
    deadline, n = time.monotonic() + DEADLINE_SECONDS, 1
    while True:
        try:
            return attempt(deadline)
        except SilenceError as error:
            pause = min(PAUSE_SECONDS * 2 ** (n - 1) if error.pause is None else error.pause, MAX_PAUSE_SECONDS)
            if n == ATTEMPTS or time.monotonic() + pause >= deadline:
                raise ImageReadError(f"{error} ({n} attempt{'s' * (n > 1)})") from error.__cause__
        time.sleep(pause)
        n += 1


def _fetch(url: str) -> tuple[bytes, bytes | None]:
    return _insist(lambda deadline: _request("GET", url, deadline))


def _ask_server(url: str) -> bytes | None:
    return _request("HEAD", url, time.monotonic() + DEADLINE_SECONDS)[1]


def _request(method: str, url: str, deadline: float) -> tuple[bytes, bytes | None]:
    """The body that a URL leads to, and its validator. Redirects are followed here: httpx would read all of theirs."""
    import httpx2 as httpx

    client = _open_client()
    hopeless = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError, httpx.InvalidURL)
    try:
        timeout = min(TIMEOUT_SECONDS, max(deadline - time.monotonic(), 0.001))
        request = client.build_request(method, url, timeout=timeout)
        for _ in range(MAX_REDIRECTS + 1):
            with contextlib.closing(client.send(request, stream=True)) as response:
                refuse_transient(response.status_code, response.headers)
                request = response.next_request
                if request is None and not response.is_success:
                    words = f"the server answered {response.status_code} {response.reason_phrase[:80]}"
                    raise ImageReadError(words.rstrip())
                content = _read_body(response, deadline)
            if request is None:
                return content, _validate_response(response)
    except (*hopeless, UnicodeError) as error:  # the latter of host names
        raise ImageReadError(f"it cannot be fetched: {_quote(error)}") from error
    except httpx.HTTPError as error:
        raise SilenceError(f"the connection failed: {_quote(error)}") from error
    raise ImageReadError(f"the server redirects more than {MAX_REDIRECTS} times")


def _read_body(response: Any, deadline: float) -> bytes:
    length = response.headers.get("Content-Length", "")
    _check_size(int(length) if length.isdecimal() else 0)
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        _check_size(len(body), " or more")
        if time.monotonic() > deadline:
            raise ImageReadError(f"the server had not sent all of it after {DEADLINE_SECONDS:g} s")
    return bytes(body)


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
    if url[:7].lower() == "file://":
        raise ImageReadError("a file URL must name an absolute path on this machine, as in file:///folder/a.png")
    fsspec = import_optional("fsspec", "remote")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # of the package for this kind of URL, which fsspec names
        package = getattr(error.__cause__, "name", None) or ""
        remedy = f" (pip install {package})" if package and package in str(error) else ""
        raise ImageReadError(f"fsspec cannot open it: {_quote(error)}{remedy}") from error
    except ValueError as error:
        raise ImageReadError(f"fsspec cannot open it: {_quote(error)}") from error
    return filesystem, path


def _read_remote(url: str) -> tuple[bytes, bytes | None]:
    def attempt(_: float) -> tuple[bytes, bytes | None]:
        with _explain_store():
            filesystem, path = _open_filesystem(url)
            info = filesystem.info(path)
            if info.get("type") == "directory":
                raise ImageReadError(_A_FOLDER)
            _check_size(info.get("size") or 0)
            # Object stores refuse to send a part of nothing.
            content = b"" if info.get("size") == 0 else bytes(filesystem.cat_file(path, start=0, end=MAX_BYTES + 1))
            _check_size(len(content), " or more")
            return content, _validate_remote(info)

    return _insist(attempt)


def _ask_store(url: str) -> bytes | None:
    with _explain_store():
        filesystem, path = _open_filesystem(url)
        return _validate_remote(filesystem.info(path))


@contextlib.contextmanager
def _explain_store() -> Iterator[None]:
    """Whatever a backend of fsspec raises, as an error of ours."""
    try:
        yield
    except (ImageReadError, MissingExtraError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageReadError("there is no such object") from error
    except Exception as error:
        reason = f"fsspec cannot read it: {_quote(error)}"
        lasting = (PermissionError, IsADirectoryError, NotADirectoryError)
        if isinstance(error, OSError) and not isinstance(error, lasting):
            raise SilenceError(reason) from error
        raise ImageReadError(reason) from error


def _validate_remote(info: dict[str, Any]) -> bytes | None:
    names = ("ETag", "etag", "version_id", "VersionId", "generation", "md5Hash", "content_hash")
    tags = [f"{name}={info[name]}" for name in names if info.get(name)]
    return f"{tags} {info.get('size')}".encode() if tags else None


# -- archives ---------------------------------------------------------------------------------------------------------


class _Archive:
    """An open .zip or .tar file and the index of its members. Safe for threads."""

    def __init__(self, path: str, stamp: Stamp) -> None:
        self.path, self.stamp, self._lock = path, stamp, threading.Lock()
        if path.lower().endswith(".zip"):
            self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
        else:
            self._zip, self._tar = None, tarfile.open(path)  # noqa: SIM115
            weakref.finalize(self, self._tar.close)  # a ZipFile closes itself
            self._members = {member.name: member for member in self._tar if member.isfile()}

    def read(self, member: str) -> tuple[bytes, bytes | None]:
        validator = self.check(member)
        try:
            with self._lock:
                return self._unpack(member), validator
        except (ImageReadError, MemoryError):
            raise
        except Exception as error:
            raise ImageReadError(f"{member!r} in {self.path!r} cannot be read: {_quote(error)}") from error

    def _unpack(self, member: str) -> bytes:
        """The content of a member; never more than its header states."""
        if self._zip is None:
            found = self._members[member]
            _check_size(found.size)
            file = self._tar.extractfile(found)
            assert file is not None
            return file.read(found.size)
        entry = self._zip.getinfo(member)
        _check_size(entry.file_size)
        if entry.flag_bits & 1:
            raise zipfile.BadZipFile("it is encrypted")
        # Other methods unpack all that they are given at once, however much it becomes.
        bounded = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        piece = entry.file_size if bounded else 4096
        with self._zip.open(entry) as stream:
            return b"".join(iter(lambda: stream.read(piece), b""))

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
        _refuse_special(path)
        stamp = stamp_file(path)
        with _lock:
            key = (os.getpid(), path, stamp)
            if key not in _archives:
                _archives[key] = _Archive(path, stamp)
                while len(_archives) > MAX_ARCHIVES:
                    _archives.popitem(last=False)
            return _archives[key], member
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ImageReadError(f"{path!r} is a damaged archive: {_quote(error)}") from error
    except (OSError, ValueError) as error:
        raise ImageReadError(f"the archive {path!r} cannot be opened: {_explain(error)}") from error


_archives: OrderedDict[tuple[int, str, Stamp], _Archive] = OrderedDict()


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    # fsspec's thread stays with the parent, and its lock as it was.
    getattr(sys.modules.get("fsspec.asyn"), "reset_lock", lambda: None)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
