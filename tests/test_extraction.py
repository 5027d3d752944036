import itertools
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import sktransfer
import sktransfer.embedding
from sktransfer import ImageReadError, ImageReadWarning, extract
from sktransfer.options import count_threads
from sktransfer.session import forward_passes


def test_path_bytes_image_array_and_dict_of_one_photo_give_one_vector(embed, photo_files, photos, tmp_path):
    path = photo_files[0]
    content = (tmp_path / "photo0.png").read_bytes()
    forms = [
        path, tmp_path / "photo0.png", content, bytearray(content), Image.fromarray(photos[0]), photos[0],
        photos[0].astype(np.int64), {"bytes": content, "path": None}, {"bytes": None, "path": path},
    ]  # fmt: skip
    vectors = embed(forms, cache_dir=None)
    assert (vectors == vectors[0]).all()


@pytest.mark.parametrize("n_jobs", [None, 1, 2, 5])
@pytest.mark.parametrize("batch_size", ["auto", 1, 3, 64])
def test_threads_and_batches_change_no_bit(embed, photos, n_jobs, batch_size):
    alone = np.concatenate([embed([image], cache_dir=None) for image in photos])
    together = embed(photos, cache_dir=None, n_jobs=n_jobs, batch_size=batch_size)
    np.testing.assert_array_equal(together, alone)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=12), n_jobs=st.integers(1, 3))
def test_any_selection_in_any_order_gives_the_rows_of_the_whole(embed, photos, order, n_jobs):
    whole = embed(photos)
    np.testing.assert_array_equal(embed([photos[i] for i in order], n_jobs=n_jobs, cache_dir=None), whole[order])


def test_each_distinct_image_is_run_once(embed, photo_files):
    before = forward_passes()
    first = embed([*photo_files, *photo_files], n_jobs=3)
    assert forward_passes() - before == 6
    np.testing.assert_array_equal(embed(photo_files[::-1]), first[5::-1])
    assert forward_passes() - before == 6
    embed(photo_files, cache_dir=None)
    assert forward_passes() - before == 12


def test_a_reference_repeated_after_a_copy_of_another_gets_its_vector(embed, photo_files, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(photo_files[0]).read_bytes())
    vectors = embed([photo_files[1], photo_files[0], str(copy), str(copy), photo_files[0]], n_jobs=1)
    for row in (2, 3, 4):
        np.testing.assert_array_equal(vectors[row], vectors[1])


