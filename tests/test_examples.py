"""The examples run as they are, on fewer photos, and what their docstrings claim holds."""

import importlib.util
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run the main of an example on a number of photos; returns its table and what it printed."""

    def run(name, n_images, **constants):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
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
    table, printed = run_example("imbalance", 160, N_REPEATS=1)
    assert "pip install imbalanced-learn" in printed
    assert "SMOTE" not in table.index


def test_a_reducer_does_not_beat_all_features(run_example):
    table, printed = run_example("high_dimensional", 170)
    assert "SelectKBest(32)" in printed
    assert table["features"].tolist()[:5] == [448, 32, 128, 32, 128]
    assert (table["accuracy"] <= table["accuracy"][0] + table["sd of accuracy"][0]).all()


def test_text_and_photo_know_more_than_each_alone(run_example):
    table, printed = run_example("text_and_image", 250)
    assert "without a photo" in printed
    assert table["accuracy"][2] > table["accuracy"][:2].max()
    assert table.iloc[2, -1] == table.iloc[1, -1]


def test_every_example_is_listed_and_says_its_question_first():
    listed = (FOLDER / "README.md").read_text("utf-8")
    for path in FOLDER.glob("*.py"):
        assert f"]({path.name})" in listed
        assert path.read_text("utf-8").split("\n")[0].endswith("?")
