"""Backbones from elsewhere, against a server on this machine that plays the Hub and any other host."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import huggingface_hub.constants
import huggingface_hub.utils._http
import onnx
import pytest
from conftest import WITHOUT_ESTIMATORS, small_classifier
from hub_server import COMMIT, CONFIG, MODEL, OTHER, Handler, Server, find_commit, sha256

import sktransfer.downloads
import sktransfer.hub
from sktransfer import BackboneError
from sktransfer.hub import (
    accept_change,
    fetch_change,
    fetch_reference,
    fetch_registered,
    find_reference,
    is_remote_reference,
    place_registered,
)
from sktransfer.sources import store_folder


@pytest.fixture
def server(hub):
    return hub


@pytest.fixture
def repository(server):
    """Files of the repository owner/repo; change them to change what the Hub has."""
    files = {"onnx/model.onnx": MODEL, "preprocessor_config.json": CONFIG, "README.md": b"# A model"}
    server.repositories["owner/repo"] = {"main": files}
    return files


def registered(server, content=MODEL, n_bytes=None, sha=None, **options):
    """Fetch zoo/model-1.onnx of owner/zoo, which has this content, as a registered backbone."""
    server.repositories["owner/zoo"] = {COMMIT: {"zoo/model-1.onnx": content}}
    arguments = (sha or sha256(MODEL), n_bytes or len(MODEL))
    return fetch_registered("model-v1", "owner/zoo", "zoo/model-1.onnx", COMMIT, *arguments, **options)


def written(folder):
    """Files below `folder`, without locks and empty folders."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "/locks/" not in name}


BODY = f"/owner/zoo/resolve/{COMMIT}/zoo/model-1.onnx"
HUB_BODY = f"/owner/repo/resolve/{COMMIT}/onnx/model.onnx"


# Registered backbones


def test_a_registered_backbone_is_fetched_once_to_its_place(server):
    path = registered(server)
    assert path == place_registered("model-v1", "zoo/model-1.onnx")
    assert path == store_folder() / "registry" / "model-v1" / "model-1.onnx"
    assert path.read_bytes() == MODEL
    assert registered(server) == path
    assert [request[0] for request in server.requests] == [BODY]


def test_a_file_put_at_its_place_by_hand_is_taken_unread(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = place_registered("model-v1", "zoo/model-1.onnx")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"whatever: its digest is checked where it is used")
    assert registered(server) == place
    assert not server.requests


def test_wrong_bytes_never_get_the_right_name(server, tmp_path):
    wrong = MODEL[:-1] + b"\0"
    with pytest.raises(BackboneError, match=f"must have the SHA-256 {sha256(MODEL)}. Got {sha256(wrong)} instead"):
        registered(server, wrong)
    assert not {name for name in written(tmp_path) if name.endswith((".onnx", ".part"))}
    registered(server)


def test_another_size_is_refused_before_the_body(server, monkeypatch):
    opened = []
    monkeypatch.setattr("tqdm.tqdm", lambda **options: opened.append(options))
    with pytest.raises(BackboneError, match=f"must have {len(MODEL)} bytes. The server sends {2 * len(MODEL)} bytes"):
        registered(server, MODEL * 2)
    assert not opened
    assert not any(name.endswith((".onnx", ".part")) for name in written(store_folder()))


def test_more_bytes_than_the_size_are_refused_where_the_server_states_none(server):
    server.plans[BODY] = [(307, {"Location": "/endless"})]
    original, Handler.do_GET = Handler.do_GET, answer_without_length
    try:
        with pytest.raises(BackboneError, match=f"must have {len(MODEL)} bytes. The server sends more instead"):
            registered(server)
    finally:
        Handler.do_GET = original


