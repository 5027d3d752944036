"""rank_backbones: candidates, one decoding, scores, intervals, what is left out."""

import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import IMAGENET, Builder, encode, photo, save_backbone, small_classifier

import sktransfer.embedding
import sktransfer.selection
import sktransfer.sweep
from sktransfer import (
    BackboneError,
    CacheWarning,
    ImageReadError,
    ImageReadWarning,
    PretrainedFeatureExtractor,
    cache_info,
    extract,
    leep_score,
    linear_probe_score,
    load_backbone,
    logme_score,
    nce_score,
    prefetch,
    rank_backbones,
)
from sktransfer.cache import NO_CACHE
from sktransfer.candidates import describe_downloads
from sktransfer.intervals import draw_subsets, find_interval
from sktransfer.session import forward_passes

SMALLER = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, **IMAGENET}
LABELS = np.array(["dark", "bright"] * 12)

rank = partial(rank_backbones, n_resamples=0)  # most of its time here are the intervals


def headless(seed=5):
    b = Builder(seed)
    x = b.node("Relu", b.conv("input", 3, 4, stride=2))
    return b.model([b.node("Flatten", b.node("GlobalAveragePool", x), output="features", axis=1)], ("n", 3, 24, 24))


@pytest.fixture
def pictures():
    """24 images, every other one bright."""
    return [(photo(seed) // 3 + 100 * (seed % 2)).astype(np.uint8) for seed in range(24)]


@pytest.fixture
def three(tmp_path, backbone_file):
    """Two small classifiers of one geometry, and a headless network of another."""
    other = save_backbone(tmp_path / "other", small_classifier(seed=3))
    return [backbone_file, str(other), str(save_backbone(tmp_path / "headless", headless(), SMALLER))]


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(sktransfer.sweep, "TIMED_ROUNDS", 1)


@pytest.fixture
def not_timed(monkeypatch):
    """Timing takes forward passes of its own."""
    monkeypatch.setattr(sktransfer.selection, "measure_rate", lambda *_: 1.0)


@pytest.fixture
def decoded(monkeypatch):
    """How often each content was decoded."""
    counts, decoding = Counter(), sktransfer.embedding.decoding

    def count(content, pixel_range):
        counts[content if isinstance(content, bytes) else content.tobytes()] += 1
        return decoding(content, pixel_range)

    monkeypatch.setattr(sktransfer.embedding, "decoding", count)
    return counts


@pytest.fixture
def passes():
    last = [forward_passes()]

    def count():
        last.append(forward_passes())
        return last[-1] - last[-2]

    return count


def test_the_table_holds_the_scores_of_each_backbones_own_embeddings_best_first(pictures, three):
    table = rank_backbones(pictures, LABELS, three, scores=["logme", "linear_probe"])
    for row in table.itertuples():
        X = extract(pictures, row.backbone, layer=row.layer)
        assert row.logme == pytest.approx(logme_score(X, LABELS))
        assert row.linear_probe == pytest.approx(linear_probe_score(X, LABELS))
        assert row.n_features == X.shape[1]
    assert table["logme"].is_monotonic_decreasing
    assert table["rank"].tolist() == [1, 2, 3]
    assert set(table["backbone"]) == set(three)
    assert (table["images_per_second"] > 0).all()
    assert ((table["low"] <= table["high"]) & (table["high"] > table["low"])).all()


def test_macs_are_counted_by_hand_up_to_the_layer(pictures, backbone_file):
    table = rank(pictures, LABELS, backbone_file, layers=["logits", "penultimate"]).set_index("layer")
    convolutions = 16 * 16 * 6 * 3 * 9 + 8 * 8 * 8 * 6 * 9
    assert table["macs"].to_dict() == {"penultimate": convolutions, "logits": convolutions + 8 * 5}


def test_an_image_is_decoded_once_and_embedded_once_a_candidate(pictures, three, decoded, passes, not_timed):
    files = [encode(pixels) for pixels in pictures]
    rank([*files, files[0]], [*LABELS, "dark"], three, layers={three[0]: ["last_relu", "vector"]}, n_jobs=1)
    assert set(decoded.values()) == {1}
    assert len(decoded) == 24
    assert passes() == 24 * 4


def test_a_second_call_decodes_nothing_and_embeds_nothing(pictures, three, decoded, passes, not_timed):
    first = rank(pictures, LABELS, three)
    decoded.clear()
    passes()
    pd.testing.assert_frame_equal(rank(pictures, LABELS, three), first)
    assert (passes(), len(decoded)) == (0, 0)


def test_the_extractor_finds_what_was_embedded(pictures, three, passes):
    table = rank(pictures, LABELS, three, layers=["penultimate", "last_map"])
    passes()
    for row in table.itertuples():
        PretrainedFeatureExtractor(row.backbone, layer=row.layer).fit_transform(pictures)
    assert passes() == 0


def test_timing_runs_fresh_images_however_warm_the_cache_is(pictures, backbone_file, passes):
    rank(pictures, LABELS, backbone_file)
    assert passes() == 24 + 1 + 16
    table = rank(pictures, LABELS, backbone_file)
    assert passes() == 1 + 16
    assert table["images_per_second"][0] > 0


def test_parts_of_any_size_give_the_same_table(pictures, three, monkeypatch, decoded, not_timed):
    whole = rank(pictures, LABELS, three, cache_dir=None)
    decoded.clear()
    monkeypatch.setattr(sktransfer.sweep, "PART_IMAGES", 5)
    monkeypatch.setattr(sktransfer.sweep, "PART_BYTES", 1)
    pd.testing.assert_frame_equal(rank(pictures, LABELS, three, cache_dir=None), whole)
    assert set(decoded.values()) == {1}


def test_without_a_cache_the_numbers_are_the_same_and_nothing_is_kept(pictures, three, not_timed):
    table = rank(pictures, LABELS, three, scores=["logme", "leep"], cache_dir=None)
    assert cache_info().entries == 0
    pd.testing.assert_frame_equal(rank(pictures, LABELS, three, scores=["logme", "leep"]), table)


def test_a_cache_that_cannot_be_written_costs_no_second_pass(pictures, three, tmp_path, passes, decoded, not_timed):
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="cannot be used"):
        rank(pictures, LABELS, three, cache_dir=tmp_path / "file")
    assert passes() == 3 * 24
    assert set(decoded.values()) == {1}


def test_prefetch_decodes_an_image_once_for_all_backbones(pictures, three, decoded, passes):
    prefetch(pictures, three)
    assert set(decoded.values()) == {1}
    assert passes() == 3 * 24


def test_the_bar_counts_every_image_of_every_candidate_and_what_is_fetched_is_said(pictures, three, capsys):
    with pytest.warns(ImageReadWarning):
        rank([*pictures, b"bad"], [*LABELS, "dark"], three, verbose=True)
    assert "75/75" in capsys.readouterr().err


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_rows_without_an_image_are_left_out_for_all_alike_and_named(pictures, three, not_timed):
    images = [b"bad", *pictures[:10], None, *pictures[10:]]
    labels = ["dark", *LABELS[:10], "bright", *LABELS[10:]]
    with pytest.warns(ImageReadWarning, match=r"^Row 0 \(3 bytes\) could not be read.*are left out") as caught:
        table = rank(images, labels, three, groups=np.arange(26))
    assert [(failure.row, failure.missing) for failure in caught[0].message.failures] == [(0, False), (11, True)]
    expected = rank(pictures, LABELS, three, groups=np.arange(24))
    pd.testing.assert_frame_equal(table[["backbone", "logme"]], expected[["backbone", "logme"]])


def test_a_broken_image_is_tried_once_for_all_candidates(pictures, three, decoded, not_timed):
    with pytest.warns(ImageReadWarning):
        rank([*pictures, b"bad"], [*LABELS, "dark"], three)
    assert decoded[b"bad"] == 1


def test_several_images_and_columns_of_a_row_are_those_of_the_extractor(pictures, three, not_timed):
    X = pd.DataFrame({"front": pictures, "back": [[a, b] for a, b in zip(pictures, pictures[::-1], strict=True)]})
    broken = X.assign(back=[[X["back"][0][0], b"bad"], *X["back"][1:]])
    with pytest.warns(ImageReadWarning, match="back"):
        table = rank(broken, LABELS, three[:1], cache_dir=None)
    expected = extract(X.assign(back=[[pictures[0]], *X["back"][1:]]), three[0])
    assert table["logme"][0] == pytest.approx(logme_score(expected, LABELS))


def test_a_wrong_folder_is_an_error(three, tmp_path):
    with pytest.raises(ImageReadError, match=r"3 of 4 rows have no readable image \(root=.*is this the right folder"):
        rank(["a.jpg", "b.jpg", "c.jpg", photo(0)], list("abab"), three, root=tmp_path)


# -- candidates -------------------------------------------------------------------------------------------------------


def test_a_layer_that_some_do_not_have_is_left_out_with_one_warning(pictures, three):
    with pytest.warns(UserWarning, match=r"^Left out.*'logits' of headless\.$"):
        table = rank(pictures, LABELS, three, layers=["penultimate", "logits"])
    assert sorted(table["layer"]) == ["logits"] * 2 + ["penultimate"] * 3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["penultimate", "stage9"], "None has 'stage9'"),
        ({"default": ["stage9"]}, "stage9"),
        ({"resnet18": ["stage1"]}, "keys of layers must be among backbones. Got 'resnet18-"),
        ([], r"must be None, a list of layers, or a dict .* Got \[\] instead"),
        ([3], r"Got \[3\] instead"),
    ],
)
def test_wrong_layers_are_refused_before_the_work(pictures, passes, layers, message):
    with pytest.raises(ValueError, match=message):
        rank(pictures, LABELS, "default", layers=layers)
    assert passes() == 0


