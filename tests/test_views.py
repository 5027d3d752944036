"""Views: what is averaged, that each costs one pass ever, and that files and estimators know of them."""

import json
import multiprocessing
import os
import pickle
import sqlite3
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
from conftest import IMAGENET, encode, photo, save_backbone, small_classifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

import sktransfer.embedding
from sktransfer import (
    BackboneError,
    ImageReadError,
    ImageReadWarning,
    Preprocessing,
    PretrainedFeatureExtractor,
    cache_info,
    export_onnx,
    extract,
    make_image_block,
    prefetch,
    rank_backbones,
)
from sktransfer.cache import close_all, locate_cache, open_cache
from sktransfer.database import FILE_NAME
from sktransfer.digests import digest_bytes, digest_pixels
from sktransfer.exported import ExportedModel
from sktransfer.extraction import plan_extraction
from sktransfer.graph import INPUT_NAME
from sktransfer.options import ExtractionOptions, find_spaces
from sktransfer.session import forward_passes

COSTS = {"center": 1, "flip": 2, "five_crop": 5}
VIEWS = list(COSTS)
SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **IMAGENET}


@pytest.fixture
def passes():
    """How many images were run since the last call."""
    last = [forward_passes()]

    def count():
        last.append(forward_passes())
        return last[-1] - last[-2]

    return count


@pytest.fixture
def decoded(monkeypatch):
    """Contents that were decoded."""
    found, decoding = [], sktransfer.embedding.decoding
    monkeypatch.setattr(
        sktransfer.embedding, "decoding", lambda content, *rest: found.append(content) or decoding(content, *rest)
    )
    return found


@pytest.fixture
def spaces(backbone_file):
    def find(views):
        return find_spaces(plan_extraction(backbone_file, views=views), ExtractionOptions())

    return find


def slow_views(pixels, views, shorter=36, crop=32):
    """Windows of a photo, by Pillow alone; shorter is not shorter than crop."""
    image = Image.fromarray(pixels)
    scale = shorter / min(image.size)
    size = [shorter if side == min(image.size) else int(side * scale) for side in image.size]
    image = image.resize(size, Image.Resampling.BILINEAR)
    right, bottom = size[0] - crop, size[1] - crop
    starts = [(round(right / 2), round(bottom / 2)), (0, 0), (right, 0), (0, bottom), (right, bottom)]
    windows = [np.asarray(image.crop((x, y, x + crop, y + crop))) for x, y in starts]
    return {"center": windows[:1], "flip": [windows[0], windows[0][:, ::-1]], "five_crop": windows}[views]


def slow_vector(backbone, pixels, views, **geometry):
    """The mean of what the graph makes of each window."""
    model = plan_extraction(backbone).graph.build_model().SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = [session.run(None, {INPUT_NAME: window[None]})[0][0] for window in slow_views(pixels, views, **geometry)]
    total = np.zeros(found[0].shape)
    for vector in found:
        total += vector
    return (total / len(found)).astype(np.float32)


# -- what is averaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", VIEWS)
def test_an_embedding_is_the_mean_of_what_the_graph_makes_of_each_view(embed, backbone_file, photos, views):
    photos += [photo(9, 70, 41), photo(10, 36, 36)]
    expected = np.stack([slow_vector(backbone_file, pixels, views) for pixels in photos])
    np.testing.assert_array_equal(embed(photos, views=views), expected)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.one_of(st.none(), st.integers(1, 50), st.tuples(st.integers(1, 50), st.integers(1, 50))),
)
def test_the_first_of_five_crops_is_the_centre_and_all_have_its_size(size, crop, resize):
    preprocessing, image = Preprocessing(crop, resize), Image.fromarray(photo(0, *size))
    five = preprocessing.resize_and_crop_five(image)
    np.testing.assert_array_equal(five[0], preprocessing.resize_and_crop(image))
    assert [window.shape for window in five] == [(*crop, 3)] * 5


