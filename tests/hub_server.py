"""A server on this machine that plays the Hub and any other host."""

import hashlib
import http.server
import json
import re
import threading
import time
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.utils._http
from conftest import IMAGENET, small_classifier

import sktransfer.downloads

CONFIG = json.dumps({"size": 36, "crop_size": 32, **IMAGENET}).encode()
MODEL = small_classifier(0).SerializeToString()
OTHER = small_classifier(1).SerializeToString()
COMMIT = "c" * 40  # of the revision main


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def find_commit(revision):
    return COMMIT if revision in ("main", COMMIT) else hashlib.sha1(revision.encode()).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Repositories under /api/models and /owner/repo/resolve, anything in `pages` at its own path.

    `plans` holds, for a path, what happens to its next requests: a status, (status, headers), "cut", "hang", "stall",
    "ignore range", or None for nothing special.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.pages, self.plans, self.stated = {}, {}, {}, {}
        self.requests, self.lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass

    def list_repository(self, name, revision):
        files = self.repositories.get(name, {}).get(revision)
        if files is None:
            code = "RevisionNotFound" if name in self.repositories else "RepoNotFound"
            return 404, {"X-Error-Code": code}, b""
        siblings = [{"rfilename": path, "size": len(body), **self.state(path, body)} for path, body in files.items()]
        info = {"id": name, "sha": find_commit(revision), "siblings": siblings, "tags": ["onnx", "license:mit"]}
        return 200, {}, json.dumps(info).encode()

    def state(self, path, body):
        if path in self.stated:
            return self.stated[path]
        if path.endswith((".onnx", "data")):
            return {"lfs": {"sha256": sha256(body), "size": len(body), "pointerSize": 130}}
        return {"blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}

    def find(self, path):
        if match := re.fullmatch("/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self.list_repository(match[1], unquote(match[2]))
        if match := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            revisions = self.repositories.get(match[1], {})
            commits = {find_commit(revision): files for revision, files in revisions.items()}
            files = (revisions | commits).get(unquote(match[2]), {})
            body = files.get(unquote(match[3]))
        else:
            body = self.pages.get(path)
        return (404, {}, b"") if body is None else (200, {"ETag": f'"{sha256(body)}"', "X-Repo-Commit": COMMIT}, body)

    def count(self, path):
        return sum(request[0].endswith(path) for request in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body after its headers would wait 40 ms for the client's acknowledgement

    def do_GET(self):
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.requests.append((path, dict(self.headers)))
            plans = self.server.plans.get(path, [])
            plan = plans.pop(0) if plans else None
        status, headers, body = self.server.find(path)
        if isinstance(plan, (int, tuple)):
            status, headers, body = (plan, {}, b"") if isinstance(plan, int) else (*plan, b"")
        if plan == "stall":
            time.sleep(0.5)
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if (
            begin
            and status == 200
            and plan != "ignore range"
            and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        ):
            status, headers = 206, {**headers, "Content-Range": f"bytes {begin[1]}-{len(body) - 1}/{len(body)}"}
            body = body[int(begin[1]) :]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if plan in ("cut", "hang") else body)
        self.close_connection = plan in ("cut", "hang")
        if plan == "hang":
            time.sleep(5)

    def log_message(self, *args):
        pass


def serve(monkeypatch, tmp_path):
    """A fixture: the server, with huggingface_hub pointed at it."""
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    constants = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_CACHE": str(tmp_path / "hf")}
    for name, value in {**constants, "HF_TOKEN_PATH": str(tmp_path / "token")}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(sktransfer.downloads, "PAUSE_SECONDS", 0.01)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    sessions = huggingface_hub.utils._http
    (sessions.close_session if hasattr(sessions, "close_session") else sessions.reset_sessions)()
    server.shutdown()
    server.server_close()
    thread.join()
