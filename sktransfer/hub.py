"""Backbones that lie elsewhere: from a registered name, ``hf:owner/repo`` or a URL to a verified local file.

A file is fetched into ``partial``, checked there, and renamed to its place. What a reference meant at its first use is
kept in ``records``, which outlive the files. No server is asked for what lies at its place already.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import email.utils
import errno
import functools
import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from sktransfer.digests import digest_file
from sktransfer.exceptions import BackboneError
from sktransfer.folders import DIRECTORY_VARIABLE, user_folder
from sktransfer.network import describe_file
from sktransfer.sizes import format_bytes

TIMEOUT_SECONDS = 10.0  # without a byte from a server
ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # after the first attempt, doubled after each
MAX_PAUSE_SECONDS = 30.0  # however long a server asks to wait
MAX_REDIRECTS = 5
MAX_BYTES = 8 * 2**30
MAX_CONFIG_BYTES = 10**7
URL_CONFIGS = ("preprocessor_config.json", "preprocess.json")
HUB_CONFIGS = (*URL_CONFIGS, "processor_config.json", "config.json", "open_clip_config.json")

_TRANSIENT = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_ABSENT = frozenset({401, 403, 404, 410})  # object stores answer 403 where a file is not there
_NAME = r"(?![\w.-]*(?:--|\.\.))\b[\w.-]{1,96}\b"
_REFERENCE = re.compile(rf"hf:({_NAME}/{_NAME}(?<!\.git))((?:/.*?)?)(?:@(\w(?:(?!\.\.)[\w./-])*))?", re.ASCII)

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteBackbone:
    """The files of a reference, as they were recorded at its first use."""

    reference: str
    name: str
    path: Path  # of the .onnx file
    digests: Mapping[Path, str]  # SHA-256 of every file: the model, its external data, its preprocessing
    source: str  # for people: "hf:owner/repo@commit/path", or the URL


@dataclass(frozen=True)
class Change:
    """What a reference meant, and what its source has now: names of files and their SHA-256."""

    reference: str
    old: Mapping[str, str]
    new: Mapping[str, str]
    file: str = field(repr=False)  # the model among `new`
    source: str = field(repr=False)


def store_folder() -> Path:
    """The folder of everything that was fetched; it need not exist."""
    return user_folder() / "sktransfer-models"


def is_remote_reference(text: str) -> bool:
    """Whether a reference names something to fetch: ``hf:owner/repo`` or a URL."""
    return text.startswith(("hf:", "http://", "https://"))


def place_registered(name: str, path: str) -> Path:
    """Where the file of a registered backbone lies, or has to be put by hand."""
    return store_folder() / "registry" / name / posixpath.basename(path)


def fetch_registered(
    name: str, repository: str, path: str, revision: str, sha256: str, n_bytes: int, *, progress: bool = False
) -> Path:
    """The file of a registered backbone: the one at its place, unread, or else one of this size and SHA-256.

    Raises
    ------
    BackboneError
        If it cannot be fetched, or is another file.
    """
    place = place_registered(name, path)
    if place.is_file():
        return place
    with _exclusive(place.parent) as staging:
        if not place.is_file():
            cached = _find_cached(repository, revision, path)
            body = _Body(_hub_address(repository, revision, path), n_bytes, sha256, hub=True, cached=cached)
            _download(body, staging / "new" / place.name, place, progress)
            _move(staging / "new", place.parent, [place.name])
    return place


def find_reference(reference: str) -> RemoteBackbone | None:
    """What `fetch_reference` returns, where it was used before and its files are there; asks no server."""
    source = _parse(reference)
    record = _read_record(source)
    if record is None or _list_missing(source, record.digests):
        return None
    return _describe(source, record)


def fetch_reference(reference: str, *, progress: bool = False) -> RemoteBackbone:
    """The files that a reference means, fetched where they are missing.

    Parameters
    ----------
    reference : str
        ``hf:owner/repo``, ``hf:owner/repo/file.onnx`` or ``hf:owner/repo/folder``, each with ``@revision`` at its end
        or not; or a URL, with ``#sha256=<64 digits>`` at its end or not.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    BackboneError
        If there is no such file, it cannot be fetched, or it is not what was recorded at the first use.
    """
    found = find_reference(reference)
    if found is None:
        source = _parse(reference)
        with _exclusive(source.root) as staging:
            found = find_reference(reference) or _fetch(source, staging / "new", progress)
    return found


def fetch_change(reference: str, *, progress: bool = False) -> Change:
    """Fetch what the source of a reference has now, beside what is in use; `accept_change` takes it."""
    source = _parse(reference)
    with _exclusive(source.root) as staging:
        record = _read_record(source)
        offer = _ask(source, record)
        found = _gather(source, offer, staging / "change", progress, keep=False)
        new = {name: digest_file(path) for name, path in found.items()}
    return Change(reference, record.digests if record is not None else {}, new, offer.model, offer.source)


def accept_change(change: Change) -> RemoteBackbone:
    """Take the files that `fetch_change` fetched, and record their digests."""
    source = _parse(change.reference)
    record = _Record(change.file, change.new, change.source)
    with _exclusive(source.root) as staging:
        for name, digest in change.new.items():
            path = staging / "change" / name
            if not path.is_file() or digest_file(path) != digest:
                raise BackboneError(f"{path} must be what was fetched. It is not any more; fetch the change again.")
        _move(staging / "change", source.root, change.new)
        for name in change.old.keys() - change.new.keys():
            (source.root / name).unlink(missing_ok=True)
        _write_record(source, record)
    return _describe(source, record)


# -- references -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Body:
    """A file on a server, and what is stated about it."""

    url: str
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None  # git's SHA-1
    limit: int | None = None  # bytes; MAX_BYTES if None
    hub: bool = False  # send the user's token
    cached: str | None = None  # where Hugging Face's own cache has a file of this name


@dataclass(frozen=True)
class _Offer:
    """What a source has now."""

    model: str
    source: str
    find: Callable[[str], _Body | None]


class _Source:
    """A parsed reference. Names of files are relative to `root`, with slashes."""

    reference: str  # as the user wrote it
    key: str  # what it is recorded under
    root: Path
    pin: str | None = None  # SHA-256 of the model
    candidates: Sequence[str]  # names that the model may have; the first is taken without asking
    configs: Sequence[str] = URL_CONFIGS

    def ask(self) -> _Offer:
        raise NotImplementedError

    def address(self, name: str) -> str:
        raise NotImplementedError

    def title(self, model: str) -> str:
        raise NotImplementedError

    def list_configs(self, model: str) -> list[str]:
        """Names that the preprocessing of `model` may have."""
        folder = posixpath.dirname(model)
        folders = [folder, posixpath.dirname(folder)] if posixpath.basename(folder) == "onnx" else [folder]
        return [posixpath.join(folder, name) for folder in folders for name in self.configs]


class _HubSource(_Source):
    configs = HUB_CONFIGS

    def __init__(self, reference: str) -> None:
        match = _REFERENCE.fullmatch(reference)
        path = match[2].strip("/") if match is not None else ""
        if match is None or (path and not _is_plain(path)):
            raise BackboneError(
                'A reference must be "hf:owner/repo" or "hf:owner/repo/folder/file.onnx", with "@revision" at its end '
                f"or not. Got {reference!r} instead."
            )
        self.reference, self.repository, self.path, self.revision = reference, match[1], path, match[3] or "main"
        at = "" if self.revision == "main" else f"@{self.revision}"
        self.key = "hf:" + "/".join(filter(None, [self.repository, path])) + at
        self.root = store_folder() / "hf" / self.repository / quote(self.revision, safe="")
        self.is_file = path.endswith(".onnx")
        names = ("model.onnx", "onnx/model.onnx")
        self.candidates = [path] if self.is_file else [posixpath.join(path, name) for name in names]

    def ask(self) -> _Offer:
        info = _list_repository(self)
        files = {entry.rfilename: entry for entry in info.siblings or () if _is_plain(entry.rfilename)}
        commit = info.sha or self.revision

        def find(name: str) -> _Body | None:
            if name not in files:
                return None
            url, lfs = _hub_address(self.repository, commit, name), files[name].lfs
            if lfs is None:
                return _Body(url, files[name].size, blob=files[name].blob_id, hub=True)
            return _Body(url, lfs.size, lfs.sha256, hub=True, cached=_find_cached(self.repository, commit, name))

        model = self._choose(files)
        return _Offer(model, f"hf:{self.repository}@{commit}/{model}", find)

    def _choose(self, names: Iterable[str]) -> str:
        everything = sorted(name for name in names if name.endswith(".onnx"))
        for name in self.candidates:
            if name in everything:
                return name
        models = [name for name in everything if not self.path or name.startswith(f"{self.path}/")]
        if len(models) == 1:
            return models[0]
        if models:
            some = ", ".join(models[:5]) + (", …" if len(models) > 5 else "")
            remedy = f"name one, for example hf:{self.repository}/{models[0]}"
            raise BackboneError(f"{self.reference} must mean one .onnx file. Got {len(models)}: {some}; {remedy}.")
        near = ", ".join(difflib.get_close_matches(self.path, everything, n=3, cutoff=0))
        remedy = f"the nearest are {near}" if near else "it has no .onnx file at all"
        raise BackboneError(
            f"{self.reference} must name an .onnx file. {self.repository} has no {self.candidates[0]!r}; {remedy}."
        )

    def address(self, name: str) -> str:
        if name in self.candidates and not self.is_file:  # which of them it is, only the Hub knows
            return "/".join(filter(None, [_endpoint(), self.repository, "tree", self.revision, self.path]))
        return _hub_address(self.repository, self.revision, name)

    def title(self, model: str) -> str:
        folder = posixpath.dirname(model)
        folder = posixpath.dirname(folder) if posixpath.basename(folder) == "onnx" else folder
        base = posixpath.basename(folder or self.repository)
        stem = PurePosixPath(model).stem
        return f"{base}-{stem[6:]}" if stem.startswith("model_") else base if stem == "model" else stem


class _UrlSource(_Source):
    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.key, mark, fragment = reference.partition("#")
        try:
            self.parts = urlsplit(self.key)
            host = self.parts.hostname if self.parts.port != 0 else None
        except ValueError:
            host = None
        if not host or "@" in self.parts.netloc or re.search(r"[\s\\\x00-\x1f]", self.key):
            hidden = reference.rpartition("@")[2]
            raise BackboneError(f'A URL must be "https://host/model.onnx", no password. Got {hidden!r} instead.')
        if mark and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
            raise BackboneError(f'What follows a URL must be "#sha256=" and 64 digits. Got {"#" + fragment!r} instead.')
        self.pin = fragment[7:].lower() or None
        *folders, name = unquote(self.parts.path).split("/")
        self.candidates = [name if name.endswith(".onnx") and _is_plain(name) else "model.onnx"]
        self._folder = next((part for part in reversed(folders) if part and _is_plain(part)), host)
        address = hashlib.sha256(self.key.encode()).hexdigest()[:12]
        self.root = store_folder() / "url" / quote(host.strip("."), safe="") / address

    def ask(self) -> _Offer:
        return _Offer(self.candidates[0], self.key, self._find)

    def _find(self, name: str) -> _Body:
        if name in self.candidates:
            return _Body(self.key, sha256=self.pin)
        return _Body(self.address(name), limit=MAX_CONFIG_BYTES if name in self.configs else None)

    def address(self, name: str) -> str:
        folder = posixpath.dirname(self.parts.path).rstrip("/")
        return self.key if name in self.candidates else self.parts._replace(path=f"{folder}/{quote(name)}").geturl()

    def title(self, model: str) -> str:
        return self._folder if model == "model.onnx" else PurePosixPath(model).stem


def _parse(reference: str) -> _Source:
    return _HubSource(reference) if reference.startswith("hf:") else _UrlSource(reference)


def _is_plain(name: str) -> bool:
    """Whether a name with slashes stays below the folder it is joined to, on every system."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not re.search(r'[\x00-\x1f\\:*?"<>|]', name)