def test_corners_of_a_strip_are_cropped_while_it_is_resized(monkeypatch):
    preprocessing, image = Preprocessing((32, 48), 36), Image.fromarray(photo(0, 90, 400))
    whole = preprocessing.resize_and_crop_five(image)
    monkeypatch.setattr("sktransfer.preprocessing.MAX_RESIZED_PIXELS", 0)
    parts = preprocessing.resize_and_crop_five(image)
    assert np.abs(np.subtract(whole, parts, dtype=int)).max() <= 1


@pytest.mark.parametrize(("n_jobs", "batch_size"), [(1, "auto"), (3, "auto"), (1, 4), (2, 64)])
def test_threads_batches_and_the_cache_change_no_bit(embed, photos, n_jobs, batch_size):
    expected = embed(photos, views="five_crop", cache_dir=None)
    embed(photos[1:4], views="flip")  # so that the centre of some is known
    found = embed(photos, views="five_crop", n_jobs=n_jobs, batch_size=batch_size)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(embed(photos, views="five_crop"), expected)


def test_several_images_of_a_cell_are_averaged_view_by_view(embed, photos):
    cells = [[photos[0], photos[1]], photos[2]]
    first, second, third = embed(photos[:3], views="flip").astype(float)
    np.testing.assert_array_equal(embed(cells, views="flip"), np.float32([(first + second) / 2, third]))


@pytest.mark.parametrize("views", ["centre", None, 2, ["flip"]])
def test_other_views_are_refused(embed, photos, views):
    with pytest.raises(ValueError, match=r'^views must be "center", "flip" or "five_crop"\. Got .* instead\.$'):
        embed(photos, views=views)


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", VIEWS)
def test_each_distinct_image_is_run_once_a_view(embed, photo_files, passes, views):
    embed([*photo_files, *photo_files], views=views, n_jobs=3)
    assert passes() == 6 * COSTS[views]
    embed(photo_files[::-1], views=views)
    close_all()  # as a new process
    embed(photo_files, views=views)
    assert passes() == 0
    embed([*photo_files, *photo_files], views=views, cache_dir=None)
    assert passes() == 6 * COSTS[views]


def test_views_that_are_known_are_not_run_again(embed, photos, passes):
    for views, expected in (("center", 6), ("flip", 6), ("five_crop", 24), ("flip", 0), ("center", 0)):
        embed(photos, views=views)
        assert passes() == expected


