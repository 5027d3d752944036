"""References without a stat: URLs, object stores, members of archives."""

import base64
import contextlib
import email.utils
import errno
import gzip
import hashlib
import http.server
import io
import itertools
import os
import signal
import socket
import sys
import tarfile
import threading
import time
import tracemalloc
import types
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
from sktransfer.locations import check_place, locate, read_place
from sktransfer.session import forward_passes


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and counts bodies and heads for each path."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.changed, self.bodies, self.heads = {}, {}, Counter(), Counter()
        self.validators = ("etag",)
        self.scripts, self.headers = {}, []  # path -> parts to send instead, once each
        self.pause = 0  # after each part
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body after its headers would wait 40 ms for the client's acknowledgement

    def do_GET(self):
        self.server.bodies[self.path] += 1
        self.server.headers.append(self.headers)
        if self.server.scripts.get(self.path):
            self.play(self.server.scripts[self.path].pop(0))
        else:
            self.answer(body=True)

    def do_HEAD(self):
        self.server.heads[self.path] += 1
        self.answer(body=False)

    def play(self, parts):
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            for part in parts:
                self.wfile.write(part)
                time.sleep(self.server.pause)

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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(sktransfer.locations, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def small_limit(monkeypatch):
    """Images of 1000 bytes at most."""
    monkeypatch.setattr(sktransfer.locations, "MAX_BYTES", 1000)


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


@pytest.mark.parametrize("n_jobs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_in_workers(server, own_backbone_file, workers, n_jobs):
    for seed in range(100):
        server.files[f"/{seed}.png"] = encode(photo(seed))
    urls = np.array([f"{server.url}/{seed}.png" for seed in range(100)], dtype=object)
    pipeline = make_pipeline(PretrainedFeatureExtractor(own_backbone_file), KNeighborsClassifier())
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
    answer, over = Handler.answer, threading.Event()

    def slow(self, body):
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(4)
        answer(self, body)

    monkeypatch.setattr(Handler, "answer", slow)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        extract(urls[:1], backbone_file)
    assert time.monotonic() - started < 2
    over.set()
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
        ("http://127.0.0.1:9/x.png", r"the connection failed: .* \(3 attempts\)"),
        ("http://", "it cannot be fetched: "),
        ("http://a:b/x.png", "it cannot be fetched: Invalid port"),
        ("http://a..b/x.png", "it cannot be fetched: encoding with 'idna' codec failed"),
        ("file://elsewhere/x.png", "a file URL must name an absolute path on this machine"),
        ("nosuch://bucket/x.png", "fsspec cannot open it"),
        ("memory://nothing/x.png", "there is no such object"),
        ("{folder}/none.zip::a.png", "the archive '.*none.zip' cannot be opened: no such file"),
        ("{folder}/folder.zip::a.png", "cannot be opened: it is a folder"),
        ("{folder}/n\0.zip::a.png", "cannot be opened: its name holds a NUL character"),
        ("{folder}/bad.zip::a.png", "is a damaged archive"),
        ("{folder}/bad.tar::a.png", "is a damaged archive"),
    ],
)
def test_places_that_cannot_be_read_say_why(server, tmp_path, place, message):
    for name in ("bad.zip", "bad.tar"):
        (tmp_path / name).write_bytes(b"nothing like it")
    (tmp_path / "folder.zip").mkdir()
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
    monkeypatch.setattr(sktransfer.locations, "RACY_NS", 100_000_000)
    time.sleep(0.2)
    extract(places, backbone_file, root=tmp_path)
    close_all()
    monkeypatch.setattr(sktransfer.locations._Archive, "read", lambda *args: pytest.fail("was read"))
    np.testing.assert_array_equal(extract(places, backbone_file, root=tmp_path), found)


def test_a_file_may_have_colons_in_its_name(backbone_file, tmp_path):
    (tmp_path / "a::b.png").write_bytes(encode(photo(0)))
    np.testing.assert_array_equal(
        extract(["a::b.png"], backbone_file, root=tmp_path), extract([photo(0)], backbone_file)
    )


