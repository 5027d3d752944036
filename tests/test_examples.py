"""The examples run as they are, on fewer photos, and what their docstrings claim holds."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

import sktransfer

FOLDER = Path(__file__).parent.parent / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run the main of an example on a number of photos; returns its table and what it printed."""

    def run(name, n_images, **constants):
        module = load_example(name)
        for constant, value in {"N_IMAGES": n_images, **constants}.items():
            monkeypatch.setattr(module, constant, value)
        with threadpool_limits(1):  # small problems: a second thread costs more than it brings
            return module.main(), capsys.readouterr().out

    return run


def test_several_targets_need_one_pass_and_position_another_layer(run_example):
    table, printed = run_example("multi_task", 150)
    assert "background" in printed
    assert table.iloc[:, -1].tolist() == [150, 150, 150, 150, 300]
    assert table["mean"][4] > table["mean"][3] + 0.2


def test_weights_and_sampling_move_the_decision_of_a_rare_class(run_example):
    pytest.importorskip("imblearn")
    table, printed = run_example("imbalance", 300, N_REPEATS=1)
    assert "through the network: 300" in printed
    accuracy = table["balanced_accuracy"]
    assert (accuracy.drop("nothing") > accuracy["nothing"]).all()
    assert "SMOTE" in accuracy.index
    assert accuracy["sample_weight"] == pytest.approx(accuracy['class_weight="balanced"'], abs=0.02)


def test_without_imbalanced_learn_one_line_says_what_to_install(run_example, monkeypatch):
    for name in ("imblearn", "imblearn.over_sampling", "imblearn.pipeline"):
        monkeypatch.setitem(sys.modules, name, None)
    table, printed = run_example("imbalance", 100, N_REPEATS=1)
    assert "pip install imbalanced-learn" in printed
    assert "SMOTE" not in table.index


@pytest.mark.slow
def test_a_reducer_does_not_beat_all_features(run_example):
    table, printed = run_example("high_dimensional", 170)
    assert "SelectKBest(32)" in printed
    assert table["features"].tolist()[:5] == [448, 32, 128, 32, 128]
    assert (table["accuracy"] <= table["accuracy"][0] + table["sd of accuracy"][0]).all()


@pytest.mark.slow
def test_text_and_photo_know_more_than_each_alone(run_example):
    table, printed = run_example("text_and_image", 250)
    assert "without a photo" in printed
    assert table["accuracy"][2] > table["accuracy"][:2].max()
    assert table.iloc[2, -1] == table.iloc[1, -1]


@pytest.fixture(scope="module")
def source_task():
    """The table of the example, and what it printed."""
    module = load_example("source_task")
    module.N_DRAWS = 2
    with threadpool_limits(1), contextlib.redirect_stdout(io.StringIO()) as printed:
        return module.main(), printed.getvalue()


def test_fit_of_a_loaded_network_forgets_and_a_head_with_a_source_does_not(source_task):
    table, printed = source_task
    accuracy = table["mean"]["target"]
    assert "AdamOptimizer" in printed
    for way in ("joblib: load, fit", "skops: load, fit", 'transfer="structure"'):
        assert accuracy[way] == accuracy["fresh network"]
    assert accuracy['transfer="parameters"'] > accuracy["fresh network"] + 0.02
    assert accuracy['transfer="parameters"'] > accuracy['transfer="features"']
    assert table["epochs"]["target", "warm_start=True"] == 1


def test_a_chain_of_tasks_is_better_than_its_first_and_its_last_link_alone(source_task):
    accuracy = source_task[0]["mean"]["later"]
    assert accuracy["source → later"] > accuracy["fresh network"] + 0.02
    assert accuracy["source → target → later"] > accuracy["source → later"] + 0.01


