import sys

import numpy as np
import pandas as pd
import pytest
from conftest import encode, photo
from typer.testing import CliRunner

import sktransfer.cli
import sktransfer.demo
from sktransfer import ImageReadError, extract
from sktransfer.cli import app
from sktransfer.demo import FOLDS, HEADS, digits_tasks, folder_task, run_demo
from sktransfer.tables import find_images
from sktransfer.writers import check_output, write_table


@pytest.fixture
def run(run_command):
    return run_command


@pytest.fixture
def class_folders(tmp_path):
    """Two classes of eight photos, dark and bright, and a file that is no image."""
    folder = tmp_path / "photos"
    for label in ("暗", "bright"):
        (folder / label).mkdir(parents=True)
        for seed in range(8):
            pixels = photo(seed + 10 * (label == "暗")) // 3 + (0 if label == "暗" else 150)
            (folder / label / f"{seed}.png").write_bytes(encode(pixels.astype(np.uint8)))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "thumb.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather", "npz"])
def test_extract_writes_one_row_an_image_in_every_format(run, class_folders, tmp_path, suffix):
    output = tmp_path / f"features.{suffix}"
    code, out, err = run("extract", class_folders, "-o", output, "--labels-from-folders", "--quiet")
    assert (code, out) == (0, "")
    assert "16 images, 256 features each" in err
    expected = extract([str(class_folders / "bright" / "0.png")])[0]
    if suffix == "npz":
        with np.load(output) as arrays:
            assert arrays["index"][0] == "bright/0.png"
            assert arrays["label"][8] == "暗"
            np.testing.assert_array_equal(arrays["embeddings"][0], expected)
        return
    readers = {"parquet": pd.read_parquet, "csv": lambda p: pd.read_csv(p, index_col=0),
               "feather": pd.read_feather}  # fmt: skip
    frame = readers[suffix](output)
    assert frame.index.tolist() == find_images(class_folders)
    assert frame.columns[:2].tolist() == ["label", "tiny-v1_0"]
    np.testing.assert_allclose(frame.loc["bright/0.png"].iloc[1:].astype(float), expected, rtol=1e-6)


def test_extract_shows_a_bar_on_stderr(run, class_folders, tmp_path):
    assert "16/16" in run("extract", class_folders, "-o", tmp_path / "f.csv")[2]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/f.parquet", "There is no .*nowhere'; create it first"),
        ("f.xlsx", r"must end in .parquet, .csv, .feather, .npz. Got 'f.xlsx' instead"),
        ("photos.csv/", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(run, class_folders, tmp_path, output, message):
    (tmp_path / "photos.csv").mkdir()
    code, out, err = run("extract", class_folders, "-o", tmp_path / output)
    assert (code, out) == (1, "")
    assert "16/16" not in err
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / output)


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'needs pyarrow, which is not installed. Run: pip install "sktransfer\[tab'):
        check_output(tmp_path / "f.parquet")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "sktransfer\[plot\]"'):
        sktransfer.demo.check_plot(tmp_path / "p.png")


def test_a_table_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    frame = pd.DataFrame({"a": [1.0]})
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_table(frame, tmp_path / "f.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_photo_is_named_and_nothing_is_written(run, class_folders, tmp_path):
    (class_folders / "bright" / "3.png").write_bytes(b"broken")
    code, _, err = run("extract", class_folders, "-o", tmp_path / "f.csv", "--quiet")
    assert code == 1
    assert "sktransfer: Row 3 ('bright/3.png') could not be read: Pillow recognises no image format" in err
    assert not (tmp_path / "f.csv").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "must be an existing folder or table"),
        (lambda folder: folder / "bright" / "0.png", "must be a folder of images, or end in .csv"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "must hold images"),
    ],
)
def test_a_folder_without_images_is_named(run, class_folders, tmp_path, make, message):
    code, _, err = run("extract", make(class_folders), "-o", tmp_path / "f.csv")
    assert code == 1
    assert message in err


def test_unknown_backbones_and_devices_are_one_line_on_stderr(run, class_folders, tmp_path):
    for option, value in (("--backbone", "resnet9000"), ("--device", "tpu")):
        code, out, err = run("extract", class_folders, "-o", tmp_path / "f.csv", option, value)
        assert (code, out) == (1, "")
        assert err.startswith("sktransfer: ")
        assert err.count("\n") == 1


