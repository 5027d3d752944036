"""Backbones that lie elsewhere: from a registered name, ``hf:owner/repo`` or a URL to verified local files.

A file is fetched into ``partial``, checked there, and renamed to its place. What a reference meant at its first use is
kept in ``records``, which outlive the files. No server is asked for what lies at its place already.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from sktransfer.digests import digest_file
from sktransfer.downloads import (
    AbsentError,
    Body,
    SilenceError,
    UnreachableError,
    download,
    explain_silence,
    find_mismatch,
    insist,
)
from sktransfer.exceptions import BackboneError
from sktransfer.folders import DIRECTORY_VARIABLE
from sktransfer.network import describe_file
from sktransfer.sources import Offer, Source, find_cached, hub_address, is_plain, parse_reference, store_folder


@dataclass(frozen=True)
class RemoteBackbone:
    """The files of a reference, as they were recorded at its first use."""

    reference: str
    name: str
    path: Path  # of the .onnx file
    digests: Mapping[Path, str]  # SHA-256 of every file: the model, its external data, its preprocessing
    source: str  # for people: "hf:owner/repo@commit/path", or the URL
    license: str = "unknown"  # as the Hub states it


@dataclass(frozen=True)
class Change:
    """What a reference meant, and what its source has now: names of files and their SHA-256."""

    reference: str
    old: Mapping[str, str]
    new: Mapping[str, str]
    file: str = field(repr=False)  # the model among `new`
    source: str = field(repr=False)
    license: str = field(repr=False)


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
            cached = find_cached(repository, revision, path)
            body = Body(hub_address(repository, revision, path), n_bytes, sha256, hub=True, cached=cached)
            download(body, staging / "new" / place.name, place, progress)
            _move(staging / "new", place.parent, [place.name])
    return place


def find_reference(reference: str) -> RemoteBackbone | None:
    """What `fetch_reference` returns, where it was used before and its files are there; asks no server."""
    source = parse_reference(reference)
    record = _read_record(source)
    if record is None or _list_missing(source, record.digests):
        return None
    return _describe(source, record)


def list_references() -> list[RemoteBackbone]:
    """What was fetched by reference and is still there."""
    found = []
    for path in sorted((store_folder() / "records").glob("*.json")):
        with contextlib.suppress(BackboneError, KeyError, TypeError, ValueError):  # a damaged record says so when used
            found.append(find_reference(json.loads(path.read_text("utf-8"))["reference"]))
    return [remote for remote in found if remote is not None]


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
        source = parse_reference(reference)
        with _exclusive(source.root) as staging:
            found = find_reference(reference) or _fetch(source, staging / "new", progress)
    return found


def fetch_change(reference: str, *, progress: bool = False) -> Change:
    """Fetch what the source of a reference has now, beside what is in use; `accept_change` takes it."""
    source = parse_reference(reference)
    with _exclusive(source.root) as staging:
        record = _read_record(source)
        offer = _ask(source, record)
        found = _gather(source, offer, staging / "change", progress, keep=False)
        new = {name: digest_file(path) for name, path in found.items()}
    return Change(
        reference, record.digests if record is not None else {}, new, offer.model, offer.source, offer.license
    )


def accept_change(change: Change) -> RemoteBackbone:
    """Take the files that `fetch_change` fetched, and record their digests."""
    source = parse_reference(change.reference)
    record = _Record(change.file, change.new, change.source, change.license)
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


# -- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    file: str
    digests: Mapping[str, str]
    source: str
    license: str = "unknown"


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


def _place_record(source: Source) -> Path:
    return store_folder() / "records" / f"{_slug(source.key)}.json"


def _read_record(source: Source) -> _Record | None:
    path = _place_record(source)
    try:
        entry = json.loads(path.read_text("utf-8"))
        record = _Record(entry["file"], dict(entry["digests"]), entry["source"], str(entry.get("license", "unknown")))
        if not all(map(is_plain, record.digests)) or record.file not in record.digests:
            raise ValueError("other names of files")
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"{path} must be a record of sktransfer. Got {error!r} instead; remove it.") from error
    return record


def _write_record(source: Source, record: _Record) -> None:
    path = _place_record(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"reference": source.key, **vars(record), "recorded": now}
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=2), "utf-8")
    os.replace(temporary, path)


def _describe(source: Source, record: _Record) -> RemoteBackbone:
    _check_pin(source, record.digests[record.file])
    digests = {source.root / name: digest for name, digest in record.digests.items()}
    path = source.root / record.file
    return RemoteBackbone(source.reference, source.title(record.file), path, digests, record.source, record.license)


def _check_pin(source: Source, digest: str) -> None:
    if source.pin not in (None, digest):
        raise BackboneError(
            f"{source.key} must have the SHA-256 {source.pin}. Got {digest} instead; if its source has the right one "
            f"now, run `sktransfer models accept {source.reference}`."
        )


def _list_missing(source: Source, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (source.root / name).is_file()]


def _list_external(source: Source, model: str, path: Path) -> list[str]:
    """Names of the files that hold the weights of `model`, which is now at `path`."""
    names = [name.removeprefix("./") for name in describe_file(path)["external_data"]]
    for name in names:
        if not is_plain(name):
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


def _fetch(source: Source, staging: Path, progress: bool) -> RemoteBackbone:
    record = _read_record(source)
    if record is not None:
        return _restore(source, record, staging, progress)
    found = _take(source, source.candidates[:1])
    if found is not None:
        return found
    try:
        offer = _ask(source, None)
    except UnreachableError:
        found = _take(source, source.candidates)
        if found is None:
            raise
        return found
    files = _gather(source, offer, staging, progress, keep=True)
    digests = {name: digest_file(path) for name, path in files.items()}
    record = _Record(offer.model, digests, offer.source, offer.license)
    _move(staging, source.root, [name for name, path in files.items() if path == staging / name])
    _write_record(source, record)
    return _describe(source, record)


def _take(source: Source, candidates: Sequence[str]) -> RemoteBackbone | None:
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


def _restore(source: Source, record: _Record, staging: Path, progress: bool) -> RemoteBackbone:
    """Fetch the files that went missing since they were recorded."""
    offer = _ask(source, record)
    missing = _list_missing(source, record.digests)
    for name in missing:
        download(_find(source, offer, name), staging / name, source.root / name, progress)
        if (digest := digest_file(staging / name)) != record.digests[name]:
            (staging / name).unlink()
            raise BackboneError(
                f"{name} of {source.reference} must have the SHA-256 {record.digests[name]}, recorded at first use. "
                f"Got {digest} instead; if that is right, run `sktransfer models accept {source.reference}`."
            )
    _move(staging, source.root, missing)
    return _describe(source, record)


def _gather(source: Source, offer: Offer, staging: Path, progress: bool, *, keep: bool) -> dict[str, Path]:
    """Where every file of a backbone is: at its place, if `keep`, or else fetched into `staging`."""
    found: dict[str, Path] = {}

    def obtain(name: str) -> None:
        body, place = _find(source, offer, name), source.root / name
        if not (keep and place.is_file()):
            download(body, staging / name, place, progress)
        elif wrong := find_mismatch(body, place):
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
            with contextlib.suppress(AbsentError):
                obtain(name)
        if name in found and not _is_json_object(found[name]):  # some servers answer a page to everything
            del found[name]
    return found


def _ask(source: Source, record: _Record | None) -> Offer:
    try:
        return insist(source.ask)
    except SilenceError as error:
        names = list(record.digests) if record is not None else [source.candidates[0]]
        if record is None and not _list_missing(source, names):
            names = [*_list_external(source, names[0], source.root / names[0]), *names]
        name = next(iter(_list_missing(source, names)), names[0])
        raise explain_silence(error, source.address(name), source.root / name) from error


def _find(source: Source, offer: Offer, name: str) -> Body:
    body = offer.find(name)
    if body is None:
        raise BackboneError(f"{source.reference} must bring {name!r}. There is no such file in {offer.source}.")
    return body


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False