def test_without_skops_one_line_says_what_to_install_and_the_rest_goes_on(run_example, monkeypatch):
    for name in ("skops", "skops.io"):
        monkeypatch.setitem(sys.modules, name, None)
    table, printed = run_example("source_task", 900, N_DRAWS=1)
    assert "pip install skops" in printed
    assert "joblib: load, fit" in table.loc["target"].index
    assert "skops: load, fit" not in table.loc["target"].index


@pytest.mark.slow
def test_a_source_saves_labels_where_they_are_few(run_example):
    (means, spreads), printed = run_example("few_labels", 800, PER_CLASS=(1, 2), N_DRAWS=2)
    assert "Images through the network: 800 of 800" in printed
    assert means.shape == spreads.shape == (2, 6)
    assert (means.loc[10, "weight 100"] > means.loc[10].drop("weight 100") + 0.02).all()
    assert means.loc[20, "chosen weight"] > means.loc[20, "embeddings"] + 0.03
    assert means["warm start"].tolist() == pytest.approx(means["embeddings"].tolist(), abs=0.01)
    assert means["pixels"].max() < 0.2


def test_labels_saved_are_read_off_between_the_points_of_the_curve():
    few_labels = load_example("few_labels")
    means = few_labels.pd.DataFrame({"embeddings": [0.2, 0.4], "chosen weight": [0.3, 0.5]}, [10, 1000])
    assert few_labels.count_saved(means).tolist() == [100, 1000]


@pytest.fixture
def few_labels():
    module = load_example("few_labels")
    module.N_IMAGES, module.PER_CLASS, module.N_DRAWS = 120, (1, 2), 1
    return module


