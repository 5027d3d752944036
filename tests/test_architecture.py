import ast
import subprocess
import sys
from pathlib import Path

import sktransfer

PACKAGE = Path(sktransfer.__file__).parent

FLOORS = {
    0: {
        "adaptation.adapters",
        "adaptation.components",
        "adaptation.domains",
        "batching",
        "blocks",
        "database",
        "digests",
        "distributed.workers",
        "exceptions",
        "finetune.operators",
        "finetune.recipe",
        "folders",
        "intervals",
        "limits",
        "liveness",
        "progress",
        "ranking.blocks",
        "ranking.scorers",
        "resampling",
        "silence",
        "sizes",
        "transfer.affine",
        "transfer.callbacks",
        "transfer.networks",
    },
    1: {
        "_optional",
        "adaptation.importance",
        "adaptation.learners",
        "adaptation.moments",
        "adaptation.scoring",
        "adaptation.selftraining",
        "adaptation.shift",
        "adaptation.subspaces",
        "claims",
        "devices",
        "downloads",
        "export.inverses",
        "finetune.spatial",
        "front",
        "images",
        "outputs",
        "preprocessing",
        "ranking.evidence",
        "ranking.inputs",
        "safety",
        "transfer.coordinates",
        "transfer.held",
        "transfer.optimizers",
        "transfer.softmax",
        "turns",
    },
    2: {
        "adaptation.report",
        "adaptation.transport",
        "configurations",
        "distributed.dask_cluster",
        "distributed.ray_cluster",
        "distributed.spark_cluster",
        "export.operators",
        "finetune.curve",
        "finetune.task",
        "geometry",
        "locations",
        "rank_plot",
        "ranking.logits",
        "ranking.spectra",
        "references",
        "registry",
        "shapes",
        "sources",
        "store",
        "tables",
        "transfer.perceptron_layers",
        "transfer.perceptron_settings",
        "transfer.priors",
        "views",
        "writers",
    },
    3: {
        "adaptation.chain",
        "adaptation.methods",
        "crops",
        "export.kernels",
        "network",
        "places",
        "ranking.hscore",
        "ranking.regression",
        "transfer.logistic",
        "transfer.perceptron_sources",
        "transfer.ridge",
        "transfer.training",
    },
    4: {
        "adaptation.lengths",
        "cache",
        "classifier",
        "conversion",
        "finetune.card",
        "finetune.weights",
        "hub",
        "layers",
        "ranking.logme",
        "ranking.probe",
        "transfer.multilayer",
    },
    5: {
        "adaptation.estimators",
        "averages",
        "backbones",
        "costs",
        "finetune.part",
        "graph",
        "transfer.perceptron_classifier",
        "transfer.perceptron_regressor",
    },
    6: {"derived", "options", "session"},
    7: {"candidates", "embedding", "export.joining", "exported"},
    8: {"extraction"},
    9: {
        "adaptation",
        "checks",
        "diagnosis",
        "duplicates",
        "export.checking",
        "extractor",
        "finetune.views",
        "quantization",
        "ranking",
        "sweep",
        "transfer",
        "verification",
    },
    10: {
        "demo",
        "distributed.batches",
        "export.columns",
        "export.plain",
        "finetune.rows",
        "image_block",
        "jobs",
        "model_commands",
        "scoring",
    },
    11: {
        "distributed.dask_frame",
        "distributed.ray_dataset",
        "distributed.spark_frame",
        "export.readers",
        "export.support",
        "finetune.training",
        "selection",
        "table_command",
    },
    12: {"distributed.frames", "distributed.parts", "export.parsing", "finetune.tuning", "rank_command"},
    13: {"distributed", "export.drafts", "finetune"},
    14: {"export", "finetune_command"},
    15: {"export_command"},
    16: {"cli"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}


def name_module(path):
    """Return "graph" for graph.py, "transfer" for transfer/__init__.py, "transfer.held" for transfer/held.py."""
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sktransfer"):
            rest = node.module.partition(".")[2]
            yield from [rest] if rest else [alias.name for alias in node.names]


def test_a_module_imports_only_from_lower_floors():
    modules = {name_module(path): path for path in PACKAGE.rglob("*.py") if path.parent.name != "models"}
    del modules[""]
    uphill = [
        f"{module} imports {name}"
        for module, path in modules.items()
        for name in imported_modules(path)
        if FLOOR_OF[name] >= FLOOR_OF[module]
    ]
    assert set(modules) == set(FLOOR_OF)
    assert uphill == []


def test_what_learns_from_arrays_sees_no_image_session_or_file():
    strangers = {
        (wing, path.stem, name)
        for wing in ("adaptation", "ranking", "transfer")
        for path in (PACKAGE / wing).glob("*.py")
        for name in imported_modules(path)
        if name.partition(".")[0] != wing and name not in {"exceptions", "_optional"}
    }
    assert strangers == set()


def test_the_floors_here_are_those_of_the_design_page():
    page = PACKAGE.parent / "docs" / "design.md"
    rows = [line.split("|")[1:3] for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    documented = {
        int(floor): set(names.replace("`", "").replace(" ", "").split(","))
        for floor, names in rows
        if floor.strip().isdecimal()
    }
    assert documented == FLOORS


def test_import_brings_neither_onnx_nor_pandas_nor_any_extra():
    heavy = ["onnx", "pandas", "matplotlib", "torch", "pyarrow", "tqdm", "typer", "polars", "huggingface_hub"]
    heavy += ["httpx2", "filelock", "ray", "pyspark", "dask", "distributed", "sktransfer.distributed"]
    code = (  # scikit-learn and onnxruntime may bring some of them themselves
        "import sys, sklearn.linear_model, onnxruntime; before = set(sys.modules); import sktransfer; "
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_public_name_exists_and_is_documented():
    assert sorted(sktransfer.__all__) == sktransfer.__all__
    assert all(getattr(sktransfer, name).__doc__ for name in sktransfer.__all__)