# -- references that name a place -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("file:///data/a%20b%23.png", "/data/a b#.png"),
        ("file://localhost/data/a.png", "/data/a.png"),
        ("FILE:///data/%ff.png", "/data/\udcff.png"),
        ("file:///data/a.zip::b.png", "/data/a.zip::b.png"),
        ("file://elsewhere/a.png", "file://elsewhere/a.png"),
        ("file://", "file://"),
        ("/data/a%20b.png", "/data/a%20b.png"),
        ("~/a.png", "/root/~/a.png"),
        ("/9j/a.png", "/9j/a.png"),
        ({"bytes": None, "path": "file:///a.png"}, "/a.png"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_a_reference_names_one_place(reference, place):
    assert locate(reference, "/root") == place


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_string_that_holds_an_image_names_no_place(image_format):
    text = base64.b64encode(encode(photo(0), image_format)).decode()
    assert locate(text, None) is None
    assert locate(f"data:image/png;base64,{text}", None) is None


def test_a_file_url_is_read_as_its_path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (tmp_path / "a b.png").write_bytes(b"content")
    assert read_place(locate((tmp_path / "a b.png").as_uri(), None))[0] == b"content"


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.zip")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listener.bind("socket")
        for place in ("/dev/zero", "/dev/stdin", f"{tmp_path}/pipe", f"{tmp_path}/socket", f"{tmp_path}/pipe.zip::a"):
            with pytest.raises(ImageReadError, match="it is not a regular file"):
                read_place(place)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0.png", "its name holds a NUL character"),
        ("a" * 5000, "the name is too long for a file"),
        ("\ud800.png", "can't encode"),
        ("file/a.png", "not a directory"),
        ("", "it is a folder"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="what POSIX says")
def test_names_that_no_file_can_have_say_why(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(ImageReadError, match=message):
        read_place(f"{tmp_path}/{name}")
    assert check_place(f"{tmp_path}/{name}\0") is None


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(sktransfer.locations, "open", refuse, raising=False)
    with pytest.raises(ImageReadError, match="^permission denied$"):
        read_place(str(tmp_path / "a.png"))


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="a file of Linux")
def test_a_file_without_a_size_is_read_to_its_end(monkeypatch):
    with open("/proc/version", "rb") as file:
        assert read_place("/proc/version")[0] == file.read()
    monkeypatch.setattr(sktransfer.locations, "MAX_BYTES", 5)
    with pytest.raises(ImageReadError, match="it has 6 B or more, and an image may have 5 B at most"):
        read_place("/proc/version")


# -- sizes ------------------------------------------------------------------------------------------------------------


def write_noise(path, size):
    """A file, or the member `a` of an archive, of `size` bytes."""
    content = np.random.default_rng(0).bytes(size)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("a", content)
    elif path.suffix == ".tar":
        (path.parent / "a").write_bytes(content)
        with tarfile.open(path, "w") as archive:
            archive.add(path.parent / "a", "a")
    else:
        path.write_bytes(content)
    return str(path) if path.suffix == ".png" else f"{path}::a"


@pytest.mark.parametrize("name", ["a.png", "a.zip", "a.tar"])
def test_a_file_or_member_has_at_most_so_many_bytes(tmp_path, small_limit, name):
    assert len(read_place(write_noise(tmp_path / name, 1000))[0]) == 1000
    place = write_noise(tmp_path / f"more-{name}", 1001)
    with pytest.raises(ImageReadError, match="^it has 1.0 kB, and an image may have 1.0 kB at most$"):
        read_place(place)


def test_the_limit_is_what_the_documentation_says():
    with pytest.raises(ImageReadError, match="it has 300.0 MB, and an image may have 268.4 MB at most"):
        sktransfer.locations._check_size(300_000_000)


def test_an_object_has_at_most_so_many_bytes(small_limit, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, size in {"none": 0, "most": 1000, "more": 1001}.items():
        memory.pipe(f"/sizes/{name}", bytes(size))
    assert [len(read_place(f"memory://sizes/{name}")[0]) for name in ("none", "most")] == [0, 1000]
    with pytest.raises(ImageReadError, match="^it has 1.0 kB, and an image"):
        read_place("memory://sizes/more")
    monkeypatch.setattr(type(memory), "info", lambda self, path: {"name": path, "size": None, "type": "file"})
    with pytest.raises(ImageReadError, match="^it has 1.0 kB or more, and an image"):
        read_place("memory://sizes/more")


def head(*lines, status="200 OK"):
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *lines, "", ""]).encode()