def test_the_centre_of_other_views_is_the_embedding_of_center(embed, photos, passes):
    expected = embed(photos, cache_dir=None)
    embed(photos, views="five_crop")
    passes()
    np.testing.assert_array_equal(embed(photos), expected)
    assert passes() == 0


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(st.sampled_from(VIEWS), st.sets(st.integers(0, 5), min_size=1)), max_size=5))
def test_whatever_came_before_the_result_is_the_same(embed, photos, calls, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    for views, chosen in calls:
        expected = embed(photos, views=views)[sorted(chosen)]
        found = embed([photos[i] for i in sorted(chosen)], views=views, cache_dir=cache)
        np.testing.assert_array_equal(found, expected)


def test_an_image_is_decoded_once_for_all_its_views(embed, photo_files, decoded):
    embed(photo_files, views="five_crop", n_jobs=2)
    assert len(decoded) == 6
    embed(photo_files, views="flip")
    assert set(Counter(decoded).values()) == {2}  # the mirror images were not known


@pytest.mark.parametrize(("shape", "expected"), [((40, 40), 1), ((40, 60), 3), ((60, 40), 3), ((20, 20), 1)])
def test_views_with_the_same_pixels_cost_one_pass(tmp_path, passes, shape, expected):
    backbone = str(save_backbone(tmp_path / "square", small_classifier(), SQUARE))
    pixels = photo(3, *shape)
    found = extract([pixels], backbone, views="five_crop")
    assert passes() == expected
    np.testing.assert_array_equal(found[0], slow_vector(backbone, pixels, "five_crop", shorter=32))
    assert cache_info().entries == 5
    extract([pixels], backbone, views="five_crop")
    assert passes() == 0


def test_an_image_smaller_than_the_crop_lies_in_the_middle_of_all_five(embed, passes):
    small = Preprocessing(crop=(32, 32))
    found = embed([photo(0, 20, 30)], views="five_crop", preprocessing=small)
    np.testing.assert_array_equal(found, embed([photo(0, 20, 30)], preprocessing=small, cache_dir=None))
    assert passes() == 2


def test_five_crops_that_are_the_same_for_every_image_are_refused(embed, photos):
    message = (
        r'^views="five_crop" must have a resize that is larger than the crop\. Got resize=\(32, 32\) and crop=\(32'
    )
    with pytest.raises(ValueError, match=message):
        embed(photos, views="five_crop", preprocessing=Preprocessing((32, 32), (32, 32)))
    assert embed(photos, views="five_crop", preprocessing=Preprocessing((32, 32), (32, 33))).shape == (6, 8)


def test_one_image_is_one_step_of_the_bar(embed, photos, capfd):
    embed(photos, views="five_crop", verbose=True)
    assert "6/6" in capfd.readouterr().err


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", VIEWS)
def test_the_key_of_the_centre_is_what_it_was_before_there_were_views(backbone_file, spaces, views):
    digest = plan_extraction(backbone_file).graph.digest
    context = repr((2, '[36, [32, 32], "bilinear"]', digest, "cpu", None))
    assert spaces(views)[0].key == sha256(context.encode()).digest()
    assert len({space.key for space in [*spaces("flip"), *spaces("five_crop")[1:]]}) == 6


def test_the_cache_says_which_vectors_are_of_which_view(embed, photos):
    embed(photos, views="flip")
    found = cache_info().backbones.set_index("layer")["entries"]
    assert dict(found) == {"pooled": 6, "pooled (mirror)": 6}
    embed(photos, views="flip")
    assert (cache_info().hits, cache_info().misses) == (6, 6)


def start(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return lambda: thread.join(20) or results[0]


def wait_for_passes(count):
    deadline = time.monotonic() + 20
    while forward_passes() < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("publishes", [True, False])
def test_a_view_that_others_compute_is_waited_for(embed, photos, passes, spaces, number, publishes):
    cache, space, image = open_cache(), spaces("flip")[number], digest_pixels(photos[0])
    center, both = embed(photos[:1], cache_dir=None)[0], embed(photos[:1], views="flip", cache_dir=None)[0]
    own = (center, 2 * both - center)[number]
    claim, before = cache.claim(space, [image]), forward_passes()
    finish = start(lambda: embed(photos, views="flip"))
    wait_for_passes(before + 10 + number)  # of an image whose centre others compute, none
    time.sleep(0.05)
    passes()
    cache.publish(space, [image], own[None], claim) if publishes else cache.release(claim)
    np.testing.assert_allclose(finish()[0], both, rtol=1e-6)
    assert (passes(), forward_passes() - before) == (2 - number - publishes, 12 - publishes)


def test_an_image_that_changes_while_it_is_waited_for_is_new_in_all_views(embed, photo_files, photos, spaces):
    space, content = spaces("flip")[1], Path(photo_files[0]).read_bytes()
    new = embed(photos[5:], views="flip", cache_dir=None)
    claim, before = open_cache().claim(space, [digest_bytes(content)]), forward_passes()
    finish = start(lambda: embed(photo_files[:1], views="flip"))
    wait_for_passes(before + 1)  # the centre
    Path(photo_files[0]).write_bytes(encode(photos[5]))
    open_cache().release(claim)
    np.testing.assert_array_equal(finish(), new)
    np.testing.assert_array_equal(embed(photo_files[5:], views="flip"), new)
    assert open_cache().contains(space, [digest_bytes(content)]) == set()


def test_threads_with_other_views_of_the_same_images_share_them(embed, passes):
    images = [photo(seed) for seed in range(40)]
    ends = [start(lambda views=views: embed(images, views=views, n_jobs=2)) for views in VIEWS * 2]
    found = [end() for end in ends]
    assert passes() == 40 * 6
    for views, vectors in zip(VIEWS * 2, found, strict=True):
        np.testing.assert_array_equal(vectors, embed(images, views=views))


def count_in_child(queue, backbone, views):
    before = forward_passes()
    extract([photo(seed) for seed in range(40)], backbone, views=views, n_jobs=1)
    queue.put(forward_passes() - before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_processes_with_other_views_of_the_same_images_share_them(backbone_file):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=count_in_child, args=(queue, backbone_file, views)) for views in VIEWS]
    for child in children:
        child.start()
    assert sum(queue.get(timeout=20) for _ in children) == 40 * 6
    for child in children:
        child.join()


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_broken_image_is_one_failure_whatever_the_views(embed, photos, passes):
    with pytest.warns(ImageReadWarning, match=r"^Row 1 .*Such rows are filled") as caught:
        vectors = embed([photos[0], b"broken", photos[1]], views="five_crop", broken_images="nan")
    assert [(len(caught), [failure.row for failure in one.message.failures]) for one in caught] == [(1, [1])]
    assert np.isnan(vectors).any(axis=1).tolist() == [False, True, False]
    assert passes() == 10
    connection = sqlite3.connect(locate_cache() / FILE_NAME)
    assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    connection.close()


def test_an_image_that_breaks_while_it_is_waited_for_fails_once(embed, photo_files, spaces):
    content = Path(photo_files[0]).read_bytes()
    claim = open_cache().claim(spaces("flip")[1], [digest_bytes(content)])
    embed(photo_files[:1])
    finish = start(lambda: extract_report(embed, photo_files))
    time.sleep(0.1)
    Path(photo_files[0]).write_bytes(b"broken")
    open_cache().release(claim)
    assert finish() == [0]


def extract_report(embed, images):
    try:
        embed(images, views="flip")
    except ImageReadError as error:
        return [failure.row for failure in error.failures]


# -- several backbones ------------------------------------------------------------------------------------------------


def test_prefetch_decodes_once_for_all_backbones_and_views(backbone_file, tmp_path, photo_files, decoded, passes):
    other = str(save_backbone(tmp_path / "other", small_classifier(seed=3), SQUARE))
    prefetch(photo_files, [backbone_file, other], views="flip", n_jobs=1)
    assert (passes(), len(decoded)) == (24, 6)
    for backbone in (backbone_file, other):
        extract(photo_files, backbone, views="flip")
    assert (passes(), len(decoded)) == (0, 6)


def test_backbones_are_ranked_by_the_embeddings_of_the_views(backbone_file, photos, passes):
    images, labels = [photo(seed) for seed in range(12)], ["a", "b"] * 6
    tables = [rank_backbones(images, labels, backbone_file, views=views, n_resamples=0) for views in ("center", "flip")]
    assert tables[1]["macs"][0] == 2 * tables[0]["macs"][0]
    assert tables[1]["logme"][0] != tables[0]["logme"][0]
    passes()
    extract(images, backbone_file, views="flip")
    assert passes() == 0


# -- the estimator ----------------------------------------------------------------------------------------------------


def test_a_fitted_extractor_refuses_other_views(backbone_file, photos):
    extractor = PretrainedFeatureExtractor(backbone_file, views="flip").fit(photos)
    expected = extractor.transform(photos)
    np.testing.assert_array_equal(expected, extract(photos, backbone_file, views="flip"))
    with pytest.raises(BackboneError, match=r"^views must be those seen by fit, 'flip'\. Got 'center' instead; bring"):
        extractor.set_params(views="center").transform(photos)
    np.testing.assert_array_equal(extractor.set_params(views="flip").transform(photos), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(extractor)).transform(photos), expected)


