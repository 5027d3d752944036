"""References without a stat: URLs, object stores, members of archives."""

import email.utils
import hashlib
import http.server
import io
import os
import signal
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import encode, photo
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import sktransfer.locations
import sktransfer.places
from sktransfer import ImageReadError, MissingExtraError, PretrainedFeatureExtractor, extract
from sktransfer.cache import close_all
from sktransfer.locations import check_place, read_place
from sktransfer.session import forward_passes


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and counts bodies and heads for each path."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.changed, self.bodies, self.heads = {}, {}, Counter(), Counter()
        self.validators = ("etag",)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.bodies[self.path] += 1
        self.answer(body=True)

    def do_HEAD(self):
        self.server.heads[self.path] += 1
        self.answer(body=False)

    def answer(self, body):
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        if "etag" in self.server.validators:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        if "date" in self.server.validators:
            changed = self.server.changed.get(self.path, 1_700_000_000)
            self.send_header("Last-Modified", email.utils.formatdate(changed, usegmt=True))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    for client in sktransfer.locations._clients.values():
        client.close()
    sktransfer.locations._clients.clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def urls(server):
    for seed in range(6):
        server.files[f"/{seed}.png"] = encode(photo(seed))
    return [f"{server.url}/{seed}.png" for seed in range(6)]


def test_a_grid_search_over_urls_fetches_each_body_once_and_the_next_none(server, backbone_file):
    for seed in range(200):
        server.files[f"/{seed}.png"] = encode(photo(seed))
    urls = np.array([f"{server.url}/{seed}.png" for seed in range(200)], dtype=object)
    labels = np.arange(200) % 2
    pipeline = make_pipeline(PretrainedFeatureExtractor(backbone_file), KNeighborsClassifier())
    for expected in (1, 0):
        GridSearchCV(pipeline, {"kneighborsclassifier__n_neighbors": [1, 2, 3, 4]}, cv=5, error_score="raise").fit(
            urls, labels
        )
        assert [server.bodies[f"/{seed}.png"] for seed in range(200)] == [expected] * 200
        server.bodies.clear()
        close_all()


@pytest.mark.parametrize("n_jobs", [2, 4])
def test_the_same_in_workers(server, backbone_file, fresh_workers, n_jobs):
    for seed in range(100):
        server.files[f"/{seed}.png"] = encode(photo(seed))
    urls = np.array([f"{server.url}/{seed}.png" for seed in range(100)], dtype=object)
    pipeline = make_pipeline(PretrainedFeatureExtractor(backbone_file), KNeighborsClassifier())
    search = GridSearchCV(pipeline, {"kneighborsclassifier__n_neighbors": [1, 2]}, cv=3, n_jobs=n_jobs)
    for expected in (1, 0):
        search.fit(urls, np.arange(100) % 2)
        assert [server.bodies[f"/{seed}.png"] for seed in range(100)] == [expected] * 100
        server.bodies.clear()


@pytest.mark.parametrize("validators", [("etag",), ("date",), ("etag", "date")])
def test_a_validator_spares_the_body_in_the_next_process(server, urls, backbone_file, validators):
    server.validators = validators
    vectors = extract(urls, backbone_file)
    close_all()
    np.testing.assert_array_equal(extract(urls, backbone_file), vectors)
    assert set(server.bodies.values()) == {1}
    assert set(server.heads.values()) == {1}


def test_without_a_validator_a_url_is_fetched_once_in_a_process(server, urls, backbone_file, monkeypatch):
    server.validators = ()
    monkeypatch.setattr(sktransfer.places, "FRESH_SECONDS", 0)
    for expected in (1, 2):
        extract(urls, backbone_file)
        extract(urls, backbone_file)
        assert set(server.bodies.values()) == {expected}
        close_all()
    assert not server.heads


def test_a_changed_url_is_fetched_again(server, urls, backbone_file, monkeypatch):
    monkeypatch.setattr(sktransfer.places, "FRESH_SECONDS", 0)
    old = extract(urls, backbone_file)
    server.files["/0.png"] = encode(photo(100))
    new = extract(urls, backbone_file)
    np.testing.assert_array_equal(new[1:], old[1:])
    np.testing.assert_array_equal(new[:1], extract([photo(100)], backbone_file))
    assert sum(server.bodies.values()) == 7


def test_a_url_that_has_just_changed_is_not_trusted(server, urls, backbone_file):
    server.validators = ("date",)
    server.changed["/0.png"] = time.time()
    extract(urls[:1], backbone_file)
    close_all()
    extract(urls[:1], backbone_file)
    assert server.bodies["/0.png"] == 2