def test_the_same_graph_is_one_candidate_and_a_list_is_a_concatenation(pictures):
    layers = [None, "features", "penultimate", ["stage3", "stage4"]]
    table = rank(pictures, LABELS, ["default", "tiny-v1", load_backbone("tiny-v1")], layers=layers)
    assert dict(zip(table["layer"], table["n_features"], strict=True)) == {"features": 256, "stage3 + stage4": 384}
    assert set(table["backbone"]) == {"tiny-v1"}


def test_a_path_and_its_text_are_one_backbone(pictures, three, not_timed):
    table = rank(pictures, LABELS, [three[0], Path(three[0])], layers={Path(three[0]): ["last_relu"]})
    assert table[["backbone", "layer"]].to_numpy().tolist() == [[three[0], "last_relu"]]


def test_a_backbone_that_cannot_be_opened_is_named_before_the_work(pictures, three, tmp_path, passes):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(BackboneError, match=r"broken\.onnx"):
        rank(pictures, LABELS, [*three, tmp_path / "broken.onnx"])
    assert passes() == 0


def test_what_is_not_on_this_machine_is_named_with_its_size():
    text = describe_downloads(["tiny-v1", "resnet50-v1-12", "hf:someone/something"], NO_CACHE)
    assert text == (
        "To be fetched: 102.6 MB and what the last of them take, resnet50-v1-12 (102.6 MB), hf:someone/something "
        "(size unknown)."
    )
    assert describe_downloads(["tiny-v1"], NO_CACHE) == ""