# -- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    file: str
    digests: Mapping[str, str]
    source: str


@contextlib.contextmanager
def _exclusive(area: Path) -> Iterator[Path]:
    """Hold the lock of a folder of the store, and give the folder in which to stage its files."""
    from filelock import FileLock

    folder = store_folder()
    slug = _slug(area.relative_to(folder).as_posix())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "locks").mkdir(exist_ok=True)
        with FileLock(folder / "locks" / f"{slug}.lock"):
            yield folder / "partial" / slug
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise BackboneError(f"{folder} must be a folder to read and write. Got {error} instead.") from error
        shutil.rmtree(folder / "partial" / slug, ignore_errors=True)
        raise BackboneError(
            f"{folder} must have room for the files of a backbone. Its disk is full; make room, or set "
            f"{DIRECTORY_VARIABLE} to a folder on another one."
        ) from error


def _slug(text: str) -> str:
    """A file name that people recognise and no other text shares."""
    return f"{quote(text, safe='')[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _place_record(source: _Source) -> Path:
    return store_folder() / "records" / f"{_slug(source.key)}.json"


def _read_record(source: _Source) -> _Record | None:
    path = _place_record(source)
    try:
        entry = json.loads(path.read_text("utf-8"))
        record = _Record(entry["file"], dict(entry["digests"]), entry["source"])
        if not all(map(_is_plain, record.digests)) or record.file not in record.digests:
            raise ValueError("other names of files")
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"{path} must be a record of sktransfer. Got {error!r} instead; remove it.") from error
    return record


