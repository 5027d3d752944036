"""At which layer should a backbone be cut?

    SKTRANSFER_ASSETS=… python -m benchmarks.bench_layers

The classifier and folds of bench_quality on each stage (the last one's average is what these networks call their
features), and on the last two together. Beside the accuracy stands the share of the network's multiplications up to
there.
"""

from __future__ import annotations

import sktransfer
from benchmarks.bench_quality import accuracy, tasks
from benchmarks.measure import RESULTS, assets_folder, write_markdown
from sktransfer.costs import count_macs, list_layers
from sktransfer.network import Network, load_model

BACKBONES = ("tiny-v1", "squeezenet1.1", "resnet18_layer3", "mobilenetv2_features", "inception_v3_mixed8")
TASKS = ("clothing, 17 kinds", "PACS photo, 7 kinds", "PACS sketch, 7 kinds")


def list_cuts(backbone: sktransfer.Backbone) -> list[tuple[str, str | list[str], float]]:
    """Title, value of `layer=`, and share of the MACs, from the first stage on."""
    network = Network(load_model(backbone.path, weights=False), backbone.path, backbone.preprocessing)
    rows = {alias: row for row in list_layers(network) for alias in row.aliases}
    total = count_macs(network, network.model.graph.node)
    stages = sorted(alias for alias in rows if alias.startswith("stage"))
    cuts: list[tuple[str, str | list[str], float]] = [(name, name, rows[name].macs / total) for name in stages]
    return [*cuts, (" + ".join(stages[-2:]), stages[-2:], cuts[-1][2])]


def plot(results: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    """One panel a task: accuracy over the share of the network that has to be run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(TASKS), 3.6), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for name, points in results[task].items():
            axes.plot([100 * share for share, _ in points], [value for _, value in points], marker="o", label=name)
        axes.set(title=task, xlabel="share of the network's MACs (%)", xlim=(0, 103))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, five folds")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(RESULTS / "layers.png", dpi=110)


def main() -> None:
    data = [task for task in tasks() if task[0] in TASKS]
    results: dict[str, dict[str, list[tuple[float, float]]]] = {task: {} for task in TASKS}
    rows = []
    for name in BACKBONES:
        backbone = sktransfer.load_backbone(name if name == "tiny-v1" else assets_folder() / "models" / name)
        for title, layer, share in list_cuts(backbone):
            cells = []
            for task, images, labels, groups in data:
                vectors = sktransfer.extract(images, backbone, layer=layer)
                value = accuracy(vectors, labels, groups)
                cells.append(f"{value:.3f}")
                if isinstance(layer, str):
                    results[task].setdefault(name, []).append((share, value))
            rows.append([name, title, f"{share:.0%}", vectors.shape[1], *cells])
            print(*rows[-1], flush=True)
    plot(results)
    write_markdown(
        "layers",
        "At which layer should a backbone be cut?",
        "python -m benchmarks.bench_layers",
        ["backbone", "layer", "share of MACs", "features", *TASKS],
        rows,
        "Accuracy over five folds of StandardScaler + LogisticRegression(C=0.01, max_iter=300); a stage's map is "
        "averaged, and the last stage's average is the default embedding. `resnet18_layer3` and `inception_v3_mixed8` "
        "are ImageNet networks without their last stage, and 100 % is what is left of them.\n\n"
        "![Accuracy over the share of the network](layers.png)",
    )


if __name__ == "__main__":
    main()