def answer_without_length(handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(MODEL * 2)
    handler.close_connection = True


def test_cut_off_bytes_are_fetched_on(server):
    server.plans[BODY] = ["cut"]
    assert registered(server).read_bytes() == MODEL
    assert server.requests[1][1]["Range"] == f"bytes={len(MODEL) // 2}-"


def test_the_next_call_goes_on_where_an_interrupted_one_stopped(server, monkeypatch):
    server.plans[BODY] = ["cut"]
    monkeypatch.setattr(sktransfer.downloads, "ATTEMPTS", 1)
    with pytest.raises(BackboneError, match="could not be fetched: .* put it at .*model-1.onnx"):
        registered(server)
    assert registered(server).read_bytes() == MODEL
    assert server.requests[1][1]["Range"] == f"bytes={len(MODEL) // 2}-"


def test_a_server_that_cannot_go_on_starts_again(server):
    server.plans[BODY] = ["cut", "ignore range"]
    assert registered(server).read_bytes() == MODEL


def test_a_rest_that_is_refused_is_not_asked_for_again(server):
    server.plans[BODY] = ["cut", 416]
    assert registered(server).read_bytes() == MODEL
    assert ["Range" in headers for _, headers in server.requests] == [False, True, False]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.plans[BODY] = [status, (status, {"Retry-After": "0"})]
    assert registered(server).read_bytes() == MODEL
    assert server.count(BODY) == 3


def test_a_server_that_stays_busy_is_asked_four_times(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    date = "Wed, 21 Oct 2099 07:28:00 GMT"
    server.plans[BODY] = [503, (503, {"Retry-After": "3"}), (503, {"Retry-After": date}), 503]
    with pytest.raises(BackboneError, match=f"{BODY} could not be fetched: the server answered 503. Bring .* at /"):
        registered(server)
    assert pauses == [0.01, 3, 30]
    assert server.count(BODY) == 4


def test_a_stall_is_overcome(server, monkeypatch):
    monkeypatch.setattr(sktransfer.downloads, "TIMEOUT_SECONDS", 0.3)
    server.plans[BODY] = ["stall"]
    assert registered(server).read_bytes() == MODEL
    server.plans["/api/models/owner/zoo/revision/main"] = ["stall"] * 4
    with pytest.raises(BackboneError, match="could not be fetched: no answer of a Hub .*timed out"):
        fetch_reference("hf:owner/zoo")


def test_a_server_that_is_not_there_is_named_with_the_place(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place = place_registered("model-v1", "zoo/model-1.onnx")
    with pytest.raises(BackboneError, match=f"http://127.0.0.1:9{BODY} could not be fetched: .* put it at {place}"):
        registered(server)
    with pytest.raises(
        BackboneError, match=r"127.0.0.1:9/owner/repo/tree/main could not .*/owner/repo/main/model.onnx"
    ):
        fetch_reference("hf:owner/repo")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline_nothing_is_asked_and_the_address_and_the_place_are_named(server, repository, monkeypatch, variable):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", variable is None)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(BackboneError, match=f"{BODY} could not .* switched off .* at .*model-v1/model-1.onnx"):
        registered(server)
    url = f"{server.url}/m/net.onnx"
    with pytest.raises(BackboneError, match=f"{url} could not be fetched: .* put it at {store_folder()}.*/net.onnx"):
        fetch_reference(url)
    with pytest.raises(BackboneError, match=r"/owner/repo/resolve/main/onnx/model.onnx could .*/main/onnx/model.onnx"):
        fetch_reference("hf:owner/repo/onnx/model.onnx")
    assert not server.requests


@pytest.mark.parametrize(("status", "remedy"), [(404, "check the address"), (403, "hf auth login"), (401, "hf auth")])
def test_an_absent_or_closed_file_is_not_asked_for_again(server, status, remedy):
    server.plans[BODY] = [status]
    with pytest.raises(BackboneError, match=f"The server answered {status}; .*{remedy}"):
        registered(server)
    assert server.count(BODY) == 1


def test_a_full_disk_leaves_nothing_behind(server, tmp_path, monkeypatch):
    def write(response, body, part, progress):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sktransfer.downloads, "_write", write)
    with pytest.raises(BackboneError, match="must have room .* Its disk is full; .*SKTRANSFER_CACHE_DIR"):
        registered(server)
    assert written(tmp_path) == set()


@pytest.mark.parametrize("linking", [True, False])
def test_a_file_in_the_cache_of_hugging_face_is_taken_without_network(server, tmp_path, monkeypatch, linking):
    snapshot = tmp_path / "hf" / "models--owner--zoo" / "snapshots" / COMMIT / "zoo" / "model-1.onnx"
    blob = tmp_path / "hf" / "models--owner--zoo" / "blobs" / sha256(MODEL)
    for path in (snapshot, blob):
        path.parent.mkdir(parents=True)
    blob.write_bytes(MODEL)
    snapshot.symlink_to(blob)
    if not linking:
        monkeypatch.setattr(os, "link", refuse_link)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = registered(server)
    assert path.read_bytes() == MODEL
    assert not path.is_symlink()
    assert path.samefile(blob) == linking


def refuse_link(*paths):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_wrong_file_in_the_cache_of_hugging_face_is_not(server, tmp_path):
    snapshot = tmp_path / "hf" / "models--owner--zoo" / "snapshots" / COMMIT / "zoo" / "model-1.onnx"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(OTHER)
    assert registered(server).read_bytes() == MODEL
    assert snapshot.read_bytes() == OTHER


def test_threads_that_want_the_same_file_fetch_one_body(server, repository):
    server.plans[BODY] = ["stall"]
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: registered(server), range(6)))
        found = list(pool.map(lambda _: fetch_reference("hf:owner/repo"), range(6)))
    assert len(set(paths)) == len({one.path for one in found}) == 1
    assert [server.count(path) for path in (BODY, HUB_BODY, "/revision/main")] == [1, 1, 1]