def chunks(content):
    return (b"%x\r\n%b\r\n" % (len(content), content) for _ in itertools.count())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([head("Content-Length: 5000"), b"a"], "it has 5.0 kB, and an image may have 1.0 kB at most"),
        ([head("Transfer-Encoding: chunked"), b"2000\r\n", bytes(8192)], "it has .* kB or more, and an image"),
        (itertools.chain([head("Transfer-Encoding: chunked")], chunks(b"a")), "it has 1.0 kB or more, and an image"),
        (itertools.chain([head()], itertools.repeat(b"a" * 99)), "it has .* kB or more, and an image may"),
        ([head("Content-Encoding: gzip"), gzip.compress(bytes(10**7))], r"it has 1.0 MB or more, and"),
        (itertools.chain([head("Location: /", status="302 Found")], itertools.repeat(bytes(99))), "it has .* or more"),
    ],
    ids=["stated", "one chunk", "many chunks", "endless", "gzip bomb", "endless redirect"],
)
def test_a_server_sends_at_most_so_many_bytes(server, small_limit, parts, message):
    server.scripts["/a.png"] = [parts]
    with pytest.raises(ImageReadError, match=message):
        read_place(f"{server.url}/a.png")
    assert server.bodies["/a.png"] == 1


# -- servers that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_asked_again(server, urls, status):
    server.scripts["/0.png"] = [[head(status=f"{status} Later")], [head(status=f"{status} Later")]]
    assert read_place(urls[0])[0] == server.files["/0.png"]
    assert server.bodies["/0.png"] == 3


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (403, 1), (410, 1), (501, 1), (503, 3)])
def test_a_status_is_named_and_only_passing_ones_are_asked_again(server, urls, status, attempts):
    server.scripts["/0.png"] = [[head("Content-Length: 0", status=f"{status} Word")] for _ in range(3)]
    expected = rf"^the server answered {status} (Word|\(3 attempts\))$"
    with pytest.raises(ImageReadError, match=expected):
        read_place(urls[0])
    assert server.bodies["/0.png"] == attempts


def test_a_body_that_breaks_off_is_asked_again(server, urls):
    cut = [head("Content-Length: 100"), b"only this"]
    server.scripts["/0.png"] = [cut, cut]
    assert read_place(urls[0])[0] == server.files["/0.png"]
    server.scripts["/0.png"] = [cut, cut, cut]
    with pytest.raises(ImageReadError, match=r"the connection failed: peer closed .* \(3 attempts\)"):
        read_place(urls[0])


@pytest.mark.parametrize(
    ("headers", "pauses"),
    [
        ([], [0.5, 1.0]),
        (["Retry-After: 3"], [3.0, 3.0]),
        (["Retry-After: 0"], [0.0, 0.0]),
        (["Retry-After: 86400"], [10.0, 10.0]),
        (["Retry-After: Fri, 01 Jan 2100 00:00:00 GMT"], [10.0, 10.0]),
        (["Retry-After: soon"], [0.5, 1.0]),
    ],
)
def test_the_pause_is_as_the_server_asks_within_limits(server, urls, monkeypatch, headers, pauses):
    slept = []
    clock = {"time": time.time, "monotonic": time.monotonic, "sleep": slept.append}
    monkeypatch.setattr(sktransfer.locations, "time", types.SimpleNamespace(**clock))
    monkeypatch.setattr(sktransfer.locations, "PAUSE_SECONDS", 0.5)
    server.scripts["/0.png"] = [[head(*headers, status="503 Busy")] for _ in range(2)]
    assert read_place(urls[0])[0] == server.files["/0.png"]
    assert slept == pauses


