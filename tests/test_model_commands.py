"""Registered and fetched backbones as users meet them: by name in an estimator, and through ``sktransfer models``."""

import json

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import photo, save_backbone, small_classifier
from hub_server import CONFIG, MODEL, OTHER, sha256

import sktransfer.registry
import sktransfer.verification
from sktransfer import (
    Backbone,
    BackboneError,
    Preprocessing,
    PretrainedFeatureExtractor,
    extract,
    list_backbones,
    load_backbone,
)
from sktransfer.hub import place_registered
from sktransfer.sources import store_folder
from sktransfer.verification import make_reference_image, verify_backbone

PIXELS = [photo(seed) for seed in range(2)]


def offer(hub, body=MODEL, config=CONFIG):
    files = {"onnx/model.onnx": body, "preprocessor_config.json": config}
    hub.repositories["owner/small"] = {"main": files}


@pytest.fixture
def entry(hub, monkeypatch):
    """A registered backbone "small-v1" (alias "small") in a repository of the hub."""
    registry = json.loads((sktransfer.registry.models_folder() / "registry.json").read_text("utf-8"))
    stated = dict(registry["backbones"]["squeezenet1.1-7"], repository="owner/zoo", path="a/small-v1.onnx",
                  bytes=len(MODEL), sha256=sha256(MODEL), preprocessing="small", architecture="small")  # fmt: skip
    registry["backbones"]["small-v1"] = stated
    registry["aliases"]["small"] = "small-v1"
    values = {"crop": [32, 32], "resize": 36}
    registry["preprocessings"]["small"] = {"values": values, "page": "https://example.com/small"}
    registry["architectures"]["small"] = registry["architectures"]["squeezenet1.1"] | {"n_features": 8}
    monkeypatch.setattr(sktransfer.registry, "_read_registry", lambda: registry)
    for cached in (sktransfer.registry.find_entry, sktransfer.registry._names_by_digest):
        cached.cache_clear()
    hub.repositories["owner/zoo"] = {"main": {"a/small-v1.onnx": MODEL}}
    yield stated
    for cached in (sktransfer.registry.find_entry, sktransfer.registry._names_by_digest):
        cached.cache_clear()


@pytest.fixture
def run(run_command):
    return run_command


def expected(tmp_path, preprocessing=None):
    path = save_backbone(tmp_path / "by_hand", onnx.ModelProto.FromString(MODEL))
    return extract(PIXELS, path, preprocessing=preprocessing, cache_dir=None)


# -- in an estimator --------------------------------------------------------------------------------------------------


def test_a_repository_of_the_hub_is_a_backbone(hub, tmp_path):
    offer(hub)
    extractor = PretrainedFeatureExtractor("hf:owner/small").fit(PIXELS)
    np.testing.assert_array_equal(extractor.transform(PIXELS), expected(tmp_path))
    assert (extractor.backbone_, extractor.get_feature_names_out()[0]) == ("small", "small_0")
    assert load_backbone("hf:owner/small").license == "mit"
    before = len(hub.requests)
    PretrainedFeatureExtractor("hf:owner/small").fit_transform(PIXELS)
    assert len(hub.requests) == before


def test_a_registered_name_is_fetched_once(entry, hub, tmp_path):
    preprocessing = Preprocessing((32, 32), 36)
    for _ in range(2):
        vectors = PretrainedFeatureExtractor("small", cache_dir=None).fit_transform(PIXELS)
        np.testing.assert_array_equal(vectors, expected(tmp_path, preprocessing))
    assert hub.count("small-v1.onnx") == 1
    assert load_backbone("small").name == "small-v1"


def test_a_local_file_with_the_pinned_digest_is_the_registered_backbone(entry, tmp_path):
    path = tmp_path / "from_a_friend.onnx"
    path.write_bytes(MODEL)
    backbone = load_backbone(path)
    assert (backbone.name, backbone.path, backbone.preprocessing.resize) == ("small-v1", path, 36)


