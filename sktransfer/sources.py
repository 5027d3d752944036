"""What a remote reference means: ``hf:owner/repo``, ``hf:owner/repo/file.onnx@revision`` or a URL."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from sktransfer import downloads
from sktransfer.downloads import Body, SilenceError, refuse_transient
from sktransfer.exceptions import BackboneError
from sktransfer.folders import user_folder

MAX_CONFIG_BYTES = 10**7
URL_CONFIGS = ("preprocessor_config.json", "preprocess.json")
HUB_CONFIGS = (*URL_CONFIGS, "processor_config.json", "config.json", "open_clip_config.json")

_NAME = r"(?![\w.-]*(?:--|\.\.))\b[\w.-]{1,96}\b"
_REFERENCE = re.compile(rf"hf:({_NAME}/{_NAME}(?<!\.git))((?:/.*?)?)(?:@(\w(?:(?!\.\.)[\w./-])*))?", re.ASCII)

logger = logging.getLogger(__name__)


def store_folder() -> Path:
    """The folder of everything that was fetched; it need not exist."""
    return user_folder() / "sktransfer-models"


@dataclass(frozen=True)
class Offer:
    """What a source has now."""

    model: str
    source: str
    find: Callable[[str], Body | None]
    license: str = "unknown"  # as the Hub states it


class Source:
    """A parsed reference. Names of files are relative to `root`, with slashes."""

    reference: str  # as the user wrote it
    key: str  # what it is recorded under
    root: Path
    pin: str | None = None  # SHA-256 of the model
    candidates: Sequence[str]  # names that the model may have; the first is taken without asking
    configs: Sequence[str] = URL_CONFIGS

    def ask(self) -> Offer:
        """What the source has now; may ask a server."""
        raise NotImplementedError

    def address(self, name: str) -> str:
        """Where people find a file of this name."""
        raise NotImplementedError

    def title(self, model: str) -> str:
        """What the backbone is called whose model this is."""
        raise NotImplementedError

    def list_configs(self, model: str) -> list[str]:
        """Names that the preprocessing of `model` may have."""
        folder = posixpath.dirname(model)
        folders = [folder, posixpath.dirname(folder)] if posixpath.basename(folder) == "onnx" else [folder]
        return [posixpath.join(folder, name) for folder in folders for name in self.configs]


class HubSource(Source):
    """A repository of the Hub, or what lies in it."""

    configs = HUB_CONFIGS

    def __init__(self, reference: str) -> None:
        match = _REFERENCE.fullmatch(reference)
        path = match[2].strip("/") if match is not None else ""
        if match is None or (path and not is_plain(path)):
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

    def ask(self) -> Offer:  # noqa: D102
        info = _list_repository(self)
        files = {entry.rfilename: entry for entry in info.siblings or () if is_plain(entry.rfilename)}
        commit = info.sha or self.revision

        def find(name: str) -> Body | None:
            if name not in files:
                return None
            url, lfs = hub_address(self.repository, commit, name), files[name].lfs
            if lfs is None:
                return Body(url, files[name].size, blob=files[name].blob_id, hub=True)
            return Body(url, lfs.size, lfs.sha256, hub=True, cached=find_cached(self.repository, commit, name))

        model = self._choose(files)
        tags = [tag for tag in info.tags or () if isinstance(tag, str) and tag.startswith("license:")]
        license_ = tags[0].removeprefix("license:") if tags else "unknown"
        return Offer(model, f"hf:{self.repository}@{commit}/{model}", find, license_)

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

    def address(self, name: str) -> str:  # noqa: D102
        if name in self.candidates and not self.is_file:  # which of them it is, only the Hub knows
            return "/".join(filter(None, [_endpoint(), self.repository, "tree", self.revision, self.path]))
        return hub_address(self.repository, self.revision, name)

    def title(self, model: str) -> str:  # noqa: D102
        folder = posixpath.dirname(model)
        folder = posixpath.dirname(folder) if posixpath.basename(folder) == "onnx" else folder
        base = posixpath.basename(folder or self.repository)
        stem = PurePosixPath(model).stem
        return f"{base}-{stem[6:]}" if stem.startswith("model_") else base if stem == "model" else stem


class UrlSource(Source):
    """A file on any server, and what lies beside it."""

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
        self.candidates = [name if name.endswith(".onnx") and is_plain(name) else "model.onnx"]
        self._folder = next((part for part in reversed(folders) if part and is_plain(part)), host)
        address = hashlib.sha256(self.key.encode()).hexdigest()[:12]
        self.root = store_folder() / "url" / quote(host.strip("."), safe="") / address

    def ask(self) -> Offer:  # noqa: D102
        return Offer(self.candidates[0], self.key, self._find)

    def _find(self, name: str) -> Body:
        if name in self.candidates:
            return Body(self.key, sha256=self.pin)
        return Body(self.address(name), limit=MAX_CONFIG_BYTES if name in self.configs else None)

    def address(self, name: str) -> str:  # noqa: D102
        folder = posixpath.dirname(self.parts.path).rstrip("/")
        return self.key if name in self.candidates else self.parts._replace(path=f"{folder}/{quote(name)}").geturl()

    def title(self, model: str) -> str:  # noqa: D102
        return self._folder if model == "model.onnx" else PurePosixPath(model).stem


def parse_reference(reference: str) -> Source:
    """The source that a reference names."""
    return HubSource(reference) if reference.startswith("hf:") else UrlSource(reference)


def is_plain(name: str) -> bool:
    """Whether a name with slashes stays below the folder it is joined to, on every system."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not re.search(r'[\x00-\x1f\\:*?"<>|]', name)


def _list_repository(source: HubSource) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The errors of requests, httpx or httpx2, whichever the installed version stands on.
    errors: Any = (OSError, ValueError, TypeError, *HfHubHTTPError.__bases__)
    logger.info("Asking %s for the files of %s", _endpoint(), source.reference)
    try:
        api = HfApi(endpoint=_endpoint(), library_name="sktransfer")
        return api.model_info(
            source.repository, revision=source.revision, files_metadata=True, timeout=downloads.TIMEOUT_SECONDS
        )
    except errors as error:
        response = getattr(error, "response", None)
        if response is None or response.status_code < 400:
            raise SilenceError(f"no answer of a Hub ({str(error).strip() or type(error).__name__})") from error
        refuse_transient(response.status_code, response.headers)
        if response.headers.get("X-Error-Code") == "RevisionNotFound":
            what = f"{source.reference} must name a revision of {source.repository}. There is no {source.revision!r}."
            raise BackboneError(what) from error
        raise BackboneError(
            f"{source.reference} must name a repository that is open to you. {_endpoint()} answered "
            f"{response.status_code}; check the name, or log in with `hf auth login` if it is private or gated."
        ) from error


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_address(repository: str, revision: str, path: str) -> str:
    """Where the Hub serves a file."""
    return f"{_endpoint()}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"


def find_cached(repository: str, revision: str, path: str) -> str | None:
    """Where Hugging Face's own cache has a file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, path, revision=revision)
    return found if isinstance(found, str) else None
