import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import photo, save_backbone, small_classifier

import sktransfer.backbones
from sktransfer import Backbone, BackboneError, Preprocessing, extract, load_backbone


def test_the_embedded_backbone_is_what_default_means():
    backbone = load_backbone("default")
    assert (backbone.name, backbone.license) == ("tiny-v1", "BSD-3-Clause")
    assert load_backbone("tiny") is not backbone
    assert load_backbone("tiny") == backbone == load_backbone(backbone)


def test_the_embedded_backbone_loads_as_a_plain_file_too():
    registered = load_backbone("default")
    by_path = load_backbone(registered.path)
    assert (by_path.name, by_path.digest) == ("tiny-v1", registered.digest)
    assert by_path.preprocessing == registered.preprocessing
    np.testing.assert_array_equal(extract([photo(0)], by_path), extract([photo(0)]))


def test_a_wrong_digest_of_an_embedded_backbone_is_refused(tmp_path, monkeypatch):
    shutil.copytree(sktransfer.backbones.models_folder(), tmp_path / "models")
    with open(tmp_path / "models" / "tiny-v1" / "model.onnx", "ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(sktransfer.backbones, "models_folder", lambda: tmp_path / "models")
    with pytest.raises(BackboneError, match=r"must have the SHA-256 \w{64}\. Got \w{64} instead; install"):
        load_backbone("default")


def test_a_file_is_named_after_itself_or_its_folder(tmp_path):
    assert load_backbone(save_backbone(tmp_path / "resnet", small_classifier())).name == "resnet"
    assert load_backbone(tmp_path / "resnet").name == "resnet"
    assert load_backbone(save_backbone(tmp_path / "x", small_classifier(), name="vgg.onnx")).name == "vgg"


def test_repr_is_one_line(backbone_file):
    assert "\n" not in repr(load_backbone(backbone_file))


def test_preprocessing_in_the_metadata_wins_over_a_file_beside_it(tmp_path):
    model = small_classifier()
    expected = Preprocessing((32, 32), 40, mean=(0.5, 0.5, 0.5))
    onnx.helper.set_model_props(model, {"sktransfer.preprocessing": json.dumps(expected.to_dict())})
    assert load_backbone(save_backbone(tmp_path / "b", model)).preprocessing == expected


def test_unknown_preprocessing_is_an_error_not_a_guess(tmp_path):
    path = save_backbone(tmp_path / "b", small_classifier())
    (path.parent / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match='preprocessing of .* is unknown.* Pass preprocessing="imagenet"'):
        extract([photo(0)], path)
    assert extract([photo(0)], path, preprocessing="imagenet").shape == (1, 8)


def test_a_preset_needs_a_network_of_fixed_size(tmp_path):
    path = save_backbone(tmp_path / "b", small_classifier(shape=("n", 3, "h", "w")))
    with pytest.raises(BackboneError, match=r"does not state the size of its images; pass Preprocessing\(crop"):
        extract([photo(0)], path, preprocessing="imagenet")


@pytest.mark.parametrize("content", ["{", '{"size": 3}', '{"sktransfer": 1}'])
def test_a_broken_configuration_is_named(tmp_path, content):
    path = save_backbone(tmp_path / "b", small_classifier())
    (path.parent / "preprocessor_config.json").write_text(content)
    with pytest.raises(BackboneError, match=r"preprocessor_config.json cannot be used: .*pass preprocessing="):
        load_backbone(path)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("defualt", "Got 'defualt' instead; the nearest names are 'default'"),
        ("missing/model.onnx", "There is no file 'missing/model.onnx'"),
        (3, "Got 3 instead"),
        ("", "Got '' instead"),
    ],
)
def test_unknown_backbones_are_named(reference, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(reference)


def test_a_folder_without_model_and_a_file_without_onnx_are_named(tmp_path):
    with pytest.raises(BackboneError, match="holds no model.onnx"):
        load_backbone(tmp_path)
    (tmp_path / "text.onnx").write_text("I am a text, not a network")
    with pytest.raises(BackboneError, match=r"text.onnx is not an ONNX file"):
        load_backbone(tmp_path / "text.onnx")


def test_missing_external_data_are_named(tmp_path):
    path = tmp_path / "b.onnx"
    onnx.save(small_classifier(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    whole = load_backbone(path).digest
    with open(tmp_path / "w.bin", "ab") as file:
        file.write(b"\0")
    assert load_backbone(path).digest != whole
    (tmp_path / "w.bin").unlink()
    with pytest.raises(BackboneError, match=r"weights of .* are missing: put 'w.bin' beside it"):
        load_backbone(path)


def test_a_backbone_made_by_hand_computes_its_digest(tmp_path):
    path = tmp_path / "b.onnx"
    onnx.save(small_classifier(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    mine = Backbone("mine", str(path), preprocessing=Preprocessing((32, 32), 36))
    assert (mine.path, mine.digest) == (path, load_backbone(path).digest)
    with pytest.raises(BackboneError, match="There is no file 'missing.onnx'"):
        Backbone("mine", "missing.onnx")


def test_a_backbone_whose_file_has_changed_is_refused(backbone_file):
    backbone = load_backbone(backbone_file)
    onnx.save(small_classifier(1), backbone_file)
    with pytest.raises(
        BackboneError, match=r"that 'small' was made with\. Got \w+ instead: the file has changed since"
    ):
        extract([photo(0)], backbone)


def test_a_backbone_made_by_hand(backbone_file):
    loaded = load_backbone(backbone_file)
    by_hand = Backbone("mine", Path(backbone_file), loaded.digest, Preprocessing((32, 32), (32, 32)), "logits")
    assert extract([photo(0)], by_hand).shape == (1, 5)
    assert extract([photo(0)], by_hand, layer="penultimate").shape == (1, 8)