def test_a_server_that_drips_is_given_up(server, urls, monkeypatch):
    monkeypatch.setattr(sktransfer.locations, "DEADLINE_SECONDS", 0.5)
    server.pause = 0.01
    server.scripts["/0.png"] = [itertools.chain([head("Content-Length: 1000000")], itertools.repeat(b"a"))]
    with pytest.raises(ImageReadError, match=r"the server had not sent all of it after 0\.5 s"):
        read_place(urls[0])
    assert server.bodies["/0.png"] == 1


def test_a_silent_server_is_not_asked_again_after_the_deadline(server, urls, monkeypatch):
    monkeypatch.setattr(sktransfer.locations, "DEADLINE_SECONDS", 0.1)
    server.pause = 0.2
    server.scripts["/0.png"] = [[head("Content-Length: 10"), b"a"]]
    with pytest.raises(ImageReadError, match=r"the connection failed: timed out \(1 attempt\)"):
        read_place(urls[0])


def test_redirects_are_followed_so_many_times(server, urls):
    def lead(to):
        return [head(f"Location: {to}", "Content-Length: 4", status="302 Found"), b"gone"]

    server.scripts = {f"/{n}": [lead(f"/{n + 1}")] for n in range(4)} | {"/4": [lead(urls[0])]}
    assert read_place(f"{server.url}/0")[0] == server.files["/0.png"]
    server.scripts["/loop"] = [lead("/loop") for _ in range(9)]
    with pytest.raises(ImageReadError, match="the server redirects more than 5 times"):
        read_place(f"{server.url}/loop")
    server.scripts["/away"] = [lead("gopher://secret/x")]
    with pytest.raises(ImageReadError, match="^it cannot be fetched: (?!.*secret)"):
        read_place(f"{server.url}/away")


def test_a_request_says_who_asks_and_wants_no_compression(server, urls):
    read_place(urls[0].replace("http:", "HTTP:"))
    assert server.headers[0]["User-Agent"] == "sktransfer"
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.files["http://images.invalid/a.png"] = b"content"
    assert read_place("http://images.invalid/a.png")[0] == b"content"


@pytest.mark.parametrize("address", ["{url}/none.png", "{url}/cut", "http://me:secret@127.0.0.1:9/a", "ftp://{port}/a"])
def test_an_error_holds_no_token(server, address):
    server.scripts["/cut?token=secret"] = [[head("Content-Length: 9")]] * 3
    place = address.format(url=server.url, port="127.0.0.1:9") + "?token=secret"
    with pytest.raises(ImageReadError) as caught:
        read_place(place)
    assert "secret" not in str(caught.value)


# -- object stores that fail ------------------------------------------------------------------------------------------


@pytest.fixture
def store():
    """A file system `broken://` whose reads raise the `errors`, one each, and then give bytes."""
    import fsspec

    class Broken(fsspec.AbstractFileSystem):
        protocol, errors, reads = "broken", [], 0

        def info(self, path, **kwargs):
            return {"name": path, "size": 7, "type": "directory" if path.endswith("folder") else "file", "etag": "x"}

        def cat_file(self, path, start=None, end=None, **kwargs):
            type(self).reads += 1
            if self.errors:
                raise self.errors.pop(0)
            return b"content"

    fsspec.register_implementation("broken", Broken, clobber=True)
    return Broken


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError(), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_an_object_store_that_fails_is_asked_again(store, error):
    store.errors = [error] * 2
    assert read_place("broken://b/a.png") == (b"content", b"['etag=x'] 7")
    store.errors = [error] * 3
    with pytest.raises(ImageReadError, match=r"^fsspec cannot read it: .*(reset|TimeoutError) \(3 attempts\)$"):
        read_place("broken://b/a.png")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Forbidden"), "fsspec cannot read it: Forbidden"),
        (FileNotFoundError("a.png"), "there is no such object"),
        (ValueError("bad bucket\nand more"), "fsspec cannot read it: bad bucket"),
        (RuntimeError(), "fsspec cannot read it: RuntimeError"),
        (Exception("no 'https://x.y/a.png?token=secret'."), "fsspec cannot read it: no 'https://...'"),
    ],
)
def test_whatever_a_store_raises_is_one_clause(store, error, message):
    store.errors = [error]
    with pytest.raises(ImageReadError) as caught:
        read_place("broken://b/a.png")
    assert (str(caught.value), caught.value.__cause__, store.reads) == (message, error, 1)