def start_process(code):
    """Run `code` in another process."""
    code = f"{WITHOUT_ESTIMATORS}import sktransfer.hub as hub; {code}"
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=environment)


def test_processes_that_want_the_same_file_fetch_one_body(server, repository):
    server.plans[HUB_BODY] = ["stall"]
    processes = [start_process("print(hub.fetch_reference('hf:owner/repo').path)") for _ in range(2)]
    outputs = {process.communicate() for process in processes}
    assert outputs == {(f"{store_folder()}/hf/owner/repo/main/onnx/model.onnx\n", "")}
    assert server.count(HUB_BODY) == 1


def test_a_process_killed_while_it_fetches_leaves_what_the_next_one_goes_on_with(server, repository):
    model = small_classifier()
    model.doc_string = "-" * 200_000
    repository["onnx/model.onnx"] = model.SerializeToString()
    server.plans[HUB_BODY] = ["hang"]
    process = start_process("hub.fetch_reference('hf:owner/repo')")
    while not any(part.stat().st_size for part in store_folder().rglob("*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert fetch_reference("hf:owner/repo").path.read_bytes() == repository["onnx/model.onnx"]
    assert re.fullmatch(r"bytes=[1-9]\d+-", server.requests[-2][1]["Range"])


# References to the Hub


def test_a_repository_is_mirrored_in_the_store(server, repository):
    found = fetch_reference("hf:owner/repo")
    root = store_folder() / "hf" / "owner" / "repo" / "main"
    digests = {root / "onnx/model.onnx": sha256(MODEL), root / "preprocessor_config.json": sha256(CONFIG)}
    assert (found.reference, found.name, found.path) == ("hf:owner/repo", "repo", root / "onnx" / "model.onnx")
    assert found.digests == digests
    assert {path: sha256(path.read_bytes()) for path in digests} == digests
    assert found.source == f"hf:owner/repo@{COMMIT}/onnx/model.onnx"
    assert stat_mode(store_folder()) == 0o700
    assert not list((store_folder() / "partial").iterdir())


def stat_mode(path):
    return path.stat().st_mode & 0o777


def test_the_second_use_asks_no_server(server, repository, monkeypatch):
    assert find_reference("hf:owner/repo") is None
    found = fetch_reference("hf:owner/repo")
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_reference("hf:owner/repo") == found == find_reference("hf:owner/repo")
    assert fetch_reference("hf:owner/repo@main").digests == found.digests
    assert not server.requests


def test_a_warm_process_imports_no_client(server, repository):
    fetch_reference("hf:owner/repo")
    registered(server)
    code = (
        "hub.fetch_reference('hf:owner/repo'); "
        "hub.fetch_registered('model-v1', 'owner/zoo', 'zoo/model-1.onnx', 'main', '', 0); "
        "print([name for name in ('huggingface_hub', 'httpx2', 'filelock', 'tqdm', 'onnx') if name in sys.modules])"
    )
    assert start_process(code).communicate() == ("[]\n", "")


@pytest.mark.parametrize(
    ("names", "reference", "chosen", "title"),
    [
        (["model.onnx", "onnx/model.onnx"], "hf:owner/repo", "model.onnx", "repo"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "hf:owner/repo", "onnx/model.onnx", "repo"),
        (["a/b/net.onnx"], "hf:owner/repo", "a/b/net.onnx", "net"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "hf:owner/repo/onnx/model_fp16.onnx", None, "repo-fp16"),
        (["resnet50.a1/model.onnx", "vit/model.onnx"], "hf:owner/repo/vit", "vit/model.onnx", "vit"),
        (["vit/onnx/model.onnx", "x.onnx"], "hf:owner/repo/vit/", "vit/onnx/model.onnx", "vit"),
        (["vit/model_int8.onnx", "x.onnx"], "hf:owner/repo/vit", "vit/model_int8.onnx", "vit-int8"),
        (["model@2.onnx"], "hf:owner/repo/model@2.onnx@main", "model@2.onnx", "model@2"),
    ],
)
def test_which_file_a_reference_means_and_its_name(server, names, reference, chosen, title):
    server.repositories["owner/repo"] = {"main": dict.fromkeys(names, MODEL)}
    found = fetch_reference(reference)
    expected = chosen or reference.removeprefix("hf:owner/repo/")
    assert found.path == store_folder() / "hf/owner/repo/main" / expected
    assert found.name == title


def test_several_candidates_are_listed(server):
    server.repositories["owner/repo"] = {"main": {f"{name}.onnx": MODEL for name in "abcdefg"}}
    message = "must mean one .onnx file. Got 7: a.onnx, b.onnx, .*e.onnx, …; name one, for example hf:owner/repo/a.onnx"
    with pytest.raises(BackboneError, match=message):
        fetch_reference("hf:owner/repo")


def test_an_absent_file_is_answered_with_the_nearest_names(server, repository):
    with pytest.raises(BackboneError, match=r"has no 'onnx/modle.onnx'; the nearest are onnx/model.onnx"):
        fetch_reference("hf:owner/repo/onnx/modle.onnx")
    del repository["onnx/model.onnx"]
    with pytest.raises(BackboneError, match="has no .onnx file at all"):
        fetch_reference("hf:owner/repo")


def test_an_absent_repository_or_revision_is_named(server, repository):
    with pytest.raises(BackboneError, match="hf:owner/none must name a repository .* answered 404; .*`hf auth login`"):
        fetch_reference("hf:owner/none")
    with pytest.raises(BackboneError, match="must name a revision of owner/repo. There is no 'v2'"):
        fetch_reference("hf:owner/repo@v2")
    assert len(server.requests) == 2


def test_a_busy_hub_is_asked_again(server, repository):
    server.plans["/api/models/owner/repo/revision/main"] = [(429, {"Retry-After": "0"}), 502]
    assert fetch_reference("hf:owner/repo").path.read_bytes() == MODEL


def test_a_page_that_is_no_answer_of_a_hub_is_no_answer(server, monkeypatch):
    server.pages["/api/models/owner/repo/revision/main"] = b"<html>"
    monkeypatch.setattr(Server, "list_repository", lambda *arguments: (200, {}, b"<html>Log in to this network"))
    with pytest.raises(BackboneError, match="could not be fetched: no answer of a Hub"):
        fetch_reference("hf:owner/repo")


def test_a_gated_repository_asks_for_a_login(server, repository):
    server.plans[HUB_BODY] = [(403, {"X-Error-Code": "GatedRepo"})]
    with pytest.raises(BackboneError, match="ask for access on its page and log in with `hf auth login`"):
        fetch_reference("hf:owner/repo")


def test_a_revision_may_have_slashes(server, repository):
    server.repositories["owner/repo"]["refs/pr/1"] = {"model.onnx": OTHER}
    found = fetch_reference("hf:owner/repo@refs/pr/1")
    assert found.path == store_folder() / "hf" / "owner" / "repo" / "refs%2Fpr%2F1" / "model.onnx"
    assert found.path.read_bytes() == OTHER
    assert found.source == f"hf:owner/repo@{find_commit('refs/pr/1')}/model.onnx"
    assert fetch_reference("hf:owner/repo").path != found.path


def test_a_body_of_another_digest_than_the_listing_states_is_refused(server, repository):
    repository["config.json"] = b"{}"
    server.stated["onnx/model.onnx"] = {"lfs": {"sha256": sha256(OTHER), "size": len(MODEL), "pointerSize": 1}}
    with pytest.raises(BackboneError, match=f"must have the SHA-256 {sha256(OTHER)}. Got {sha256(MODEL)}"):
        fetch_reference("hf:owner/repo")
    server.stated = {"config.json": {"blobId": "0" * 40}}
    with pytest.raises(BackboneError, match=f"config.json must have the git digest {'0' * 40}. Got [0-9a-f]{{40}} "):
        fetch_reference("hf:owner/repo")
    assert written(store_folder() / "hf") == set()


def test_what_is_no_network_is_refused(server, repository):
    repository["onnx/model.onnx"] = b"<html>" * 20
    with pytest.raises(BackboneError, match="hf:owner/repo must be an ONNX file that can be used. onnx/model.onnx is"):
        fetch_reference("hf:owner/repo")
    assert not any(name.endswith((".onnx", ".part")) for name in written(store_folder()))


def split_model(tmp_path, location):
    """A model and its weights in another file."""
    model = small_classifier(2)
    path = tmp_path / "made" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    return model.SerializeToString(), (path.parent / "weights").read_bytes()


@pytest.mark.parametrize("location", ["model.onnx_data", "weights/of model.data"])
def test_external_data_are_fetched_too(server, repository, tmp_path, location):
    model, weights = split_model(tmp_path, location)
    repository |= {"onnx/model.onnx": model, f"onnx/{location}": weights}
    server.pages |= {"/m/net.onnx": model, f"/m/{location.replace(' ', '%20')}": weights}
    for reference in ("hf:owner/repo", f"{server.url}/m/net.onnx?download=1"):
        found = fetch_reference(reference)
        assert found.digests[found.path.parent / location] == sha256(weights)
        assert onnx.load(found.path).graph.initializer[0].raw_data


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "C:\\x", "a\\b", "c:x", "ab:c", "a/../../b"])
def test_external_data_outside_the_folder_are_refused(server, repository, tmp_path, location):
    model, _ = split_model(tmp_path, location)
    repository["onnx/model.onnx"] = model
    before = written(tmp_path)
    with pytest.raises(BackboneError, match="hf:owner/repo must be an ONNX file that can be used. .* beside it"):
        fetch_reference("hf:owner/repo")
    assert {name for name in written(tmp_path) - before if not name.endswith(".tag")} == set()


