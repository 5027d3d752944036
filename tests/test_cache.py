"""The cache: known vectors are not computed again, and trouble with the disk costs speed, never a result."""

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, photo, save_backbone, small_classifier

import sktransfer.cache
import sktransfer.locations
import sktransfer.options
import sktransfer.store
from sktransfer import CacheWarning, PretrainedFeatureExtractor, cache_info, clear_cache, extract, prefetch
from sktransfer.cache import close_all, locate_cache, open_cache
from sktransfer.database import FILE_NAME, LAYOUT
from sktransfer.session import forward_passes
from sktransfer.sizes import format_bytes, parse_bytes


@pytest.fixture
def embed(backbone_file):
    def call(images, **options):
        return extract(images, backbone_file, **{"n_jobs": 1, **options})

    return call


@pytest.fixture
def passes():
    """How many images were run since the last call."""
    last = [forward_passes()]

    def count():
        last.append(forward_passes())
        return last[-1] - last[-2]

    return count


@pytest.fixture
def old_files(photo_files, monkeypatch):
    """Files whose times are far enough in the past to be trusted."""
    monkeypatch.setattr(sktransfer.locations, "RACY_NS", 100_000_000)
    wait_until_trusted(photo_files)
    return photo_files


def wait_until_trusted(paths):
    # The time of the last change of the inode cannot be set, so it has to pass.
    newest = max(os.stat(path).st_ctime for path in paths)
    time.sleep(max(0.0, newest + sktransfer.locations.RACY_NS / 1e9 + 0.05 - time.time()))


def new_process():
    """Forget what only this process knows."""
    close_all()


# -- one pass -----------------------------------------------------------------------------------------------------


def test_a_new_process_finds_what_an_earlier_one_has_embedded(embed, photos, passes):
    vectors = embed(photos)
    assert passes() == 6
    new_process()
    np.testing.assert_array_equal(embed(photos[::-1]), vectors[::-1])
    assert passes() == 0


def test_paths_bytes_and_dicts_of_one_file_share_an_entry(embed, photo_files, passes):
    embed(photo_files)
    embed([Path(path).read_bytes() for path in photo_files])
    embed([{"bytes": None, "path": path} for path in photo_files])
    assert passes() == 6
    assert cache_info().entries == 6


def test_unchanged_files_are_not_read_again(embed, old_files, passes, monkeypatch):
    vectors = embed(old_files)
    new_process()
    monkeypatch.setattr(sktransfer.embedding, "read_place", lambda place: pytest.fail(f"{place} was read"))
    np.testing.assert_array_equal(embed(old_files), vectors)
    np.testing.assert_array_equal(embed(old_files), vectors)
    assert passes() == 6