def test_ctrl_c_does_not_wait_for_a_server(server, urls, backbone_file, monkeypatch):
    answer = Handler.answer

    def slow(self, body):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(4)
        answer(self, body)

    monkeypatch.setattr(Handler, "answer", slow)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        extract(urls[:1], backbone_file)
    assert time.monotonic() - started < 2
    monkeypatch.setattr(Handler, "answer", answer)
    assert extract(urls, backbone_file).shape == (6, 8)


def test_a_url_equals_its_file(server, urls, backbone_file):
    before = forward_passes()
    np.testing.assert_array_equal(
        extract(urls, backbone_file), extract([server.files[f"/{i}.png"] for i in range(6)], backbone_file)
    )
    assert forward_passes() - before == 6


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{url}/none.png", "the server answered 404 Not Found"),
        ("http://127.0.0.1:9/x.png", "the server did not answer"),
        ("http://", "the server did not answer"),
        ("nosuch://bucket/x.png", "fsspec cannot open it"),
        ("memory://nothing/x.png", "there is no such object"),
        ("{folder}/none.zip::a.png", "no such archive"),
        ("{folder}/bad.zip::a.png", "is a damaged archive"),
        ("{folder}/bad.tar::a.png", "is a damaged archive"),
    ],
)
def test_places_that_cannot_be_read_say_why(server, tmp_path, place, message):
    for name in ("bad.zip", "bad.tar"):
        (tmp_path / name).write_bytes(b"nothing like it")
    place = place.format(url=server.url, folder=tmp_path)
    with pytest.raises(ImageReadError, match=message):
        read_place(place)
    assert check_place(place) is None


def test_object_stores_need_the_extra(monkeypatch, backbone_file):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sktransfer\[remote\]"'):
        extract(["s3://bucket/a.png"], backbone_file)


def test_an_object_store_is_read_through_fsspec(backbone_file):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.png", encode(photo(0)))
    np.testing.assert_array_equal(extract(["memory://bucket/a.png"], backbone_file), extract([photo(0)], backbone_file))
    assert check_place("memory://bucket/a.png") is None  # no ETag: read once in a process


def test_the_tag_of_an_object_is_its_validator():
    validate = sktransfer.locations._validate_remote
    assert validate({"size": 3, "ETag": '"a"'}) != validate({"size": 3, "ETag": '"b"'})
    assert validate({"size": 3, "generation": "1"}) != validate({"size": 3, "generation": "2"})
    assert validate({"size": 3, "mtime": 5.0}) is None


def write_zip(path, seeds):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, seed in seeds.items():
            archive.writestr(name, encode(photo(seed)))


def write_tar(path, seeds):
    with tarfile.open(path, "w:gz" if str(path).endswith("gz") else "w") as archive:
        for name, seed in seeds.items():
            content = encode(photo(seed))
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(("name", "write"), [("a.zip", write_zip), ("a.tar", write_tar), ("a.tar.gz", write_tar)])
def test_members_of_archives(backbone_file, tmp_path, name, write, monkeypatch):
    path = tmp_path / name
    write(path, {f"in/{seed}.png": seed for seed in range(6)})
    places = [f"{name}::in/{seed}.png" for seed in range(6)]
    expected = extract([photo(seed) for seed in range(6)], backbone_file)
    np.testing.assert_array_equal(extract(places, backbone_file, root=tmp_path, n_jobs=3), expected)
    write(path, {f"in/{seed}.png": seed + 1 for seed in range(6)})
    found = extract(places, backbone_file, root=tmp_path, n_jobs=3)
    np.testing.assert_array_equal(found[:5], expected[1:])
    with pytest.raises(ImageReadError, match=r"there is no 'in/9.png' in"):
        extract([f"{name}::in/9.png"], backbone_file, root=tmp_path)
    time.sleep(2.1)
    extract(places, backbone_file, root=tmp_path)
    close_all()
    monkeypatch.setattr(sktransfer.locations._Archive, "read", lambda *args: pytest.fail("was read"))
    np.testing.assert_array_equal(extract(places, backbone_file, root=tmp_path), found)


def test_a_file_may_have_colons_in_its_name(backbone_file, tmp_path):
    (tmp_path / "a::b.png").write_bytes(encode(photo(0)))
    np.testing.assert_array_equal(
        extract(["a::b.png"], backbone_file, root=tmp_path), extract([photo(0)], backbone_file)
    )