def test_missing_external_data_are_named(server, repository, tmp_path):
    repository["onnx/model.onnx"], _ = split_model(tmp_path, "weights")
    with pytest.raises(BackboneError, match="must bring 'onnx/weights'. There is no such file in hf:owner/repo@ccc"):
        fetch_reference("hf:owner/repo")


@pytest.mark.parametrize(
    "reference",
    ["hf:", "hf:repo", "hf:../repo", "hf:owner/..", "hf:owner/repo/../x.onnx", "hf:owner/repo@../x", "hf:owner/repo@",
     "hf:owner/repo/a\\b.onnx", "hf:owner/repo/a//b.onnx", "hf:/etc/passwd", "hf:owner/a--b", "hf:owner/repo/c:x.onnx"],
)  # fmt: skip
def test_references_that_lead_elsewhere_are_refused(server, reference):
    with pytest.raises(BackboneError, match='A reference must be "hf:owner/repo" or .* Got '):
        fetch_reference(reference)
    assert not server.requests


def test_names_that_lead_elsewhere_are_never_used(server, repository, tmp_path):
    repository |= {"../config.json": b"{}", "/config.json": b"{}", "onnx\\config.json": b"{}", "x/../a.onnx": MODEL}
    before = written(tmp_path)
    fetch_reference("hf:owner/repo")
    new = {name for name in written(tmp_path) - before if not name.startswith("cache/sktransfer-models/records/")}
    root = "cache/sktransfer-models/hf/owner/repo/main"
    assert new == {f"{root}/onnx/model.onnx", f"{root}/preprocessor_config.json"}
    server.repositories["owner/repo"]["evil"] = {"../../../../evil.onnx": MODEL}
    with pytest.raises(BackboneError, match="has no .onnx file at all"):
        fetch_reference("hf:owner/repo@evil")


