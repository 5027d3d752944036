"""The data of models/registry.json: complete, consistent, and equal to the published digests."""

import csv
import json
import os
import re
from pathlib import Path

import pytest

from sktransfer import Preprocessing

REGISTRY = json.loads((Path(__file__).parents[1] / "models" / "registry.json").read_text("utf-8"))
ALIASES, BACKBONES = REGISTRY["aliases"], REGISTRY["backbones"]
ARCHITECTURES, PREPROCESSINGS = REGISTRY["architectures"], REGISTRY["preprocessings"]
FIELDS = {
    "architecture", "repository", "path", "revision", "bytes", "sha256", "license", "preprocessing", "layer", "top1",
    "top5", "accuracy_page",
}  # fmt: skip
FAMILIES = {"VGG", "ResNet", "Inception", "MobileNet", "SqueezeNet", "EfficientNet", "ShuffleNet"}


def test_every_digest_is_a_sha256_and_belongs_to_one_entry():
    digests = [entry["sha256"] for entry in BACKBONES.values()]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)


def test_every_alias_leads_to_an_entry_and_none_hides_one():
    assert set(ALIASES.values()) <= BACKBONES.keys()
    assert not ALIASES.keys() & BACKBONES.keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_entry_has_all_fields(name):
    entry = BACKBONES[name]
    assert entry.keys() >= FIELDS
    assert entry.keys() <= FIELDS | {"note", "source"}
    assert isinstance(entry["bytes"], int)
    assert entry["license"]
    assert entry["architecture"] in ARCHITECTURES
    assert entry["preprocessing"] in PREPROCESSINGS


@pytest.mark.parametrize("name", BACKBONES)
def test_every_accuracy_is_a_percentage_that_names_its_page(name):
    entry = BACKBONES[name]
    stated = [value for value in (entry["top1"], entry["top5"]) if value is not None]
    assert stated == sorted(stated)
    assert all(1 < value < 100 for value in stated)
    assert bool(stated) == bool(entry["accuracy_page"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_names_the_source_of_its_macs(name):
    architecture = ARCHITECTURES[name]
    assert architecture.keys() == {"family", "title", "n_features", "macs", "macs_source"}
    assert architecture["n_features"] >= 1
    assert (architecture["macs"] is None) == (architecture["macs_source"] is None)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_every_preprocessing_can_be_made_and_names_its_page(name):
    Preprocessing(**PREPROCESSINGS[name]["values"])
    page = PREPROCESSINGS[name]["page"]
    assert page.startswith("https://") or (name == "tiny" and page)


def test_every_architecture_and_preprocessing_is_used():
    assert {entry["architecture"] for entry in BACKBONES.values()} == ARCHITECTURES.keys()
    assert {entry["preprocessing"] for entry in BACKBONES.values()} == PREPROCESSINGS.keys()


def test_every_family_is_reachable_by_an_alias():
    reached = {ARCHITECTURES[BACKBONES[name]["architecture"]]["family"] for name in ALIASES.values()}
    assert reached >= FAMILIES


def test_bytes_path_and_digest_are_those_of_the_zoo():
    facts = Path(os.environ.get("SKTRANSFER_ASSETS", "")).parent / "facts" / "onnx_model_zoo.csv"
    if "SKTRANSFER_ASSETS" not in os.environ or not facts.is_file():
        pytest.skip("the zoo's list of files is not here")
    with facts.open(encoding="utf-8", newline="") as lines:
        zoo = {row["file"].removesuffix(".onnx"): row for row in csv.DictReader(lines)}
    for name, entry in BACKBONES.items():
        if entry["repository"] is not None:
            row = zoo[name]
            assert (entry["path"], entry["sha256"]) == (row["path_in_repo"], row["sha256"])
            assert entry["bytes"] == int(row["bytes"])