def test_a_file_put_where_the_download_would_go_is_accepted(entry, hub):
    place = place_registered("small-v1", entry["path"])
    place.parent.mkdir(parents=True)
    place.write_bytes(MODEL)
    assert load_backbone("small").path == place
    place.write_bytes(OTHER)
    with pytest.raises(BackboneError, match=rf"must have the SHA-256 {sha256(MODEL)}\. Got .* remove it, and it will"):
        load_backbone("small")
    assert not hub.requests


def test_a_fetched_file_that_was_changed_is_refused(hub):
    offer(hub)
    path = load_backbone("hf:owner/small").path
    path.write_bytes(OTHER)
    with pytest.raises(BackboneError, match=r"recorded at its first use\. Got \w+ instead; .*models accept hf:owner"):
        load_backbone("hf:owner/small")


def test_another_preprocessing_beside_a_fetched_model_is_refused(hub):
    offer(hub)
    path = load_backbone("hf:owner/small").path
    (path.parent.parent / "preprocessor_config.json").write_bytes(CONFIG.replace(b"36", b"40"))
    with pytest.raises(BackboneError, match=r"preprocessor_config.json must have the SHA-256"):
        load_backbone("hf:owner/small")


def test_a_model_without_preprocessing_asks_for_it(hub):
    hub.pages["/models/net.onnx"] = MODEL
    with pytest.raises(BackboneError, match=r"The preprocessing of .*net.onnx is unknown"):
        extract(PIXELS, f"{hub.url}/models/net.onnx")
    assert extract(PIXELS, f"{hub.url}/models/net.onnx", preprocessing="imagenet").shape == (2, 8)


def test_a_hand_made_backbone_needs_a_file_and_a_preprocessing(backbone_file):
    loaded = load_backbone(backbone_file)
    mine = Backbone("mine", loaded.path, loaded.digest, Preprocessing((32, 32), 36, scale=1.0))
    assert PretrainedFeatureExtractor(mine).fit(PIXELS).get_feature_names_out()[0] == "mine_0"


def test_list_backbones_says_what_is_on_disk(entry):
    frame = list_backbones().set_index("name")
    assert frame.loc["tiny-v1", "on_disk"]
    assert not frame.loc["small-v1", "on_disk"]
    load_backbone("small")
    assert list_backbones().set_index("name").loc["small-v1", "on_disk"]
    assert frame.loc["small-v1", "aliases"] == "small"
    assert {"license", "bytes", "n_features", "macs", "top1", "top5", "source"} <= set(frame.columns)


# -- the command ------------------------------------------------------------------------------------------------------


def test_models_list_prints_and_saves_the_registry(run, entry, tmp_path):
    code, out, _ = run("models", "list", "-o", tmp_path / "models.csv")
    assert code == 0
    assert "resnet50-v1-12" in out
    assert list(pd.read_csv(tmp_path / "models.csv")["name"]) == list(list_backbones()["name"])
    code, out, _ = run("models", "list", "--on-disk")
    assert "tiny-v1" in out
    assert "resnet50" not in out


def test_models_list_shows_what_was_fetched(run, hub):
    offer(hub)
    load_backbone("hf:owner/small")
    _, out, _ = run("models", "list", "--on-disk")
    assert "hf:owner/small" in out


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "googlenet", "tiny", "efficientnet-lite4"])
def test_models_show_says_everything_with_its_source(run, name):
    code, out, _ = run("models", "show", name)
    stated = sktransfer.registry.find_entry(name)
    assert code == 0
    for text in (stated.name, stated.sha256, stated.license, stated.preprocessing_page, str(stated.n_features)):
        assert text in out
    assert ("digest only" in out) == (name != "tiny")