def test_the_token_goes_to_the_hub_and_nowhere_else(server, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = f"http://localhost:{server.server_port}/cdn/model"
    server.plans[HUB_BODY] = [(302, {"Location": elsewhere})]
    server.pages["/cdn/model"] = MODEL
    fetch_reference("hf:owner/repo")
    sent = {path: headers.get("Authorization", headers.get("authorization")) for path, headers in server.requests}
    assert sent.pop("/cdn/model") is None
    assert set(sent.values()) == {"Bearer hf_secret"}


# Records


def test_a_changed_file_is_refused_and_the_record_survives_the_files(server, repository):
    found = fetch_reference("hf:owner/repo")
    found.path.unlink()
    repository["onnx/model.onnx"] = OTHER
    message = f"onnx/model.onnx of hf:owner/repo must have the SHA-256 {sha256(MODEL)}.* Got {sha256(OTHER)} instead"
    with pytest.raises(BackboneError, match=f"{message}; .*`sktransfer models accept hf:owner/repo`"):
        fetch_reference("hf:owner/repo")
    assert not found.path.exists()
    repository["onnx/model.onnx"] = MODEL
    assert fetch_reference("hf:owner/repo") == found
    assert found.path.read_bytes() == MODEL


def test_a_change_is_shown_and_then_taken(server, repository):
    old = fetch_reference("hf:owner/repo")
    repository |= {"onnx/model.onnx": OTHER, "config.json": b"{}"}
    del repository["preprocessor_config.json"]
    change = fetch_change("hf:owner/repo")
    assert change.old == {"onnx/model.onnx": sha256(MODEL), "preprocessor_config.json": sha256(CONFIG)}
    assert change.new == {"onnx/model.onnx": sha256(OTHER), "config.json": sha256(b"{}")}
    assert fetch_reference("hf:owner/repo") == old
    assert old.path.read_bytes() == MODEL
    new = accept_change(change)
    assert new == fetch_reference("hf:owner/repo")
    assert {path: sha256(path.read_bytes()) for path in new.digests} == new.digests
    assert written(store_folder() / "hf") == {"owner/repo/main/onnx/model.onnx", "owner/repo/main/config.json"}
    with pytest.raises(BackboneError, match="It is not any more; fetch the change again"):
        accept_change(change)


def test_what_is_taken_is_what_was_shown(server, repository):
    old = fetch_reference("hf:owner/repo")
    change = fetch_change("hf:owner/repo")
    (staged,) = (store_folder() / "partial").rglob("model.onnx")
    staged.write_bytes(OTHER)
    with pytest.raises(BackboneError, match=f"{staged} must be what was fetched"):
        accept_change(change)
    assert old.path.read_bytes() == MODEL


def test_a_change_of_a_reference_never_used_is_its_first_use(server, repository):
    change = fetch_change("hf:owner/repo")
    assert change.old == {}
    assert accept_change(change) == find_reference("hf:owner/repo")


def test_files_put_by_hand_are_recorded_without_network(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = store_folder() / "hf" / "owner" / "repo" / "main"
    (root / "onnx").mkdir(parents=True)
    (root / "onnx" / "model.onnx").write_bytes(MODEL)
    (root / "preprocessor_config.json").write_bytes(CONFIG)
    for reference in ("hf:owner/repo", "hf:owner/repo/onnx/model.onnx"):
        found = fetch_reference(reference)
        assert set(found.digests) == {root / "onnx" / "model.onnx", root / "preprocessor_config.json"}
        assert found == find_reference(reference)
        assert found.source.endswith("(put there by hand)")


def test_weights_missing_beside_a_file_put_by_hand_are_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = store_folder() / "hf" / "owner" / "repo" / "main" / "net.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(split_model(tmp_path, "weights")[0])
    with pytest.raises(BackboneError, match=r"/owner/repo/resolve/main/weights could not .*/repo/main/weights"):
        fetch_reference("hf:owner/repo/net.onnx")


def test_an_unrecorded_file_at_a_place_must_be_what_the_source_states(server, repository):
    place = store_folder() / "hf" / "owner" / "repo" / "main" / "preprocessor_config.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"{}")
    with pytest.raises(BackboneError, match=f"{place} must be the file of hf:owner/repo and must have the size"):
        fetch_reference("hf:owner/repo")
    place.write_bytes(CONFIG)
    assert place in fetch_reference("hf:owner/repo").digests
    assert server.count("preprocessor_config.json") == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"file": "a", "digests": {"../a": ""}, "source": ""}'])
def test_a_damaged_record_is_named(server, repository, content):
    fetch_reference("hf:owner/repo")
    (record,) = (store_folder() / "records").iterdir()
    assert json.loads(record.read_text())["reference"] == "hf:owner/repo"
    record.write_text(content)
    with pytest.raises(BackboneError, match=f"{record} must be a record of sktransfer"):
        find_reference("hf:owner/repo")


# URLs


def test_a_url_and_the_configuration_beside_it(server, tmp_path):
    server.pages |= {"/m/net-7.onnx": MODEL, "/m/preprocess.json": CONFIG}
    server.pages["/m/preprocessor_config.json"] = b"<html>this server answers everything"
    url = f"{server.url}/m/net-7.onnx"
    found = fetch_reference(url)
    assert found.path == store_folder() / "url" / "127.0.0.1" / sha256(url.encode())[:12] / "net-7.onnx"
    assert (found.name, found.source) == ("net-7", url)
    assert found.digests == {found.path: sha256(MODEL), found.path.parent / "preprocess.json": sha256(CONFIG)}
    assert written(found.path.parent) == {"net-7.onnx", "preprocess.json"}
    assert {name.split("/")[0] for name in written(tmp_path)} == {"cache"}


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a/net.onnx", "net"), ("/a/model.onnx", "a"), ("/model.onnx", "127.0.0.1"), ("/a/get?f=1", "a")],
)
def test_the_name_of_a_url(server, path, name):
    server.pages[path.partition("?")[0]] = MODEL
    assert fetch_reference(server.url + path).name == name