def test_a_folder_of_a_store_is_no_image(store):
    with pytest.raises(ImageReadError, match="it is a folder, not an image"):
        read_place("broken://b/folder")


def test_memory_that_runs_out_is_no_matter_of_the_image(store):
    store.errors = [MemoryError("all gone")]
    with pytest.raises(MemoryError, match="all gone"):
        read_place("broken://b/a.png")


def test_a_store_whose_validator_cannot_be_had_has_none(store, monkeypatch):
    def fail(self, path):
        raise RuntimeError("no credentials")

    assert check_place("broken://b/a.png") == b"['etag=x'] 7"
    monkeypatch.setattr(store, "info", fail)
    assert check_place("broken://b/a.png") is None


def test_a_store_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImageReadError, match=r"fsspec cannot open it: .*s3fs.* \(pip install s3fs\)"):
        read_place("s3://bucket/a.png")


def test_a_forked_child_has_an_fsspec_of_its_own(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "fsspec.asyn", types.SimpleNamespace(reset_lock=lambda: calls.append(1)))
    sktransfer.locations._reset_after_fork()
    monkeypatch.delitem(sys.modules, "fsspec.asyn")
    sktransfer.locations._reset_after_fork()
    assert (calls, "fsspec.asyn" in sys.modules) == ([1], False)


# -- archives that fail -----------------------------------------------------------------------------------------------


def write_patched_zip(path, content, offset, value, method=zipfile.ZIP_DEFLATED):
    """A zip of one member `a` whose central directory holds `value` at `offset`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", content)
    written = bytearray(path.read_bytes())
    start = written.index(b"PK\1\2") + offset
    written[start : start + len(value)] = value
    path.write_bytes(written)
    return f"{path}::a"


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, b"\1\0", "'a' in '.*' cannot be read: it is encrypted"),
        (10, b"\x63\0", "'a' in '.*' cannot be read: That compression method is not supported"),
        (16, bytes(4), "'a' in '.*' cannot be read: Bad CRC-32"),
        (24, b"\xff\xff\xff\x7f", "it has 2.1 GB, and an image may have 268.4 MB at most"),
        (42, b"\xff\0\0\0", "'a' in '.*' cannot be read: "),
    ],
)
def test_a_member_that_cannot_be_read_says_why(tmp_path, offset, value, message):
    place = write_patched_zip(tmp_path / "a.zip", b"content" * 9, offset, value)
    with pytest.raises(ImageReadError, match=message):
        read_place(place)


def test_a_member_that_is_larger_than_stated_costs_no_memory(tmp_path):
    place = write_patched_zip(tmp_path / "a.zip", bytes(50_000_000), 24, b"\x0a\0\0\0")
    tracemalloc.start()
    with pytest.raises(ImageReadError, match="Bad CRC-32"):
        read_place(place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_of_zip_is_read_whole(tmp_path, method):
    content = np.random.default_rng(0).bytes(30_000) + bytes(30_000)
    with zipfile.ZipFile(tmp_path / "A.ZIP", "w", method) as archive:
        archive.writestr("a", content)
        archive.writestr("empty", b"")
    assert read_place(f"{tmp_path}/A.ZIP::a")[0] == content
    assert read_place(f"{tmp_path}/A.ZIP::empty")[0] == b""


def test_a_damaged_member_says_so(tmp_path):
    place = write_noise(tmp_path / "a.zip", 5000)
    written = bytearray((tmp_path / "a.zip").read_bytes())
    written[1000:1100] = bytes(100)
    (tmp_path / "a.zip").write_bytes(written)
    with pytest.raises(ImageReadError, match="'a' in '.*' cannot be read: "):
        read_place(place)


@pytest.mark.parametrize("end", [300, 3000])
def test_a_tar_that_was_cut_off_says_so(tmp_path, end):
    place = write_noise(tmp_path / "a.tar", 5000)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:end])
    with pytest.raises(ImageReadError, match="is a damaged archive|cannot be read: unexpected end of data"):
        read_place(place)