def test_the_learning_curve_is_drawn(few_labels, tmp_path):
    pytest.importorskip("matplotlib")
    with threadpool_limits(1):
        few_labels.main(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_matplotlib_the_table_is_there_and_one_line_says_what_to_install(few_labels, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with threadpool_limits(1):
        few_labels.main("curve.png")
    assert capsys.readouterr().out.endswith("pip install matplotlib\n")
    assert not Path("curve.png").exists()


def test_a_ranking_is_nearly_the_order_of_the_grid_search(run_example, monkeypatch):
    monkeypatch.delenv("SKTRANSFER_ASSETS", raising=False)
    [(table, seconds)], printed = run_example("choose_backbone", 120, LAYERS=["stage1", "stage4"], C=[0.01])
    assert table["layer"].tolist() == ["stage4", "stage1"]
    assert table["accuracy"].is_monotonic_decreasing
    assert "Weighted tau of the two orders (1 is the same order): 1.00" in printed
    assert "grid search" in seconds


@pytest.fixture
def houses_folder(tmp_path, rng):
    """60 houses, the dearer the brighter their photos, and the first of them again with other numbers."""
    quality, area = rng.uniform(size=60), rng.integers(800, 4000, 60)
    price = 100 * area * np.exp(1.5 * quality + rng.normal(0, 0.05, 60))
    lines = [f"{a % 3 + 1} {a % 2 + 1}.5 {a} 9000{a % 4} {p:.0f}" for a, p in zip(area, price, strict=True)]
    for house, bright in enumerate(quality, 1):
        squares = np.random.default_rng(200 + house).integers(0, 120, (2, 2, 3)) + 130 * bright
        Image.fromarray(squares.astype(np.uint8)).resize((96, 96), 0).save(
            tmp_path / f"{house}_frontal.jpg", quality=95
        )
    Image.open(tmp_path / "1_frontal.jpg").save(tmp_path / "61_frontal.jpg", quality=60)
    lines.append(f"9 {lines[0][2:]}")
    (tmp_path / "HousesInfo.txt").write_text("\n".join(lines))
    return tmp_path


def test_photos_that_show_what_the_numbers_do_not_are_seen_to_help(houses_folder, tmp_path, capsys):
    houses = load_example("houses")
    houses.N_FOLDS, houses.N_SHUFFLES = 3, 2
    houses.ESTIMATORS["boosting"].set_params(max_iter=20)
    with threadpool_limits(1):
        answers, intervals, weights = houses.main(houses_folder, output=tmp_path / "o.png", n_repeats=1)
    r2, gain = answers.loc["R²"].loc["ridge"]["mean"], intervals.loc["R²"].loc["ridge"]
    assert r2["both"] > r2["numbers"] + 0.1
    assert gain["both - numbers"] == pytest.approx(r2["both"] - r2["numbers"])
    assert weights["loss of R²"]["frontal"] > 0.1
    assert "the importances cost: 0\n" in capsys.readouterr().out
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_a_house_listed_again_is_never_on_both_sides_of_a_split(houses_folder):
    houses = load_example("houses")
    groups = houses.make_groups(houses.read_table(houses_folder), houses_folder)
    assert len(set(groups)) == 60
    assert groups[0] == groups[60]
    folds = houses.make_folds(groups, 5)
    assert len(folds) == 25
    assert not any(set(groups[train]) & set(groups[test]) for train, test in folds)


def test_houses_are_the_same_through_their_photo_or_their_numbers(houses_folder):
    houses = load_example("houses")
    table = houses.read_table(houses_folder)
    table.loc[5, houses.NUMBERS] = table.loc[60, houses.NUMBERS]
    groups = houses.make_groups(table, houses_folder)
    assert groups[0] == groups[5] == groups[60]
    assert len(set(groups)) == 59


def test_a_house_without_its_photo_is_an_error(houses_folder):
    (houses_folder / "7_frontal.jpg").unlink()
    with pytest.raises(sktransfer.ImageReadError, match="7_frontal"):
        load_example("houses").main(houses_folder, n_repeats=1)


def test_the_interval_is_that_of_nadeau_and_bengio():
    houses = load_example("houses")
    gains, folds = houses.pd.DataFrame({"a": [1.0, 2.0, 6.0]}), [(range(8), range(2))] * 3
    mean, low, high = houses.compare(gains, folds).loc["a"]
    assert mean == 3
    # t(0.975, 2) = 4.302653 in every table; variance 7; 1/3 + 2/8
    assert [mean - low, high - mean] == pytest.approx([4.302653 * (7 * (1 / 3 + 2 / 8)) ** 0.5] * 2)


@pytest.mark.slow
def test_photos_of_real_houses_tell_a_part_of_the_price(assets):
    folder, backbone = assets / "datasets" / "houses", assets / "models" / "mobilenetv2_features"
    houses = load_example("houses")
    houses.N_SHUFFLES = 1
    houses.ESTIMATORS["boosting"].set_params(max_iter=20)  # only what the ridge says is asked here
    with threadpool_limits(1):
        answers = houses.main(folder, backbone, n_repeats=1)[0].loc["R²"].loc["ridge"]["mean"]
    assert answers["numbers"] > 0.7
    assert 0.2 < answers["photos"] < answers["numbers"]


def test_every_example_is_listed_and_says_its_question_first():
    listed = (FOLDER / "README.md").read_text("utf-8")
    for path in FOLDER.glob("*.py"):
        assert f"]({path.name})" in listed
        assert path.read_text("utf-8").split("\n")[0].endswith("?")


def test_adaptation_helps_with_another_camera_and_leaves_the_same_one_alone(run_example):
    table, printed = run_example("other_camera", 400, METHODS=("auto", "standardize"))
    accuracy = table.set_index(["target", "method"])["accuracy"]
    assert accuracy["the same camera", "auto"] == accuracy["the same camera", "source only"]
    assert accuracy["another camera", "auto"] > accuracy["another camera", "source only"] + 0.1
    assert "Not adapted: the domains are close." in printed


def test_a_file_predicts_without_us_what_its_pipeline_does(capsys):
    pytest.importorskip("skl2onnx")
    accuracy, difference = load_example("production").main()
    assert accuracy > 0.9
    assert difference < 1e-5
    assert "labels alike: 100%" in capsys.readouterr().out