def test_the_sizes_are_said_before_anything_is_fetched(pictures, monkeypatch, caplog, capsys):
    def fetch(*args, **options):
        raise BackboneError(f"asked after {len(caplog.messages)} message")

    monkeypatch.setattr(sktransfer.backbones, "fetch_registered", fetch)
    with caplog.at_level(logging.INFO), pytest.raises(BackboneError, match="asked after 1 message"):
        rank(pictures, LABELS, ["default", "vgg16-12"], verbose=True)
    assert "vgg16-12 (" in capsys.readouterr().err


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_of_classifiers_take_its_logits_and_are_nan_without_one(pictures, three, not_timed):
    table = rank_backbones(pictures, LABELS, three, scores=["leep", "nce"], pooling="max", n_resamples=3).set_index(
        "backbone"
    )
    for reference in three[:2]:
        logits = extract(pictures, reference, layer="logits")
        assert table["leep"][reference] == pytest.approx(leep_score(logits, LABELS))
        assert table["nce"][reference] == pytest.approx(nce_score(logits, LABELS))
    assert table.loc[three[2], ["leep", "low"]].isna().all()
    assert table["rank"][three[2]] == 3


def test_a_function_can_rank(pictures, three, not_timed):
    def width(X, y):
        return -X.shape[1]

    table = rank(pictures, LABELS, three, scores=[width, "h_score"])
    assert table.columns[3:5].tolist() == ["width", "h_score"]
    assert table["width"].tolist() == [-4.0, -8.0, -8.0]


def test_floats_are_values_of_a_regression(pictures, three, not_timed):
    brightness = np.array([pixels.mean() for pixels in pictures])
    table = rank(pictures, brightness, three[:1], scores=["linear_probe", "logme"], cv=4)
    X = extract(pictures, three[0])
    assert table["linear_probe"][0] == pytest.approx(linear_probe_score(X, brightness, cv=4))
    assert table["logme"][0] == pytest.approx(logme_score(X, brightness - brightness.mean()))


def test_the_order_of_a_regression_does_not_depend_on_where_its_zero_is(pictures, three, not_timed):
    brightness = np.array([pixels.mean() for pixels in pictures])
    tables = [rank_backbones(pictures, brightness + shift, three, n_resamples=5) for shift in (0.0, 1000.0)]
    np.testing.assert_allclose(tables[0][["logme", "low", "high"]], tables[1][["logme", "low", "high"]], rtol=1e-6)


