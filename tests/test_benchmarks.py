"""The benchmarks' logic runs on small inputs; nothing is timed."""

import gc
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(gc, "collect", lambda: 0)  # between two rounds: a quarter of a second, and nothing is timed
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_the_gpu_benchmark_checks_and_measures_any_device(benchmark_module, tmp_path, monkeypatch):
    gpu = benchmark_module("gpu")
    monkeypatch.setattr(gpu, "choose_batch", lambda graph: 2)
    arrays, paths = gpu.make_photos(5, 96, 96), gpu.write_files(tmp_path, 3)
    row = gpu.measure("tiny-v1", "tiny-v1", None, "float32", gpu.CPU, arrays, paths, rounds=2)
    assert row[:4] == ["tiny-v1", "float32", "2", "0.0e+00 ok"]
    assert all(float(rate) > 0 for rate in row[4:8])
    assert (row[8:10], row[12:]) == (["–", "–"], ["–", "–"])
    assert all("–" in share for share in row[10:12])


def test_the_gpu_benchmark_tries_every_option(benchmark_module, backbone_file, monkeypatch):
    gpu = benchmark_module("gpu")
    monkeypatch.setattr(gpu, "choose_batch", lambda graph: 2)
    rows = gpu.measure_options("small", backbone_file, "float32", gpu.CPU, 2, rounds=1)
    assert len({tuple(row[2:5]) for row in rows}) == 12
    assert all(float(row[-1]) > 0 for row in rows)


def test_the_gpu_benchmark_says_where_there_is_no_gpu(benchmark_module, monkeypatch, capsys):
    gpu = benchmark_module("gpu")
    monkeypatch.setattr(gpu, "resolve_device", raise_device_error(gpu))
    gpu.main()
    assert capsys.readouterr().out.startswith("No GPU was measured. ")


def raise_device_error(gpu):
    def resolve(device):
        raise gpu.sktransfer.DeviceError("nothing here")

    return resolve


def test_candidates_alternate(benchmark_module):
    order = []
    candidates = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = benchmark_module("measure").alternate(candidates, 3)
    assert "".join(order) == "abcbcacab"
    assert [len(values) for values in seconds.values()] == [3, 3, 3]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_asks_one_question_and_names_its_command(path):
    text = path.read_text("utf-8")
    assert text.partition("\n")[0].endswith("?")
    assert f"python -m benchmarks.{path.stem}" in text