def test_models_show_of_files_and_of_what_is_not_here(run, hub, backbone_file):
    assert load_backbone(backbone_file).digest in run("models", "show", backbone_file)[1]
    code, out, _ = run("models", "show", "hf:owner/small")
    assert (code, "models pull hf:owner/small` fetches it" in out) == (1, True)
    assert not hub.requests


def test_models_pull_and_verify(run, entry, hub):
    offer(hub)
    code, out, _ = run("models", "pull", "small", "hf:owner/small")
    assert (code, out.count(sha256(MODEL))) == (0, 2)
    code, out, _ = run("models", "verify")
    assert code == 0
    assert "tiny-v1: digest and embedding of the reference image are those on the card" in out
    assert "small-v1: the digest is the registered one and it runs; no embedding is on its card (digest only)" in out
    assert "hf:owner/small: " in out


def test_models_verify_runs_a_file_whose_preprocessing_nobody_states(run, hub):
    hub.pages["/models/net.onnx"] = MODEL
    address = f"{hub.url}/models/net.onnx"
    run("models", "pull", address)
    assert run("models", "verify", address)[:2] == (0, f"{address}: it runs; no card states what it should give\n")


def test_models_verify_names_what_is_wrong_and_goes_on(run, entry, hub):
    run("models", "pull", "small")
    place_registered("small-v1", entry["path"]).write_bytes(OTHER)
    code, out, _ = run("models", "verify", "small-v1", "tiny")
    assert code == 1
    assert "small-v1: FAILED." in out
    assert "tiny: digest and embedding" in out


def test_verify_compares_with_the_card(monkeypatch, tmp_path):
    found = verify_backbone("tiny-v1")
    assert (found.checked, found.distance < 1e-5) == ("embedding", True)
    image = make_reference_image()
    image[:, :, 0] = 255 - image[:, :, 0]
    monkeypatch.setattr(sktransfer.verification, "make_reference_image", lambda: image)
    with pytest.raises(BackboneError, match="must be the one on its card to 0.001. Got a relative distance of"):
        verify_backbone("tiny-v1")


def test_models_layers_lists_names_shapes_and_costs(run, tmp_path):
    code, out, _ = run("models", "layers", "tiny", "-o", tmp_path / "layers.csv")
    assert code == 0
    assert "tiny-v1: 0.19 G MACs for one image of 96 × 96" in out
    assert "256 × 6 × 6" in out
    assert "stage4, last_map" in out
    rows = pd.read_csv(tmp_path / "layers.csv")
    assert {"layer", "alias", "shape", "features", "MACs", "share"} <= set(rows.columns)
    assert len(run("models", "layers", "tiny", "--all")[1].splitlines()) == len(rows) + 3


def test_models_accept_shows_both_digests_and_takes_the_new_file(run, hub):
    offer(hub)
    load_backbone("hf:owner/small")
    assert "Nothing has changed." in run("models", "accept", "hf:owner/small", "--yes")[1]
    offer(hub, OTHER)
    code, out, _ = run("models", "accept", "hf:owner/small", "--yes")
    assert code == 0
    assert sha256(MODEL) in out
    assert sha256(OTHER) in out
    assert load_backbone("hf:owner/small").digest == sha256(OTHER)


def test_a_registered_backbone_cannot_be_changed(run, entry, hub):
    code, out, _ = run("models", "accept", "small", "--yes")
    assert (code, "is pinned to its registered SHA-256" in out) == (1, True)
    assert not hub.requests


def test_a_fitted_estimator_refuses_what_was_accepted_since(hub, run):
    offer(hub)
    extractor = PretrainedFeatureExtractor("hf:owner/small").fit(PIXELS)
    offer(hub, small_classifier(7).SerializeToString())
    run("models", "accept", "hf:owner/small", "--yes")
    with pytest.raises(BackboneError, match="must be the one seen by fit"):
        extractor.transform(PIXELS)


def test_nothing_is_fetched_by_listing(run, hub):
    run("models", "list")
    run("models", "show", "vgg16")
    assert not hub.requests
    assert not store_folder().exists()