def test_a_pinned_url_is_checked_at_once_and_ever_after(server):
    server.pages["/net.onnx"] = MODEL
    url = f"{server.url}/net.onnx"
    with pytest.raises(BackboneError, match=f"must have the SHA-256 {sha256(OTHER)}. Got {sha256(MODEL)} instead"):
        fetch_reference(f"{url}#sha256={sha256(OTHER)}")
    found = fetch_reference(f"{url}#sha256={sha256(MODEL).upper()}")
    assert found.path == fetch_reference(url).path
    with pytest.raises(BackboneError, match=f"must have the SHA-256 {sha256(OTHER)}. Got {sha256(MODEL)} .*accept"):
        find_reference(f"{url}#sha256={sha256(OTHER)}")
    server.pages["/net.onnx"] = OTHER
    accept_change(fetch_change(f"{url}#sha256={sha256(OTHER)}"))
    assert fetch_reference(f"{url}#sha256={sha256(OTHER)}").path.read_bytes() == OTHER


def test_a_pinned_file_put_by_hand_is_checked_before_it_is_recorded(server):
    url = "http://example.com/net.onnx"
    place = store_folder() / "url" / "example.com" / sha256(url.encode())[:12] / "net.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(MODEL)
    with pytest.raises(BackboneError, match=f"{url} must have the SHA-256 {sha256(OTHER)}. Got {sha256(MODEL)}"):
        fetch_reference(f"{url}#sha256={sha256(OTHER)}")
    assert find_reference(url) is None
    assert fetch_reference(f"{url}#sha256={sha256(MODEL)}").digests == {place: sha256(MODEL)}