def _write_record(source: _Source, record: _Record) -> None:
    path = _place_record(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"reference": source.key, **vars(record), "recorded": now}
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=2), "utf-8")
    os.replace(temporary, path)


def _describe(source: _Source, record: _Record) -> RemoteBackbone:
    _check_pin(source, record.digests[record.file])
    digests = {source.root / name: digest for name, digest in record.digests.items()}
    path = source.root / record.file
    return RemoteBackbone(source.reference, source.title(record.file), path, digests, record.source)


def _check_pin(source: _Source, digest: str) -> None:
    if source.pin not in (None, digest):
        raise BackboneError(
            f"{source.key} must have the SHA-256 {source.pin}. Got {digest} instead; if its source has the right one "
            f"now, run `sktransfer models accept {source.reference}`."
        )


def _list_missing(source: _Source, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (source.root / name).is_file()]


def _list_external(source: _Source, model: str, path: Path) -> list[str]:
    """Names of the files that hold the weights of `model`, which is now at `path`."""
    names = [name.removeprefix("./") for name in describe_file(path)["external_data"]]
    for name in names:
        if not _is_plain(name):
            raise BackboneError(
                f"The weights of {source.reference} must lie beside it. Got the place {name!r} instead."
            )
    return [posixpath.join(posixpath.dirname(model), name) for name in names]


