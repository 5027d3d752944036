"""``sktransfer rank``: folders and tables of labelled images, the table, the picture."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import encode, photo, save_backbone, small_classifier

import sktransfer.sweep
from sktransfer import rank_backbones
from sktransfer.rank_plot import find_front, name_candidates, plot_ranking, shorten_reference


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(sktransfer.sweep, "TIMED_ROUNDS", 1)


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of eight photos, and a table of them with more columns."""
    rows = []
    for label, seed in [(label, seed) for label in ("dark", "bright") for seed in range(8)]:
        path = tmp_path / "photos" / label / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode((photo(seed) // 3 + 100 * (label == "bright")).astype(np.uint8)))
        rows.append((f"{label}/{seed}.png", label, f"{seed + 10 * (label == 'dark')}.5", seed % 4))
    table = pd.DataFrame(rows, columns=["photo", "kind", "price", "owner"])
    table.to_csv(tmp_path / "photos.csv", index=False)
    return tmp_path / "photos"


@pytest.fixture
def two(tmp_path, backbone_file):
    return ["--backbones", backbone_file, "--backbones", save_backbone(tmp_path / "other", small_classifier(seed=3))]


@pytest.fixture
def frame():
    """Eight candidates, three of them at nearly the same place."""
    table = pd.DataFrame({"backbone": [f"networks/number{i}/model.onnx" for i in range(8)], "layer": "penultimate"})
    table["images_per_second"] = [10, 10.2, 10.4, 40, 80, 160, 320, np.nan]
    table["logme"] = [0.5, 0.501, 0.502, 0.4, 0.45, 0.2, -0.1, 0.9]
    return table.assign(low=table["logme"] - 0.02, high=table["logme"] + 0.03)


def test_a_folder_of_classes_is_ranked_told_written_and_drawn(run_command, pictures, two, tmp_path):
    pytest.importorskip("matplotlib")
    outputs = ["-o", tmp_path / "rank.csv", "--plot", tmp_path / "rank.png"]
    code, out, err = run_command("rank", pictures, "--labels-from-folders", *two, "--scores", "logme", "--scores",
                                 "leep", *outputs)  # fmt: skip
    assert code == 0
    assert out.startswith("16 images, 2 classes; ranked by logme.\n\nrank  backbone  layer")
    assert "Best: " in out
    assert "64/64" in err  # two networks, and the classifiers of both
    paths = [str(pictures / label / f"{seed}.png") for label in ("bright", "dark") for seed in range(8)]
    expected = rank_backbones(paths, ["bright"] * 8 + ["dark"] * 8, two[1::2], scores=["logme", "leep"])
    columns = ["rank", "backbone", "layer", "logme", "leep", "low", "high", "n_features", "macs"]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "rank.csv")[columns], expected[columns].astype({"backbone": str})
    )
    assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_has_a_column_of_images_of_labels_and_of_groups(run_command, pictures, two):
    options = ["--column", "photo", "--label", "kind", "--groups", "owner", "--root", pictures, "--scores"]
    code, out, err = run_command("rank", f"{pictures}.csv", *two, *options, "linear_probe", "-q")
    assert (code, err) == (0, "")
    assert "16 images, 2 classes; ranked by linear_probe" in out


def test_numbers_are_predicted_on_request(run_command, pictures, two):
    options = ["--column", "photo", "--label", "price", "--regression", "--root", pictures, "--layers", "last_map"]
    code, out, _ = run_command("rank", f"{pictures}.csv", *two, *options, "-q")
    assert code == 0
    assert "16 images, values; ranked by logme" in out
    assert out.count("last_map") == 2


