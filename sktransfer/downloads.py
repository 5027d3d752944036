"""One file from a server: asked for again where there is no answer, gone on with, and checked before it has a name."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sktransfer.digests import digest_file
from sktransfer.exceptions import BackboneError
from sktransfer.sizes import format_bytes

TIMEOUT_SECONDS = 10.0  # without a byte from a server
ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # after the first attempt, doubled after each
MAX_PAUSE_SECONDS = 30.0  # however long a server asks to wait
MAX_REDIRECTS = 5
MAX_BYTES = 8 * 2**30

_TRANSIENT = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_ABSENT = frozenset({401, 403, 404, 410})  # object stores answer 403 where a file is not there

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Body:
    """A file on a server, and what is stated about it."""

    url: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None  # git's SHA-1
    limit: int | None = None  # bytes; MAX_BYTES if None
    hub: bool = False  # send the user's token
    cached: str | None = None  # where Hugging Face's own cache has a file of this name


class AbsentError(BackboneError):
    """A server has no such file, or none for us."""


class UnreachableError(BackboneError):
    """A server did not answer in any attempt."""


class SilenceError(Exception):
    """No answer, or none that would not be another one in a while."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def download(body: Body, target: Path, place: Path, progress: bool) -> None:
    """Fetch a file that belongs to `place`; `target` appears when it is complete and right."""
    if target.is_file() and (body.sha256 or body.blob) and not find_mismatch(body, target):
        return  # a call that was interrupted later left it
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if body.cached and body.sha256 == digest_file(Path(body.cached)):
        _link(os.path.realpath(body.cached), target)
        return
    part = target.with_name(f"{target.name}.part")
    logger.info("Fetching %s", body.url)
    try:
        insist(lambda: _receive(body, part, place, progress))
    except SilenceError as error:
        raise explain_silence(error, body.url, place) from error
    if wrong := find_mismatch(body, part):
        part.unlink()
        raise BackboneError(f"{body.url} {wrong}; the wrong file was deleted.")
    os.replace(part, target)


def _link(existing: str, target: Path) -> None:
    try:
        os.link(existing, target)
    except OSError:  # another disk, or none that can
        shutil.copyfile(existing, target)


def find_mismatch(body: Body, path: Path) -> str | None:
    """What is stated about a file and not so, as the end of a sentence."""
    stated: list[tuple[str, int | str | None, Callable[[Path], int | str]]] = [
        ("size", body.size, lambda path: path.stat().st_size),
        ("SHA-256", body.sha256, digest_file),
        ("git digest", body.blob, _digest_blob),
    ]
    for what, expected, measure in stated:
        if expected is not None and (found := measure(path)) != expected:
            return f"must have the {what} {expected}. Got {found} instead"
    return None