def test_a_file_replaced_in_place_is_read_again(embed, photo_files, photos):
    old = embed(photo_files)
    status = os.stat(photo_files[0])
    with open(photo_files[0], "wb") as file:
        file.write(encode(photos[5]))
    os.utime(photo_files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    np.testing.assert_array_equal(embed(photo_files)[0], old[5])


def test_root_is_where_relative_paths_start(embed, photo_files, tmp_path):
    vectors = embed([f"photo{i}.png" for i in range(6)], root=tmp_path)
    np.testing.assert_array_equal(vectors, embed(photo_files))


def test_names_in_any_script(embed, photo_files, tmp_path):
    path = tmp_path / "照片 – фото" / "鞋子.png"
    path.parent.mkdir()
    path.write_bytes((tmp_path / "photo0.png").read_bytes())
    np.testing.assert_array_equal(embed([str(path)]), embed(photo_files[:1]))


@pytest.fixture
def mixed(photo_files):
    """Good, missing, broken, good, good, good."""
    broken = photo_files[2]
    with open(broken, "wb") as file:
        file.write(b"not an image")
    return [photo_files[0], None, broken, *photo_files[3:]]


def test_an_empty_cell_is_an_error_before_the_work(embed, mixed):
    before = forward_passes()
    with pytest.raises(ImageReadError, match=r'^Row 1 is empty\. Pass missing_images="nan" or "zero" to keep such'):
        embed(mixed)
    assert forward_passes() == before


def test_a_broken_file_is_an_error_after_the_others_are_embedded(embed, mixed):
    before = forward_passes()
    with pytest.raises(ImageReadError, match=r"^Row 2 \('.*photo2\.png'\) could not be read: Pillow recog") as caught:
        embed(mixed, missing_images="nan")
    assert [failure.row for failure in caught.value.failures] == [2]
    embed([mixed[0], *mixed[3:]])
    assert forward_passes() - before == 4


@pytest.mark.parametrize(("policy", "value"), [("nan", np.nan), ("zero", 0.0)])
def test_policies_fill_rows_and_keep_the_others(embed, mixed, policy, value):
    with pytest.warns(ImageReadWarning, match=r"^Row 2 \(.*Such rows are filled \(broken_images='") as caught:
        vectors = embed(mixed, missing_images=policy, broken_images=policy, add_indicator=True)
    np.testing.assert_array_equal(vectors[[1, 2], :-1], value)
    np.testing.assert_array_equal(vectors[:, -1], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(vectors[[0, 3, 4, 5], :-1], embed([mixed[0], *mixed[3:]]))
    assert [(f.row, f.missing) for f in caught[0].message.failures] == [(1, True), (2, False)]


def test_missing_cells_alone_do_not_warn_and_are_reported(embed, photo_files):
    vectors, report = embed([photo_files[0], None, ""], missing_images="zero", return_report=True)
    assert vectors.shape == (3, 8)
    assert report["row"].tolist() == [1, 2]
    assert report["missing"].all()


def test_rows_without_any_image_need_no_backbone_run(embed):
    before = forward_passes()
    assert np.isnan(embed([None, float("nan"), ""], missing_images="nan")).all()
    assert forward_passes() == before


def test_failures_of_several_columns_are_named_in_the_order_of_rows(embed, photos):
    pd = pytest.importorskip("pandas")
    content = encode(photos[0])
    frame = pd.DataFrame({"a": [content, b"bad", content], "b": [b"bad2", content, content]})
    with pytest.raises(ImageReadError, match=r"^Row 0, column 'b' \(4 bytes\) could not be read") as caught:
        embed(frame)
    assert [(failure.row, failure.column) for failure in caught.value.failures] == [(0, "b"), (1, "a")]
    empty = pd.DataFrame({"a": [content, None], "b": [None, content]})
    with pytest.raises(ImageReadError, match=r"^Row 0, column 'b' is empty \(1 more row too\)"):
        embed(empty)


def test_two_columns_of_one_name_are_told_apart_by_position(embed, photo_files):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([photo_files[:2]], columns=["photo", "photo"])
    np.testing.assert_array_equal(embed(frame).reshape(2, 8), embed(photo_files[:2]))


def test_more_than_half_broken_is_an_error_whatever_the_policy(embed, photo_files, tmp_path):
    names = ["photo0.png", "wrong1.png", "wrong2.png"]
    with pytest.raises(ImageReadError, match=r"2 of 3 images could not be read \(root='.*is this the right folder"):
        embed(names, root=tmp_path, broken_images="nan")
    with pytest.warns(ImageReadWarning, match="no such file"):
        assert np.isnan(embed(["wrong1.png"], root=tmp_path, broken_images="nan")).all()


def test_the_other_failures_are_counted(embed, tmp_path):
    with pytest.raises(ImageReadError, match=r"Row 0 \('a'\) could not be read: no such file \(2 more rows failed\)"):
        embed(["a", "b", "c"], root=tmp_path)


def test_a_broken_duplicate_fails_too(embed, photos):
    good, bad = encode(photos[0]), b"broken"
    with pytest.warns(ImageReadWarning, match="1 more row failed"):
        vectors = embed([good, bad, good, bad, good], broken_images="nan", n_jobs=2)
    np.testing.assert_array_equal(np.isnan(vectors).all(axis=1), [False, True, False, True, False])


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(["good", "broken", "missing"]), min_size=1, max_size=9))
def test_rows_order_and_indicator_are_right_for_any_mix(embed, kinds):
    make = {"good": photo, "broken": lambda row: b"x%d" % row, "missing": lambda row: None}
    images = [make[kind](row) for row, kind in enumerate(kinds)]
    n_cells = len(kinds) - kinds.count("missing")
    options = {"missing_images": "nan", "broken_images": "zero", "add_indicator": True}
    if n_cells > 1 and kinds.count("broken") * 2 > n_cells:
        with pytest.raises(ImageReadError, match="could not be read"):
            embed(images, **options)
        return
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageReadWarning)
        vectors = embed(images, **options)
    assert vectors.shape == (len(kinds), 9)
    for row, kind in enumerate(kinds):
        expected = {"good": embed([photo(row)])[0] if kind == "good" else None, "broken": 0.0, "missing": np.nan}
        np.testing.assert_array_equal(vectors[row, :-1], expected[kind])
        assert vectors[row, -1] == (kind != "good")