def test_demo_on_a_users_own_folder_writes_a_table_and_a_plot(run, class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sktransfer.demo, "RAW_SIZE", 8)
    for head, (estimator, grid) in HEADS.items():
        monkeypatch.setitem(HEADS, head, (estimator, {name: values[-1:] for name, values in grid.items()}))
    code, out, _ = run("demo", class_folders, "-o", tmp_path / "plot.png")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.startswith("photos")]
    assert [line[-5] for line in lines] == [*HEADS, *HEADS]
    assert [line[1] for line in lines] == ["raw", "raw", "embeddings", "embeddings"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("remove", "message"),
    [("暗", "holds 1 of them"), ("暗/0.png 暗/1.png 暗/2.png", r"'暗' has 5")],
)
def test_demo_says_what_a_folder_of_classes_is(class_folders, remove, message):
    import shutil

    for name in remove.split():
        path = class_folders / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=message):
        folder_task(class_folders)


def test_demo_names_a_broken_photo(class_folders):
    (class_folders / "bright" / "3.png").write_bytes(b"broken")
    with pytest.raises(ImageReadError, match=r"bright/3.png' could not be read: Pillow recognises"):
        folder_task(class_folders)


def test_demo_on_digits_runs_each_image_once_and_beats_raw_pixels_where_digits_move(monkeypatch):
    small = {"logisticregression__C": [0.01]}
    for head in HEADS:
        monkeypatch.setitem(HEADS, head, (HEADS["LogisticRegression"][0], small))
    centred, anywhere = digits_tasks(n_images=300)
    results = run_demo([centred, anywhere], "default")
    assert [r.passes for r in results] == [0, 0, 300, 0] * 2
    raw, embedded = results[4].accuracy, results[6].accuracy
    assert embedded > raw + 0.15
    assert FOLDS == 3


def test_doctor_and_help_answer():
    runner = CliRunner()
    assert "CPU: " in runner.invoke(app, ["doctor"]).output
    assert "extract" in runner.invoke(app, ["--help"]).output


def test_the_cache_is_shown_pruned_forgotten_and_cleared(run, photo_files, backbone_file):
    import sktransfer

    assert run("cache", "info") == (0, f"No embeddings in {sktransfer.cache.locate_cache()}.\n", "")
    sktransfer.prefetch(photo_files, backbone_file)
    status, out, _ = run("cache", "info")
    assert status == 0
    assert out.startswith("6 embeddings in ")
    assert "small pooled           8        6" in out
    assert run("cache", "forget", photo_files[0], photo_files[1])[1] == "2 embeddings of 2 images removed.\n"
    assert run("cache", "prune", "--unused-for", "1")[1].startswith("0 embeddings removed; ")
    assert run("cache", "prune", "--max-size", "1B")[1].startswith("4 embeddings removed; ")
    sktransfer.prefetch(photo_files, backbone_file)
    assert run("cache", "clear")[:2] == (0, f"0 embeddings are left in {sktransfer.cache.locate_cache()}.\n")
    assert sktransfer.cache_info().entries == 0


def test_sizes_for_prune_are_checked(run):
    status, _, err = run("cache", "prune", "--max-size", "lots")
    assert (status, err) == (
        1,
        'sktransfer: --max-size must be a size such as "20GB" or "500MB". Got \'lots\' instead.\n',
    )


def test_a_cache_that_cannot_be_cleared_is_not_called_empty(run, photo_files, backbone_file, monkeypatch):
    import os

    import sktransfer

    sktransfer.prefetch(photo_files, backbone_file)
    sktransfer.cache.close_all()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.warns(sktransfer.CacheWarning, match="cannot be written"):
        status, out, _ = run("cache", "clear")
    assert (status, out.split()[0]) == (1, "6")


def test_a_warning_is_a_line_without_source_and_handlers_are_put_back(run, class_folders, tmp_path, monkeypatch):
    import signal
    import warnings

    (tmp_path / "file").write_text("in the way")
    before = signal.getsignal(signal.SIGTERM), warnings.formatwarning
    warnings.simplefilter("default")
    write = lambda *warning, **_: sys.stderr.write(warnings.formatwarning(*warning[:4]))  # noqa: E731
    monkeypatch.setattr(warnings, "showwarning", write)  # pytest's own would keep it
    status, _, err = run("extract", class_folders, "-o", tmp_path / "f.csv", "-q", "--cache-dir", tmp_path / "file")
    assert status == 0
    assert err.startswith("sktransfer: The embedding cache ")
    assert "run_job" not in err
    assert (signal.getsignal(signal.SIGTERM), warnings.formatwarning) == before