def test_groups_stay_together_in_the_probe(pictures, three, not_timed):
    groups = np.arange(24) // 4
    table = rank(pictures, LABELS, three[:1], scores="linear_probe", groups=groups)
    expected = linear_probe_score(extract(pictures, three[0]), LABELS, groups=groups)
    assert table["linear_probe"][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": [*LABELS[:23], None]}, "None in row 23"),
        ({"y": pd.Series([pd.NA, *LABELS[1:]])}, "in row 0"),
        ({"y": LABELS[:5]}, "for each of the 24 rows. Got 5"),
        ({"y": ["dark"] * 24}, "at least 2 classes. Got 'dark'"),
        ({"y": [np.nan, *range(23)]}, "finite. Got nan in row 0"),
        ({"backbones": []}, "at least one backbone"),
        ({"backbones": ["default", "no-such"]}, "Got 'no-such' instead"),
        ({"scores": []}, "at least one score"),
        ({"scores": ["logme", "lgme"]}, "'nce'. Got 'lgme' instead"),
        ({"scores": ["logme", "logme"]}, "different names.* Got 'logme'"),
        ({"y": np.linspace(0, 1, 24), "scores": ["logme", "leep"]}, "'leep' needs classes"),
        ({"groups": [1, 2]}, r"groups must have one entry for each of the 24 rows. Got shape \(2,\)"),
        ({"groups": [None] * 24}, "groups must have an entry in each row. Got None in row 0"),
        ({"groups": pd.Series(["a", pd.NA] * 12, dtype="string")}, "Got <NA> in row 1"),
        ({"groups": [1] * 24, "scores": "linear_probe"}, "groups must have at least 2 values"),
        ({"cv": 13, "scores": ["logme", "linear_probe"]}, "an integer from 2 to 12 for this y. Got 13"),
        ({"y": np.arange(24), "scores": "linear_probe"}, "a class with at least 2 samples"),
        ({"backbones": None}, "names, paths of .onnx files or Backbones. Got None"),
        ({"backbones": ["default", 3]}, "Got 3 instead"),
        ({"cv": [(np.arange(12), np.arange(12))]}, "a splitter, since rows .* Got a list instead"),
        ({"n_resamples": -1}, "n_resamples must be an integer >= 0. Got -1"),
        ({"random_state": None}, "random_state must be an integer >= 0. Got None"),
    ],
)
def test_bad_input_is_one_sentence_before_the_work(pictures, passes, options, message):
    with pytest.raises(ValueError, match=message):
        rank_backbones(pictures, **{"y": LABELS, **options})
    assert passes() == 0


# -- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem(rng):
    values = rng.normal(size=400)
    for max_rows in (400, 80):
        subsets = draw_subsets(None, None, 400, 2000, max_rows, 0)
        low, high = find_interval(values.mean(), [values[rows].mean() for rows in subsets], len(subsets[0]), 400)
        assert (high - low) / 2 == pytest.approx(1.645 * values.std() / 20, rel=0.07)


def test_few_parts_make_an_interval_that_is_as_long(rng):
    values = rng.normal(size=(300, 20))
    lengths = np.diff([find_interval(0.0, row, 50, 100) for row in values], axis=1)
    assert lengths.mean() / 2 == pytest.approx(1.645, rel=0.05)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_part_has_every_class_and_no_row_twice(rng, grouped):
    labels = np.repeat([0, 1, 2], [1, 9, 90])
    groups = rng.permutation(np.arange(100) // 5) if grouped else None
    for rows in draw_subsets(labels, groups, 100, 50, 60, 0):
        assert len(np.unique(rows)) == len(rows)
        assert set(labels[rows]) == {0, 1, 2}
        assert 50 <= len(rows) <= 62
        if grouped:
            assert not set(groups[rows]) & set(np.delete(groups, rows))


def test_the_seed_chooses_the_parts(pictures, three, not_timed):
    tables = [rank_backbones(pictures, LABELS, three[0], random_state=seed).drop(columns="rank") for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert tables[0]["low"][0] != tables[2]["low"][0]
    assert tables[0]["logme"][0] == tables[2]["logme"][0]


def test_without_parts_there_is_no_interval(pictures, three, not_timed):
    table = rank_backbones(pictures, LABELS, three, n_resamples=0)
    assert table[["low", "high"]].isna().all(axis=None)