def test_the_graph_and_the_names_are_the_same_for_all_views(backbone_file, photos):
    fitted = [PretrainedFeatureExtractor(backbone_file, views=views).fit(photos) for views in VIEWS]
    assert len({(one.graph_digest_, *one.get_feature_names_out()) for one in fitted}) == 1


def test_an_extractor_pickled_before_there_were_views_has_the_centre(backbone_file, photos):
    extractor = PretrainedFeatureExtractor(backbone_file).fit(photos)
    for name in ("views", "_views"):
        del extractor.__dict__[name]
    old = pickle.loads(pickle.dumps(extractor))
    np.testing.assert_array_equal(old.transform(photos), extract(photos, backbone_file))
    assert clone(old).get_params()["views"] == "center"
    assert "views" not in repr(old)
    with pytest.raises(BackboneError, match="seen by fit, 'center'"):
        old.set_params(views="flip").transform(photos)


def test_the_image_block_takes_views(backbone_file, photos):
    block = make_image_block(backbone_file, 2, views="flip")
    frame = pd.DataFrame({"photo": [*photos, None]})
    assert block.fit_transform(frame).shape == (7, 3)
    assert clone(block)["extractor"].views == "flip"


# -- commands and files -----------------------------------------------------------------------------------------------


def test_the_command_writes_the_embeddings_of_the_views(run_command, photo_files, backbone_file, tmp_path, monkeypatch):
    monkeypatch.setattr("sktransfer.locations.RACY_NS", 0)
    table, output = tmp_path / "table.csv", f"{tmp_path / 'parts'}/"
    table.write_text("\n".join(["photo", *photo_files]) + "\n", "utf-8")
    arguments = ("extract", table, "--column", "photo", "--backbone", backbone_file, "-q", "-o", output, "--views")
    assert run_command(*arguments, "flip")[0] == 0
    found = pd.read_parquet(tmp_path / "parts" / "part-000000.parquet").drop(columns="photo")
    np.testing.assert_array_equal(found, extract(photo_files, backbone_file, views="flip"))
    assert json.loads((tmp_path / "parts" / "_job.json").read_text("utf-8"))["views"] == "flip"
    code, _, err = run_command(*arguments, "center")
    assert (code, "hold parts of the same" in err) == (1, True)
    for views, known in (("flip", 6), ("five_crop", 0)):
        assert f"in the cache   {known}\n" in run_command(*arguments, views, "--dry-run", "-o", tmp_path / "x.csv")[1]