def test_a_file_replaced_in_place_is_seen_whatever_its_times_say(embed, old_files, photos):
    old = embed(old_files)
    for turn in range(1, 6):
        status = os.stat(old_files[0])
        with open(old_files[0], "r+b") as file:
            content = encode(photos[turn])
            file.write(content)
            file.truncate(len(content))
        os.utime(old_files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        np.testing.assert_array_equal(embed(old_files)[0], old[turn])


def test_a_file_that_has_just_changed_is_not_trusted(embed, photo_files, monkeypatch):
    reads = []
    read = sktransfer.embedding.read_place
    monkeypatch.setattr(sktransfer.embedding, "read_place", lambda place: reads.append(place) or read(place))
    os.utime(photo_files[0])
    embed(photo_files[:1])
    embed(photo_files[:1])
    assert len(reads) == 2


def test_a_fully_warm_process_neither_imports_onnx_nor_opens_a_session(backbone_file, old_files, tmp_path):
    code = (
        "import sys, onnxruntime, sktransfer\n"
        "onnxruntime.InferenceSession = None\n"
        "f = sktransfer.PretrainedFeatureExtractor(sys.argv[1], preprocessing='imagenet').fit(sys.argv[3:])\n"
        "sums = f.transform(sys.argv[3:]).sum(), sktransfer.extract(sys.argv[3:], sys.argv[2]).sum()\n"
        "print(*sums, f.graph_digest_, 'onnx' in sys.modules, 'tqdm' in sys.modules)"
    )
    stated = str(save_backbone(tmp_path / "stated", small_classifier()))  # with its preprocessing beside it
    os.remove(os.path.join(os.path.dirname(backbone_file), "preprocessor_config.json"))
    wait_until_trusted([backbone_file, stated])
    cold = PretrainedFeatureExtractor(backbone_file, preprocessing="imagenet").fit(old_files)
    sums = [str(cold.transform(old_files).sum()), str(extract(old_files, stated).sum())]
    new_process()
    command = [sys.executable, "-c", code, backbone_file, stated, *old_files]
    warm = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (warm.stdout.split(), warm.stderr) == ([*sums, cold.graph_digest_, "False", "False"], "")


def test_none_remembers_nothing(embed, photos, passes, cache_folder):
    embed(photos, cache_dir=None)
    embed(photos, cache_dir=None)
    assert passes() == 12
    assert not cache_folder.exists()


def test_a_path_is_a_cache_of_its_own(embed, photos, passes, tmp_path):
    embed(photos)
    embed(photos, cache_dir=tmp_path / "other")
    assert passes() == 12
    assert cache_info(tmp_path / "other").entries == 6


def test_what_is_wanted_twice_while_it_is_computed_is_computed_once(embed, photos, passes):
    import threading

    threads = [threading.Thread(target=embed, args=[photos * 5], kwargs={"n_jobs": 2}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passes() == 6


def test_a_broken_image_leaves_no_claim_behind(embed, photos):
    with pytest.warns(sktransfer.ImageReadWarning, match="1 of|Row 1"):
        embed([photos[0], b"broken", photos[1]], broken_images="nan")
    connection = sqlite3.connect(locate_cache() / FILE_NAME)
    assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    connection.close()


# -- the key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"layer": "last_relu"},
        {"pooling": "max"},
        {"preprocessing": "tf"},
        {"pixel_range": (0, 300)},
        {"device": ["CPUExecutionProvider"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_an_embedding_changes_its_key(embed, photos, passes, options):
    embed(photos)
    embed(photos, **options)
    assert passes() == (6 if "device" in options else 12)  # the same family computes the same


def test_other_weights_behind_the_same_name_are_another_key(embed, backbone_file, photos, passes):
    embed(photos)
    save_backbone(Path(backbone_file).parent, small_classifier(seed=5))
    embed(photos)
    assert passes() == 12


@pytest.mark.parametrize("name", ["KEY_VERSION", "GRAPH_VERSION"])
def test_a_version_of_the_pixels_or_of_the_surgery_invalidates(embed, photos, passes, monkeypatch, name):
    embed(photos)
    monkeypatch.setattr(sktransfer.options if name == "KEY_VERSION" else sktransfer.graph, name, 99)
    embed(photos)
    assert passes() == 12


def test_a_version_of_onnxruntime_or_of_the_plan_does_not(embed, photos, passes, monkeypatch):
    embed(photos)
    monkeypatch.setattr("onnxruntime.__version__", "99.0.0")
    monkeypatch.setattr(sktransfer.graph, "PLAN_VERSION", 99)
    new_process()
    embed(photos)
    assert passes() == 6


# -- the bound ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_bound(monkeypatch):
    def bound(size):
        monkeypatch.setenv("SKTRANSFER_CACHE_SIZE", size)
        close_all()

    return bound


def age(seconds):
    """Make everything in the cache look unused for so long, by processes that are gone."""
    close_all()
    with sqlite3.connect(locate_cache() / FILE_NAME) as connection:
        connection.execute("UPDATE blocks SET used = used - ?", (seconds,))
        connection.execute("DELETE FROM owners")
    connection.close()


def test_a_working_set_beyond_the_bound_is_kept_and_said_once(embed, photos, passes, small_bound):
    images = [photo(seed) for seed in range(300)]
    small_bound("60kB")
    with pytest.warns(CacheWarning, match=r"in use by running processes, more than its bound of 60\.0 kB.*CACHE_SIZE"):
        embed(images)
    for _ in range(3):
        embed(images)
    open_cache()._front = sktransfer.front.Front()
    embed(images)
    assert passes() == 300


def test_what_no_running_process_uses_leaves_first(embed, passes, small_bound):
    images = [photo(seed) for seed in range(200)]
    embed(images[:100])
    embed(images[100:160])
    age(7200)
    embed(images[:100])  # used again
    close_all()
    assert passes() == 160
    small_bound(str(cache_info().bytes))
    embed(images[160:])
    assert passes() == 40
    embed(images[:100])
    assert passes() == 0
    assert 140 <= cache_info().entries < 200


def test_prune_evicts_to_a_size_and_by_age(embed, photos, passes):
    embed([photo(seed) for seed in range(200)])
    age(10 * 86400)
    embed(photos)
    cache = open_cache()
    removed = cache.prune(10**9, unused_seconds=5 * 86400)
    assert 100 <= removed <= 194  # all but the blocks of the six that were used
    embed(photos)
    assert passes() == 200
    assert cache_info().entries == 200 - removed
    assert cache.prune(1, None) == 200 - removed
    assert cache_info().entries == 0


def test_a_disk_that_is_nearly_full_stops_the_writing(embed, photos, passes, monkeypatch):
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.warns(
        CacheWarning,
        match=r"^The disk of the embedding cache '.*' has less than 250\.0 MB left: new embeddings are not stored",
    ) as caught:
        vectors = embed(photos)
    np.testing.assert_array_equal(embed(photos), vectors)
    assert (passes(), cache_info().entries, len(caught)) == (6, 0, 1)


# -- trouble ------------------------------------------------------------------------------------------------------


def one_warning(call, match):
    with pytest.warns(CacheWarning, match=match) as caught:
        result = call()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(call(), result)
    return result


def test_a_full_disk_costs_one_warning(embed, photos):
    expected = embed(photos, cache_dir=None)
    embed(photos[:1])
    store = open_cache()._open()
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages}")
    result = one_warning(lambda: embed([*photos, *(photo(seed) for seed in range(6, 300))]), "is full: new embeddings")
    np.testing.assert_array_equal(result[:6], expected)


@contextlib.contextmanager
def limit_files(size):
    """No file of this process may grow beyond so many bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        close_all()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_system_that_refuses_to_write_costs_one_warning(backbone_file, rng, capfd):
    images = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    with warnings.catch_warnings(record=True) as caught, limit_files(40_000):
        warnings.simplefilter("always")
        vectors = extract(images, backbone_file)
        expected = extract(images, backbone_file, cache_dir=None)
    np.testing.assert_array_equal(vectors, expected)
    assert [warning.category for warning in caught] == [CacheWarning]
    assert capfd.readouterr() == ("", "")


def test_a_read_only_folder_is_read_and_costs_one_warning(embed, photos, passes, cache_folder, monkeypatch):
    vectors = embed(photos[:3])
    new_process()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    np.testing.assert_array_equal(embed(photos[:3]), vectors)  # nothing to write: nothing to say
    assert passes() == 3
    result = one_warning(lambda: embed(photos), "cannot be written; new embeddings are not stored. Set SKTRANSFER")
    np.testing.assert_array_equal(result[:3], vectors)
    assert passes() == 3


def test_a_folder_that_cannot_be_made_costs_one_warning(embed, photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKTRANSFER_CACHE_DIR", str(tmp_path / "file"))
    one_warning(lambda: embed(photos), "cannot be used: .*Every process embeds for itself")


def test_a_network_file_system_costs_one_warning(embed, photos, monkeypatch):
    monkeypatch.setattr(sktransfer.cache, "is_network_folder", lambda folder: True)
    one_warning(lambda: embed(photos), "network file system, whose locks")


@pytest.mark.parametrize("damage", ["garbage", "half", "header", "middle", "empty", "text"])
def test_a_damaged_file_costs_one_warning(photos, tmp_path, passes, damage):
    backbone = str(save_backbone(tmp_path / "wide", small_classifier()))
    images = [photo(seed) for seed in range(300)]
    expected = extract(images, backbone)
    new_process()
    path = locate_cache() / FILE_NAME
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    n = len(content)
    if damage == "garbage":
        content = bytearray(rng.bytes(n))
    elif damage == "half":
        del content[n // 2 :]
    elif damage == "header":
        content[:4096] = rng.bytes(4096)
    elif damage == "middle":
        content[n // 3 : 2 * n // 3] = rng.bytes(2 * n // 3 - n // 3)
    else:
        content = bytearray(b"hello" if damage == "text" else b"")
    path.write_bytes(content)
    passes()
    if damage == "empty":  # a new file
        np.testing.assert_array_equal(extract(images, backbone), expected)
    else:
        np.testing.assert_array_equal(one_warning(lambda: extract(images, backbone), "damaged"), expected)
    new_process()
    passes()
    np.testing.assert_array_equal(extract(images, backbone), expected)
    assert passes() == 0


def test_a_flipped_byte_anywhere_never_changes_a_vector(photos, tmp_path, backbone_file):
    images = [photo(seed) for seed in range(40)]
    expected = extract(images, backbone_file)
    new_process()
    path = locate_cache() / FILE_NAME
    intact = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(intact), 60):
        content = bytearray(intact)
        content[position] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            np.testing.assert_array_equal(extract(images, backbone_file), expected)
        close_all()
        for name in os.listdir(path.parent):
            if name.startswith(FILE_NAME):
                os.remove(path.parent / name)


def test_a_newer_layout_is_left_alone(embed, photos):
    embed(photos)
    close_all()
    with sqlite3.connect(locate_cache() / FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {LAYOUT + 1}")
    connection.close()
    before = (locate_cache() / FILE_NAME).read_bytes()
    one_warning(
        lambda: embed(photos), f"has the layout {LAYOUT + 1} of another version of sktransfer; this one reads 1"
    )
    assert (locate_cache() / FILE_NAME).read_bytes() == before


def test_a_database_that_is_not_ours_is_left_alone(embed, photos):
    locate_cache().mkdir(parents=True)
    with sqlite3.connect(locate_cache() / FILE_NAME) as connection:
        connection.execute("CREATE TABLE precious (x)")
    connection.close()
    one_warning(lambda: embed(photos), "is not a cache of sktransfer")


def test_a_cache_put_away_by_another_process_is_opened_anew(embed, photos, passes):
    embed(photos)
    shutil.move(locate_cache(), locate_cache().with_name("aside"))
    embed(photos)
    embed([*photos, photo(9)])
    assert passes() == 7
    new_process()
    embed([photo(9)])
    assert passes() == 0


# -- for people ---------------------------------------------------------------------------------------------------


def test_the_folder_is_the_users_alone(embed, photos, cache_folder):
    embed(photos)
    assert stat.S_IMODE(os.stat(cache_folder).st_mode) == 0o700


def test_info_counts_entries_hits_and_misses(embed, photos):
    embed(photos)
    embed(photos)
    embed(photos[:2], layer="last_relu")
    info = cache_info()
    assert (info.entries, info.hits, info.misses) == (8, 6, 8)
    assert info.backbones[["backbone", "layer", "entries", "hits", "misses"]].to_numpy().tolist() == [
        ["small", "last_relu", 2, 0, 2],
        ["small", "pooled", 6, 6, 6],
    ]
    assert "8 vectors in" in str(info)
    assert info.bytes > 0


def test_clear_removes_everything(embed, photos, passes):
    embed(photos)
    clear_cache()
    assert cache_info().entries == 0
    embed(photos)
    assert passes() == 12


def test_forget_removes_an_image_for_every_backbone_and_wipes_its_bytes(embed, old_files, passes):
    vectors = embed(old_files)
    embed(old_files, layer="last_relu", pooling="max")
    new_process()
    digest = sktransfer.digests.digest_bytes(Path(old_files[0]).read_bytes())
    assert open_cache().forget([digest], [old_files[0]]) == 2
    close_all()
    stored = (locate_cache() / FILE_NAME).read_bytes()
    assert digest not in stored
    assert vectors[0].tobytes() not in stored
    assert vectors[1].tobytes() in stored
    passes()
    np.testing.assert_array_equal(embed(old_files), vectors)
    assert passes() == 1


def test_a_file_that_is_gone_is_forgotten_by_its_path(embed, old_files):
    embed(old_files)
    os.remove(old_files[0])
    assert open_cache().forget([], [old_files[0]]) == 1


def test_prefetch_fills_the_cache_for_several_backbones(backbone_file, photo_files, tmp_path, passes):
    other = str(save_backbone(tmp_path / "other", small_classifier(seed=3)))
    assert prefetch([*photo_files, None], [backbone_file, other], n_jobs=2) is None
    assert passes() == 12
    extract(photo_files, backbone_file)
    PretrainedFeatureExtractor(other).fit_transform(photo_files)
    assert passes() == 0


def test_prefetch_names_what_it_could_not_read(backbone_file, photos, passes):
    with pytest.warns(sktransfer.ImageReadWarning, match=r"^Row 1 \(3 bytes\) could not be read") as caught:
        prefetch([photos[0], b"bad", photos[1]], backbone_file)
    assert [failure.row for failure in caught[0].message.failures] == [1]
    assert passes() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dir": None}, "cache_dir must be"),
        ({"backbones": []}, "backbones must name at least one"),
        ({"backbones": ["default", "no-such"]}, "Got 'no-such' instead"),
    ],
)
def test_prefetch_refuses_before_the_work(photos, options, message, passes):
    with pytest.raises(ValueError, match=message):
        prefetch(photos, **options)
    assert passes() == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("500 MB", 5 * 10**8), ("1e9", 10**9), ("1.5T", 1.5e12), ("3kib", 3000)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text, "size") == size


@pytest.mark.parametrize("text", ["", "much", "-5GB", "0", "1.2.3GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match='SIZE must be a size such as "20GB"'):
        parse_bytes(text, "SIZE")


def test_sizes_are_written():
    assert [format_bytes(n) for n in (0, 999, 1000, 5.04e9, 2e12)] == ["0 B", "999 B", "1.0 kB", "5.0 GB", "2.0 TB"]


@pytest.mark.parametrize("cache_dir", ["", 3])
def test_other_cache_folders_are_refused(embed, photos, cache_dir):
    with pytest.raises(ValueError, match='cache_dir must be "auto", a path or None'):
        embed(photos, cache_dir=cache_dir)