def test_pillows_warnings_do_not_decide_what_is_broken(embed):
    palette = Image.new("P", (40, 40))
    palette.info["transparency"] = bytes(range(256))
    content = encode(palette)  # decoding it makes Pillow warn, and warnings are errors in this suite
    assert embed([content]).shape == (1, 8)


def test_an_interrupt_stops_the_threads_and_keeps_what_is_finished(embed, backbone_file, monkeypatch):
    images = [photo(seed) for seed in range(200)]
    calls = itertools.count()

    def interrupted(*args):
        if next(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return resize(*args)

    resize = sktransfer.Preprocessing.resize_and_crop
    monkeypatch.setattr(sktransfer.Preprocessing, "resize_and_crop", interrupted)
    before, passes = threading.active_count(), forward_passes()
    with pytest.raises(KeyboardInterrupt):
        embed(images, n_jobs=3)
    assert threading.active_count() == before
    finished = forward_passes() - passes
    assert 16 <= finished < 200
    embed(images)
    assert forward_passes() - passes == 200


def test_an_error_in_a_thread_reaches_the_caller(embed, photos, monkeypatch):
    def fail(*args):
        raise MemoryError("no memory")

    monkeypatch.setattr(sktransfer.embedding, "decoding", fail)
    with pytest.raises(MemoryError, match="no memory"):
        embed(photos, n_jobs=2)


def test_verbose_shows_a_bar_on_stderr_and_nothing_on_stdout(embed, photos, capfd):
    embed(photos, verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "6/6" in err
    embed(photos)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "at least one image"),
        ("photo.jpg", TypeError, "Got one str instead; wrap it in a list"),
        (b"photo", TypeError, "Got one bytes instead"),
        (Image.new("RGB", (2, 2)), TypeError, "wrap it in a list"),
        (7, TypeError, "Got one int instead"),
        ({"a.jpg"}, TypeError, "Got a set instead, which has no order"),
        (np.zeros((4, 64)), ValueError, r"64 numeric columns could be anything. Pass image_shape=\(8, 8\) if"),
        (np.zeros((4, 48)), ValueError, r"Pass image_shape=\(4, 4, 3\) if"),
        ([[1, 2], [3, 4]], ValueError, r"Pass image_shape=\(height, width\) if"),
        (np.zeros(4), ValueError, r"Got an array of shape \(4,\) and dtype float64"),
        (np.zeros((1, 2, 3, 4, 5)), ValueError, r"Got an array of shape \(1, 2, 3, 4, 5\)"),
        (np.array([b"a"]), TypeError, "must not have the dtype S"),
        ([3, 4], ValueError, "Got the number 3 in row 0 instead"),
        ([object()], ImageReadError, "must be a path, bytes, a PIL image, an array, a file object"),
    ],
)
def test_an_x_that_holds_no_images_is_refused(embed, X, error, message):
    with pytest.raises(error, match=message):
        embed(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r'batch_size must be "auto" or an integer >= 1. Got 0 instead'),
        ({"n_jobs": 0}, "n_jobs must be None or an integer other than 0"),
        ({"missing_images": "drop"}, 'missing_images must be "error", "nan" or "zero". Got \'drop\' instead'),
        ({"broken_images": None}, "broken_images must be"),
        ({"pixel_range": (1, 1)}, r"pixel_range must be None or \(low, high\) with low < high"),
        ({"root": "/no/such/folder"}, "root must be an existing folder. Got '/no/such/folder' instead"),
        ({"pooling": "mean"}, "pooling must be None or one of 'avg', 'max', 'gem', 'flatten'"),
        ({"precision": "int8"}, 'precision must be "float32" or "float16"'),
        ({"precision": "float16", "device": "cpu"}, "needs a GPU"),
        ({"preprocessing": "vgg"}, 'preprocessing must be None, "imagenet", "tf", "caffe" or a Preprocessing'),
        ({"preprocessing": 3}, "preprocessing must be None"),
        ({"device": "gpu"}, r'device must be "auto", "cpu", "cuda"'),
    ],
)
def test_parameters_outside_what_is_allowed_are_named(embed, photos, options, message):
    with pytest.raises(ValueError, match=message):
        embed(photos, **options)