def _digest_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def insist(attempt: Callable[[], _T]) -> _T:
    """Try again after a pause where a server does not answer."""
    from huggingface_hub import constants

    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if constants.HF_HUB_OFFLINE or any(os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE") for v in variables):
        raise SilenceError(f"the network is switched off ({' or '.join(variables)})")
    for n in range(ATTEMPTS - 1):
        try:
            return attempt()
        except SilenceError as error:
            pause = min(PAUSE_SECONDS * 2**n if error.pause is None else error.pause, MAX_PAUSE_SECONDS)
            logger.info("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
    return attempt()


def explain_silence(error: SilenceError, address: str, place: Path) -> UnreachableError:
    """The error that names what to bring by hand, and where to put it."""
    return UnreachableError(f"{address} could not be fetched: {error}. Bring the file by hand and put it at {place}.")


def refuse_transient(status: int, headers: Mapping[str, str]) -> None:
    """Raise SilenceError for a status that may be another one in a while."""
    if status in _TRANSIENT:
        wait, pause = headers.get("Retry-After") or "", None
        with contextlib.suppress(ValueError):
            date = wait and not wait.isdecimal() and email.utils.parsedate_to_datetime(wait)
            pause = max(0.0, date.timestamp() - time.time()) if date else float(wait)
        raise SilenceError(f"the server answered {status}", pause)


def _receive(body: Body, part: Path, place: Path, progress: bool) -> None:
    """One attempt to fetch the rest of `part`."""
    import httpx2

    headers = {"User-Agent": "sktransfer", "Accept-Encoding": "identity", **_ask_for_rest(body, part)}
    if body.hub and (token := _read_token()):
        headers["Authorization"] = f"Bearer {token}"  # httpx2 drops it where another host is asked
    options = {"follow_redirects": True, "max_redirects": MAX_REDIRECTS, "timeout": TIMEOUT_SECONDS}
    try:
        with (
            httpx2.Client(verify=_open_certificates(), **options) as client,
            client.stream("GET", body.url, headers=headers) as response,
        ):
            if body.url.startswith("https:") and any(r.url.scheme != "https" for r in (*response.history, response)):
                raise BackboneError(f"{body.url} must lead to a file over https. It leads to {response.url}.")
            if response.status_code == 416:
                part.unlink(missing_ok=True)
            refuse_transient(response.status_code, response.headers)
            if not response.is_success:
                raise _explain_status(body, response.status_code, place)
            _write(response, body, part, progress)
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise BackboneError(f"{body.url} must lead to a file over http or https. Got instead: {error}") from error
    except httpx2.HTTPError as error:
        raise SilenceError(str(error) or type(error).__name__) from error


@functools.cache
def _open_certificates() -> Any:
    import httpx2

    return httpx2.create_ssl_context()  # takes 50 ms


def _read_token() -> str | None:
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _explain_status(body: Body, status: int, place: Path) -> BackboneError:
    error = AbsentError if status in _ABSENT else BackboneError
    remedy = f"check the address, or put the file at {place}"
    if status in (401, 403) and body.hub:
        remedy = "ask for access on its page and log in with `hf auth login`"
    return error(f"{body.url} must be there and open to you. The server answered {status}; {remedy}.")


def _ask_for_rest(body: Body, part: Path) -> dict[str, str]:
    """Headers that ask for what is missing in `part`, or for everything where the file has changed since."""
    with contextlib.suppress(OSError, ValueError):
        url, tag = part.with_suffix(".tag").read_text("utf-8").split("\n")
        if url == body.url and tag and part.stat().st_size:
            return {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag}
    return {}


def _write(response: Any, body: Body, part: Path, progress: bool) -> None:
    from tqdm import tqdm

    start, total = _read_extent(response)
    if start not in (0, part.stat().st_size if part.is_file() else 0):
        part.unlink(missing_ok=True)
        raise SilenceError("it sent another part than was asked for", 0.0)
    limit = (body.limit or MAX_BYTES) if body.size is None else body.size
    if total is not None and (total > limit or body.size not in (None, total)):
        raise _explain_size(body, limit, f"{total} bytes")
    tag = response.headers.get("ETag", "") if total is not None else ""
    part.with_suffix(".tag").write_text(f"{body.url}\n{tag}", "utf-8")
    bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=not progress)
    with bar, open(part, "ab" if start else "wb") as file:
        for chunk in response.iter_bytes():
            if file.tell() + len(chunk) > limit:
                file.truncate(0)
                raise _explain_size(body, limit, "more")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise SilenceError(f"the server sent {part.stat().st_size} of {total} bytes")


def _read_extent(response: Any) -> tuple[int, int | None]:
    """Where the body starts in the file, and the size of the file if it is stated."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2])) if match is not None else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _explain_size(body: Body, limit: int, got: str) -> BackboneError:
    size = f"have {limit} bytes" if body.size is not None else f"be at most {format_bytes(limit)}"
    return BackboneError(f"{body.url} must {size}. The server sends {got} instead; nothing was kept.")