def _move(staging: Path, folder: Path, names: Iterable[str]) -> None:
    """Rename staged files to their places, the model, which comes first, last."""
    for name in reversed(list(names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, folder / name)
    shutil.rmtree(staging, ignore_errors=True)
    with contextlib.suppress(OSError):  # a change waits there
        staging.parent.rmdir()


# -- fetching ---------------------------------------------------------------------------------------------------------


def _fetch(source: _Source, staging: Path, progress: bool) -> RemoteBackbone:
    record = _read_record(source)
    if record is not None:
        return _restore(source, record, staging, progress)
    found = _take(source, source.candidates[:1])
    if found is not None:
        return found
    try:
        offer = _ask(source, None)
    except _UnreachableError:
        found = _take(source, source.candidates)
        if found is None:
            raise
        return found
    files = _gather(source, offer, staging, progress, keep=True)
    record = _Record(offer.model, {name: digest_file(path) for name, path in files.items()}, offer.source)
    _move(staging, source.root, [name for name, path in files.items() if path == staging / name])
    _write_record(source, record)
    return _describe(source, record)


def _take(source: _Source, candidates: Sequence[str]) -> RemoteBackbone | None:
    """Record the files that somebody put at their places, if none is missing."""
    model = next((name for name in candidates if (source.root / name).is_file()), None)
    if model is None:
        return None
    names = [model, *_list_external(source, model, source.root / model)]
    if _list_missing(source, names):
        return None
    names += [name for name in source.list_configs(model) if (source.root / name).is_file()]
    digests = {name: digest_file(source.root / name) for name in names}
    _check_pin(source, digests[model])
    record = _Record(model, digests, f"{source.key} (put there by hand)")
    _write_record(source, record)
    return _describe(source, record)


def _restore(source: _Source, record: _Record, staging: Path, progress: bool) -> RemoteBackbone:
    """Fetch the files that went missing since they were recorded."""
    offer = _ask(source, record)
    missing = _list_missing(source, record.digests)
    for name in missing:
        _download(_find(source, offer, name), staging / name, source.root / name, progress)
        if (digest := digest_file(staging / name)) != record.digests[name]:
            (staging / name).unlink()
            raise BackboneError(
                f"{name} of {source.reference} must have the SHA-256 {record.digests[name]}, recorded at first use. "
                f"Got {digest} instead; if that is right, run `sktransfer models accept {source.reference}`."
            )
    _move(staging, source.root, missing)
    return _describe(source, record)


def _gather(source: _Source, offer: _Offer, staging: Path, progress: bool, *, keep: bool) -> dict[str, Path]:
    """Where every file of a backbone is: at its place, if `keep`, or else fetched into `staging`."""
    found: dict[str, Path] = {}

    def obtain(name: str) -> None:
        body, place = _find(source, offer, name), source.root / name
        if not (keep and place.is_file()):
            _download(body, staging / name, place, progress)
        elif wrong := _find_mismatch(body, place):
            raise BackboneError(f"{place} must be the file of {source.reference} and {wrong}; remove it.")
        found[name] = place if keep and place.is_file() else staging / name

    obtain(offer.model)
    try:
        external = _list_external(source, offer.model, found[offer.model])
    except BackboneError as error:
        (staging / offer.model).unlink(missing_ok=True)
        reason = str(error).replace(str(found[offer.model]), offer.model)
        raise BackboneError(f"{source.reference} must be an ONNX file that can be used. {reason}") from error
    for name in external:
        obtain(name)
    for name in source.list_configs(offer.model):
        if offer.find(name) is not None:
            with contextlib.suppress(_AbsentError):
                obtain(name)
        if name in found and not _is_json_object(found[name]):  # some servers answer a page to everything
            del found[name]
    return found


def _ask(source: _Source, record: _Record | None) -> _Offer:
    try:
        return _insist(source.ask)
    except _SilenceError as error:
        names = list(record.digests) if record is not None else [source.candidates[0]]
        if record is None and not _list_missing(source, names):
            names = [*_list_external(source, names[0], source.root / names[0]), *names]
        name = next(iter(_list_missing(source, names)), names[0])
        raise _explain_silence(error, source.address(name), source.root / name) from error


def _find(source: _Source, offer: _Offer, name: str) -> _Body:
    body = offer.find(name)
    if body is None:
        raise BackboneError(f"{source.reference} must bring {name!r}. There is no such file in {offer.source}.")
    return body


# -- servers ----------------------------------------------------------------------------------------------------------


class _AbsentError(BackboneError):
    pass


class _UnreachableError(BackboneError):
    pass


class _SilenceError(Exception):
    """No answer, or none that would not be another one in a while."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def _list_repository(source: _HubSource) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The errors of requests, httpx or httpx2, whichever the installed version stands on.
    errors: Any = (OSError, ValueError, TypeError, *HfHubHTTPError.__bases__)
    logger.info("Asking %s for the files of %s", _endpoint(), source.reference)
    try:
        api = HfApi(endpoint=_endpoint(), library_name="sktransfer")
        return api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except errors as error:
        response = getattr(error, "response", None)
        if response is None or response.status_code < 400:
            raise _SilenceError(f"no answer of a Hub ({str(error).strip() or type(error).__name__})") from error
        _refuse_transient(response.status_code, response.headers)
        if response.headers.get("X-Error-Code") == "RevisionNotFound":
            what = f"{source.reference} must name a revision of {source.repository}. There is no {source.revision!r}."
            raise BackboneError(what) from error
        raise BackboneError(
            f"{source.reference} must name a repository that is open to you. {_endpoint()} answered "
            f"{response.status_code}; check the name, or log in with `hf auth login` if it is private or gated."
        ) from error


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _hub_address(repository: str, revision: str, path: str) -> str:
    return f"{_endpoint()}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"


def _find_cached(repository: str, revision: str, path: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, path, revision=revision)
    return found if isinstance(found, str) else None


def _download(body: _Body, target: Path, place: Path, progress: bool) -> None:
    """Fetch a file that belongs to `place`; `target` appears when it is complete and right."""
    if target.is_file() and (body.sha256 or body.blob) and not _find_mismatch(body, target):
        return  # a call that was interrupted later left it
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if body.cached and body.sha256 == digest_file(Path(body.cached)):
        _link(os.path.realpath(body.cached), target)
        return
    part = target.with_name(f"{target.name}.part")
    logger.info("Fetching %s", body.url)
    try:
        _insist(lambda: _receive(body, part, place, progress))
    except _SilenceError as error:
        raise _explain_silence(error, body.url, place) from error
    if wrong := _find_mismatch(body, part):
        part.unlink()
        raise BackboneError(f"{body.url} {wrong}; the wrong file was deleted.")
    os.replace(part, target)


def _link(existing: str, target: Path) -> None:
    try:
        os.link(existing, target)
    except OSError:  # another disk, or none that can
        shutil.copyfile(existing, target)


def _find_mismatch(body: _Body, path: Path) -> str | None:
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


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _insist(attempt: Callable[[], _T]) -> _T:
    """Try again after a pause where a server does not answer."""
    from huggingface_hub import constants

    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if constants.HF_HUB_OFFLINE or any(os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE") for v in variables):
        raise _SilenceError(f"the network is switched off ({' or '.join(variables)})")
    for n in range(ATTEMPTS - 1):
        try:
            return attempt()
        except _SilenceError as error:
            pause = min(PAUSE_SECONDS * 2**n if error.pause is None else error.pause, MAX_PAUSE_SECONDS)
            logger.info("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
    return attempt()


def _explain_silence(error: _SilenceError, address: str, place: Path) -> _UnreachableError:
    return _UnreachableError(f"{address} could not be fetched: {error}. Bring the file by hand and put it at {place}.")


def _refuse_transient(status: int, headers: Mapping[str, str]) -> None:
    if status in _TRANSIENT:
        wait, pause = headers.get("Retry-After") or "", None
        with contextlib.suppress(ValueError):
            date = wait and not wait.isdecimal() and email.utils.parsedate_to_datetime(wait)
            pause = max(0.0, date.timestamp() - time.time()) if date else float(wait)
        raise _SilenceError(f"the server answered {status}", pause)


def _receive(body: _Body, part: Path, place: Path, progress: bool) -> None:
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
            _refuse_transient(response.status_code, response.headers)
            if not response.is_success:
                raise _explain_status(body, response.status_code, place)
            _write(response, body, part, progress)
    except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise BackboneError(f"{body.url} must lead to a file over http or https. Got instead: {error}") from error
    except httpx2.HTTPError as error:
        raise _SilenceError(str(error) or type(error).__name__) from error


@functools.cache
def _open_certificates() -> Any:
    import httpx2

    return httpx2.create_ssl_context()  # takes 50 ms


def _read_token() -> str | None:
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _explain_status(body: _Body, status: int, place: Path) -> BackboneError:
    error = _AbsentError if status in _ABSENT else BackboneError
    remedy = f"check the address, or put the file at {place}"
    if status in (401, 403) and body.hub:
        remedy = "ask for access on its page and log in with `hf auth login`"
    return error(f"{body.url} must be there and open to you. The server answered {status}; {remedy}.")


def _ask_for_rest(body: _Body, part: Path) -> dict[str, str]:
    """Headers that ask for what is missing in `part`, or for everything where the file has changed since."""
    with contextlib.suppress(OSError, ValueError):
        url, tag = part.with_suffix(".tag").read_text("utf-8").split("\n")
        if url == body.url and tag and part.stat().st_size:
            return {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag}
    return {}


def _write(response: Any, body: _Body, part: Path, progress: bool) -> None:
    from tqdm import tqdm

    start, total = _read_extent(response)
    if start not in (0, part.stat().st_size if part.is_file() else 0):
        part.unlink(missing_ok=True)
        raise _SilenceError("it sent another part than was asked for", 0.0)
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
        raise _SilenceError(f"the server sent {part.stat().st_size} of {total} bytes")


def _read_extent(response: Any) -> tuple[int, int | None]:
    """Where the body starts in the file, and the size of the file if it is stated."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2])) if match is not None else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _explain_size(body: _Body, limit: int, got: str) -> BackboneError:
    size = f"have {limit} bytes" if body.size is not None else f"be at most {format_bytes(limit)}"
    return BackboneError(f"{body.url} must {size}. The server sends {got} instead; nothing was kept.")