def test_flattened_images_need_their_shape(embed, photos):
    flat = np.stack(photos).reshape(6, -1)
    np.testing.assert_array_equal(embed(flat, image_shape=(40, 52, 3)), embed(photos))
    with pytest.raises(ValueError, match=r"must multiply to the 6240 columns of X. Got \(40, 52\) instead"):
        embed(flat, image_shape=(40, 52))
    with pytest.raises(ValueError, match="image_shape must be"):
        embed(flat, image_shape=6240)


def test_containers_give_the_same_rows(embed, photo_files, photos):
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    expected = embed(photo_files)
    containers = [
        tuple(photo_files), np.array(photo_files), np.array(photo_files, dtype=object), pd.Series(photo_files),
        pd.Index(photo_files), pl.Series(photo_files), np.stack(photos), pd.DataFrame({"photo": photo_files}),
        pl.DataFrame({"photo": photo_files}), np.array(photo_files, dtype=object)[:, None],
        pd.Series(photo_files, dtype="category"), pd.Series(photo_files, dtype="object"),
    ]  # fmt: skip
    for container in containers:
        np.testing.assert_array_equal(embed(container), expected)


def test_arrays_of_other_libraries_are_taken_through_numpys_protocol(embed, photos):
    class Tensor:
        def __init__(self, values):
            self.values, self.ndim = values, values.ndim

        def __array__(self, dtype=None, copy=None):
            return self.values

        def __len__(self):
            return len(self.values)

    expected = embed(photos)
    np.testing.assert_array_equal(embed(Tensor(np.stack(photos))), expected)
    np.testing.assert_array_equal(embed([Tensor(image) for image in photos]), expected)


def test_several_columns_become_blocks(embed, photo_files):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"front": photo_files, "back": [*photo_files[:0:-1], None]})
    vectors = embed(frame, missing_images="zero", add_indicator=True)
    whole = embed(photo_files)
    np.testing.assert_array_equal(vectors[:, :8], whole)
    np.testing.assert_array_equal(vectors[:5, 8:16], whole[:0:-1])
    np.testing.assert_array_equal(vectors[:, 16:], [[0, 0]] * 5 + [[0, 1]])
    frame["number"] = 1.0
    with pytest.raises(ValueError, match="Column 'number' has dtype float64 instead"):
        embed(frame)


def test_threads_follow_joblibs_inner_limit(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [count_threads(n) for n in (None, 1, 3, -1, -2, -20)] == [8, 1, 3, 8, 7, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (count_threads(None), count_threads(4)) == (2, 4)


# -- where the embeddings go ------------------------------------------------------------------------------------------


def test_embeddings_are_written_into_an_array_of_the_callers(photos, backbone_file):
    expected = extract(photos, backbone_file)
    out = np.full((6, 8), np.nan, dtype=np.float32)
    assert extract(photos, backbone_file, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_embeddings_are_written_into_a_file_that_is_mapped(photos, backbone_file, tmp_path):
    expected = extract([*photos, None], backbone_file, missing_images="zero", add_indicator=True)
    path = tmp_path / "vectors.npy"
    mapped = extract([*photos, None], backbone_file, missing_images="zero", add_indicator=True, out=path)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, expected)
    np.testing.assert_array_equal(np.load(path), expected)
    assert [file.name for file in tmp_path.glob("*.npy")] + list(tmp_path.glob(".*.npy")) == ["vectors.npy"]


def test_a_file_does_not_appear_half_written(photos, backbone_file, tmp_path):
    with pytest.raises(ImageReadError, match="Row 6"):
        extract([*photos, "missing.png"], backbone_file, out=tmp_path / "vectors.npy")
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".npy"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            np.zeros((6, 9), np.float32),
            r"out must be a writable float32 array of shape \(6, 8\)\. Got float32, \(6, 9\)",
        ),
        (np.zeros((6, 8)), "Got float64"),
        (np.broadcast_to(np.float32(0), (6, 8)), "read-only instead"),
        ("vectors.npz", "out must be None, an array or the path of a .npy file in an existing folder"),
        ("missing/vectors.npy", "Got 'missing/vectors.npy'"),
        (3, "Got 3"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_before_the_work(photos, backbone_file, out, message):
    before = forward_passes()
    with pytest.raises(ValueError, match=message):
        extract(photos, backbone_file, out=out)
    assert forward_passes() == before
