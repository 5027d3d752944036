import ast
import subprocess
import sys
from pathlib import Path

import sktransfer

PACKAGE = Path(sktransfer.__file__).parent

FLOORS = {
    0: {
        "batching",
        "blocks",
        "database",
        "digests",
        "exceptions",
        "folders",
        "limits",
        "liveness",
        "progress",
        "resampling",
        "silence",
        "sizes",
    },
    1: {
        "_optional",
        "claims",
        "devices",
        "downloads",
        "front",
        "images",
        "outputs",
        "preprocessing",
        "safety",
        "turns",
    },
    2: {"configurations", "locations", "references", "registry", "shapes", "sources", "store", "tables", "writers"},
    3: {"network", "places"},
    4: {"cache", "classifier", "conversion", "hub", "layers"},
    5: {"backbones", "costs", "graph"},
    6: {"options", "session"},
    7: {"embedding"},
    8: {"extraction"},
    9: {"checks", "diagnosis", "duplicates", "extractor", "quantization", "selection", "verification"},
    10: {"demo", "image_block", "jobs", "model_commands"},
    11: {"table_command"},
    12: {"cli"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sktransfer"):
            rest = node.module.partition(".")[2]
            yield from [rest] if rest else [alias.name for alias in node.names]


def test_a_module_imports_only_from_lower_floors():
    modules = [path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    uphill = [
        f"{path.stem} imports {name}"
        for path in modules
        for name in imported_modules(path)
        if FLOOR_OF[name] >= FLOOR_OF[path.stem]
    ]
    assert {path.stem for path in modules} == set(FLOOR_OF)
    assert uphill == []


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
    heavy += ["httpx2", "filelock"]
    code = (  # scikit-learn and onnxruntime may bring some of them themselves
        "import sys, sklearn.linear_model, onnxruntime; before = set(sys.modules); import sktransfer; "
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_public_name_exists_and_is_documented():
    assert sorted(sktransfer.__all__) == sktransfer.__all__
    assert all(getattr(sktransfer, name).__doc__ for name in sktransfer.__all__)