@pytest.fixture
def square_photos():
    return [photo(seed, 32, 32) for seed in range(12)]


def save_square(tmp_path, frozen=False):
    shape = (1 if frozen else "n", 3, 32, 32)
    return str(save_backbone(tmp_path / "square", small_classifier(shape=shape), SQUARE))


@pytest.mark.parametrize(("columns", "frozen"), [(1, False), (2, False), (2, True)])
def test_an_exported_file_mirrors_the_photo_itself(tmp_path, square_photos, columns, frozen):
    pytest.importorskip("skl2onnx")
    X = pd.DataFrame({"front": square_photos, "back": square_photos[::-1]}).iloc[:, :columns]
    extractor = PretrainedFeatureExtractor(save_square(tmp_path, frozen), views="flip")
    pipeline = make_pipeline(extractor, LogisticRegression()).fit(X, [0, 1, 2] * 4)
    report = export_onnx(pipeline, tmp_path / "file.onnx", check=X, tolerance=1e-7)
    assert report.label_agreement == 1.0


def test_a_file_has_one_network_for_all_views_and_the_resize_before_it(tmp_path, photos):
    pytest.importorskip("skl2onnx")
    backbone = save_square(tmp_path)
    both = make_union(*(PretrainedFeatureExtractor(backbone, views=views) for views in ("center", "flip")))
    pipeline = make_pipeline(both, LogisticRegression()).fit(photos, [0, 1, 2] * 2)
    export_onnx(pipeline, tmp_path / "file.onnx", check=photos, include_resize=True, tolerance=0.01)
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "file.onnx").graph.node)
    assert (nodes["Conv"], nodes["Resize"]) == (2, 2)
    stated = ExportedModel(tmp_path / "file.onnx").info["backbones"]
    assert [one["views"] for one in stated] == ["center", "flip"]


def test_five_crops_are_not_exported(backbone_file, photos, tmp_path):
    pytest.importorskip("skl2onnx")
    pipeline = make_pipeline(PretrainedFeatureExtractor(backbone_file, views="five_crop"), LogisticRegression())
    message = (
        r'only with views="center" or "flip", .* Got views=\'five_crop\' instead; set another one and fit again\.$'
    )
    with pytest.raises(ValueError, match=message):
        export_onnx(pipeline.fit(photos, [0, 1] * 3), tmp_path / "file.onnx", check=photos)