def test_redirects_are_followed_but_not_without_end_and_only_over_http(server):
    server.pages["/net.onnx"] = MODEL
    server.plans["/short"] = [(302, {"Location": "/net.onnx"})]
    assert fetch_reference(f"{server.url}/short").path.read_bytes() == MODEL
    server.plans["/long"] = [(302, {"Location": "/long"})] * 9
    with pytest.raises(BackboneError, match="must lead to a file over http or https. Got .*redirects"):
        fetch_reference(f"{server.url}/long")
    server.plans["/out"] = [(302, {"Location": "file:///etc/passwd"})]
    with pytest.raises(BackboneError, match="must lead to a file over http or https"):
        fetch_reference(f"{server.url}/out")
    assert (server.count("/long"), server.count("/out")) == (6, 1)


def test_https_may_not_lead_to_http(server, monkeypatch):
    class Client(httpx2.Client):
        def __init__(self, **options):
            super().__init__(transport=httpx2.MockTransport(redirect), follow_redirects=True)

    def redirect(request):
        return httpx2.Response(302, headers={"Location": "http://example.com/b.onnx"}, content=b"") if (
            request.url.scheme == "https") else httpx2.Response(200, content=MODEL)  # fmt: skip

    monkeypatch.setattr(httpx2, "Client", Client)
    with pytest.raises(BackboneError, match="a.onnx must lead to a file over https. It leads to http://example.com/b"):
        fetch_reference("https://example.com/a.onnx")


