"""Do photos help to tell the price of a house, and how much does it depend on the backbone?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_houses

Runs examples/houses.py on datasets/houses for three backbones, five folds five times over; a constant is the floor.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from sklearn.dummy import DummyRegressor
from sklearn.model_selection import cross_validate
from threadpoolctl import threadpool_limits

from benchmarks.measure import RESULTS, assets_folder, write_markdown

BACKBONES = ("default", "mobilenetv2_features", "inception_v3_mixed8")
DRAWN = "inception_v3_mixed8"
EXAMPLE = Path(__file__).parent.parent / "examples" / "houses.py"


def load_example():
    spec = importlib.util.spec_from_file_location("houses", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def constant_error(houses, folder) -> float:
    """MAPE of the mean of log(price), over the same folds."""
    table = houses.read_table(folder)
    folds = houses.make_folds(houses.make_groups(table, folder), 5)
    scorer = houses.SCORES["MAPE"]
    found = cross_validate(
        DummyRegressor(), table, np.log(table["price"]), cv=folds, scoring=scorer, error_score="raise"
    )
    return found["test_score"].mean()


def describe(backbone, answers, intervals):
    """Rows of the table; what the numbers alone reach is the same for every backbone."""
    for estimator in ("ridge", "boosting"):
        for features in ("numbers", "photos", "both") if backbone == BACKBONES[0] else ("photos", "both"):
            row = ["–" if features == "numbers" else backbone, features, estimator]
            for score in ("R²", "MAPE"):
                mean, sd = answers.loc[score].loc[estimator].loc[features]
                gain, low, high = intervals.loc[score].loc[estimator]
                row += [f"{mean:.3f} ± {sd:.3f}", f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"]
            yield row if features == "both" else [*row[:4], "", row[5], ""]


def main() -> None:
    houses, folder = load_example(), assets_folder() / "datasets" / "houses"
    rows, losses = [], []
    with threadpool_limits(1):  # of 430 rows; more threads wait for each other
        for name in BACKBONES:
            backbone = name if name == "default" else assets_folder() / "models" / name
            output = RESULTS / "houses.png" if name == DRAWN else None
            answers, intervals, weights = houses.main(folder, backbone, output)
            rows += describe(name, answers, intervals)
            lost = weights["loss of R²"].items()
            losses.append(f"- {name}: " + ", ".join(f"{column} {loss:.2f}" for column, loss in lost))
    write_markdown(
        "houses",
        "Do photos help to tell the price of a house?",
        "python -m benchmarks.bench_houses",
        ["backbone", "features", "estimator", "R² of log(price)", "gain", "MAPE of the price", "gain"],
        sorted(rows, key=lambda row: (row[2] != "ridge", row[0] != "–")),
        f"""\
Houses (Ahmed and Moustafa 2016, arXiv:1609.08399; 535 houses, photos of the front, here in a smaller size). Mean ±
standard deviation over five group folds, five times over, the same for all; houses that show the same photo or have the
same numbers stay together. A gain is both minus numbers, fold by fold, with the 95 % interval of the corrected
resampled t test (Nadeau and Bengio 2003): one that contains 0 does not show that the photos help. Less MAPE is better;
a constant has {constant_error(houses, folder):.3f}. Apart from the default, the backbones are ImageNet networks.

Loss of R² when one column of the raw table is shuffled (ridge on both, first fold), which costs no forward pass:

{chr(10).join(losses)}

![R² and MAPE of the three sets of features, and what the photos add, for {DRAWN}](houses.png)
""",
    )


if __name__ == "__main__":
    main()