def test_what_is_fetched_is_said_without_a_bar_too(run_command, pictures, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run_command("rank", pictures, "--labels-from-folders", "--backbones", "squeezenet", "-q")
    assert code == 1
    assert err.startswith("To be fetched: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "--labels-from-folders: the first folder's name"),
        (["photos", "--labels-from-folders", "--label", "kind"], "are for tables. Got a folder"),
        (["photos/dark", "--labels-from-folders"], r"'0.png' and 7 more do not lie in one"),
        (["photos", "--labels-from-folders", "--root", "."], "--root and --delimiter are for tables"),
        (["phots", "--labels-from-folders"], "There is no folder or table 'phots'"),
        (["photos.csv", "--labels-from-folders"], "needs a folder. Got a table"),
        (["photos.csv", "--column", "photo"], "and --label NAME"),
        (["photos.csv", "--column", "photo", "--label", "sort"], "--label must name another column .* Got 'sort'"),
        (["photos.csv", "--column", "photo", "--label", "kind", "--regression"], "Got 'dark' in row 0 of 'kind'"),
        (["photos", "--labels-from-folders", "--plot", "rank.gif"], "must end in .png, .svg or .pdf"),
        (["photos", "--labels-from-folders", "--plot", "photos/a.png"], "must be a file. .* is a folder"),
        (["photos", "--labels-from-folders", "-o", "rank.xls"], "must end in .parquet"),
        (["photos", "--labels-from-folders", "--scores", "lgme"], "Got 'lgme' instead"),
    ],
)
def test_a_command_that_cannot_be_obeyed_says_what_to_do(run_command, pictures, monkeypatch, arguments, message):
    monkeypatch.chdir(pictures.parent)
    (pictures / "a.png").mkdir()
    code, out, err = run_command("rank", *arguments)
    assert (code, out) == (1, "")
    assert pd.Series([err]).str.contains(message)[0]


def test_a_row_without_a_label_is_named(run_command, pictures):
    table = pd.read_csv(f"{pictures}.csv")
    table.loc[3, "kind"] = None
    table.to_csv(f"{pictures}.csv", index=False)
    code, _, err = run_command("rank", f"{pictures}.csv", "--column", "photo", "--label", "kind")
    assert code == 1
    assert "Row 3 has none in the column 'kind'" in err


def test_one_class_is_no_task(run_command, pictures):
    for path in (pictures / "dark").iterdir():
        path.unlink()
    code, _, err = run_command("rank", pictures, "--labels-from-folders")
    assert code == 1
    assert "has only 'bright'" in err


def test_the_front_is_what_nothing_beats(rng):
    speeds, scores = rng.integers(1, 9, 40).astype(float), rng.integers(1, 9, 40).astype(float)
    points = list(zip(speeds, scores, strict=True))
    expected = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
    front = find_front(speeds, scores)
    assert {points[index] for index in front} == expected
    assert len(front) == len(expected)
    assert list(speeds[front]) == sorted(speeds[front], reverse=True)


@pytest.fixture
def drawn(monkeypatch):
    """Figures in place of their files."""
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_labels_do_not_cover_each_other(frame, tmp_path, drawn):
    plot_ranking(frame, "logme", tmp_path / "rank.png")
    axes = drawn[0].axes[0]
    boxes = [super(type(text), text).get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == [
        "number6",
        "number5",
        "number4",
        "number2",
    ]
    assert len(boxes) == 7
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_dashed_line_promises_no_more_than_the_candidates_have(frame, tmp_path, drawn):
    plot_ranking(frame[3:7], "logme", tmp_path / "rank.png")
    line, steps = drawn[0].axes[0].lines[0], pytest.importorskip("matplotlib.cbook").STEP_LOOKUP_MAP
    speeds, scores = steps[line.get_drawstyle()](line.get_xdata(), line.get_ydata())
    for speed, score in zip(speeds, scores, strict=True):
        assert ((frame["images_per_second"] >= speed) & (frame["logme"] >= score)).any()


def test_candidates_of_one_speed_are_drawn_in_the_middle(frame, tmp_path, drawn):
    plot_ranking(frame[:1], "logme", tmp_path / "rank.png")
    assert drawn[0].axes[0].get_xlim() == (5, 20)
    with pytest.raises(ValueError, match="no candidate has a score 'logme' and a speed"):
        plot_ranking(frame[7:], "logme", tmp_path / "rank.png")


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("tiny-v1", "tiny-v1"),
        ("/models/resnet/model.onnx", "resnet"),
        ("models/mine.onnx", "mine"),
        ("hf:owner/repo@v1", "repo"),
        ("hf:owner/repo/onnx/model.onnx", "repo"),
        ("model.onnx", "model"),
        ("C:\\models\\mine", "mine"),
    ],
)
def test_references_have_short_names(reference, name):
    assert shorten_reference(reference) == name


def test_names_that_would_be_the_same_stay_long(frame):
    assert name_candidates(frame)[:2] == ["number0", "number1"]
    twice = frame.assign(backbone=["a/x", "b/x", *["c"] * 6], layer=list("abcdefgh"))
    assert name_candidates(twice)[:3] == ["a/x, a", "b/x, b", "c, c"]


def test_without_matplotlib_the_command_says_what_to_install(run_command, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run_command("rank", pictures, "--labels-from-folders", "--plot", "rank.png")
    assert code == 1
    assert 'pip install "sktransfer[plot]"' in err