def test_a_file_that_changes_between_two_attempts_is_not_sewn_together(server):
    server.pages["/net.onnx"] = MODEL
    server.plans["/net.onnx"] = ["cut"]
    original = server.find
    server.find = lambda path: (
        original(path) if path != "/net.onnx" else
        (200, {"ETag": f'"{server.count(path)}"'}, (MODEL, OTHER)[server.count(path) - 1])
    )  # fmt: skip
    assert fetch_reference(f"{server.url}/net.onnx").path.read_bytes() == OTHER


def test_a_url_is_bounded(server, monkeypatch):
    monkeypatch.setattr(sktransfer.downloads, "MAX_BYTES", 1000)
    server.pages["/net.onnx"] = MODEL
    with pytest.raises(BackboneError, match=f"must be at most 1.0 kB. The server sends {len(MODEL)} bytes"):
        fetch_reference(f"{server.url}/net.onnx")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://", "A URL must be"),
        ("https://[::1/model.onnx", "A URL must be"),
        ("https://example.com:port/model.onnx", "A URL must be"),
        ("https://me:secret@example.com/model.onnx", "no password. Got 'example.com/model.onnx' instead"),
        ("https://example.com/a b.onnx", "A URL must be"),
        ("https://example.com/model.onnx#sha256=12", "What follows a URL must be .* Got '#sha256=12'"),
        ("https://example.com/model.onnx#", "What follows a URL must be"),
    ],
)
def test_malformed_urls(server, url, message):
    with pytest.raises(BackboneError, match=message):
        fetch_reference(url)


def test_a_host_cannot_name_a_place_outside_its_folder(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=f"put it at {store_folder()}/url/[0-9a-f]{{12}}/net.onnx"):
        fetch_reference("http://../net.onnx")


def test_a_url_cannot_name_a_place_outside_the_store(server, tmp_path):
    server.pages |= {"/a/..%2F..%2Fx.onnx": MODEL, "/a/%00.onnx": MODEL, "/a/..%5Cx.onnx": MODEL}
    for path in list(server.pages):
        found = fetch_reference(server.url + path)
        assert found.path.parent.parent == store_folder() / "url" / "127.0.0.1"
    assert {name.split("/")[0] for name in written(tmp_path)} == {"cache"}


def test_what_is_remote():
    remote = ["hf:owner/repo", "http://example.com/a.onnx", "https://example.com/a.onnx"]
    assert all(map(is_remote_reference, remote))
    assert not any(
        map(is_remote_reference, ["default", "hf", "./hf:x", "C:\\a.onnx", "/a/b.onnx", "ftp://example.com"])
    )


def test_progress_is_silent_unless_asked_for(server, repository, capfd, caplog):
    caplog.set_level(logging.INFO, "sktransfer.downloads")
    fetch_reference("hf:owner/repo")
    assert capfd.readouterr() == ("", "")
    assert f"Fetching {server.url}{HUB_BODY}" in caplog.text
    registered(server, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "model-1.onnx: 100%" in err


def test_nothing_is_written_outside_the_store(server, repository, tmp_path):
    before = {path for path in tmp_path.rglob("*") if store_folder() not in path.parents}
    fetch_reference("hf:owner/repo")
    registered(server)
    accept_change(fetch_change("hf:owner/repo"))
    after = {path for path in tmp_path.rglob("*") if store_folder() not in path.parents}
    assert after - before <= {store_folder().parent, store_folder()}
    assert Path(store_folder()).is_dir()
