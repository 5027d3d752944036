import os

import numpy as np
import onnxruntime as ort
import pytest
from conftest import photo, save_backbone, small_classifier
from onnx import helper

import sktransfer.session
from sktransfer import BackboneError, DeviceError, DeviceWarning, extract, release_sessions
from sktransfer.extraction import plan_extraction
from sktransfer.session import Device, EmbeddingSession, open_session, resolve_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend: a number of GPUs, the providers of onnxruntime, and whether CUDA sessions open."""

    def pretend(gpus, providers=("CUDAExecutionProvider", "CPUExecutionProvider"), works=True):
        for cached in (sktransfer.session._probe_cuda, sktransfer.session._warn_once):
            cached.cache_clear()
        monkeypatch.setattr(sktransfer.session, "_count_gpus", lambda: gpus)
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))
        opened = providers if works else ("CPUExecutionProvider",)
        fake = type("Session", (), {"get_providers": lambda self: list(opened)})
        monkeypatch.setattr(ort, "InferenceSession", lambda *args, **options: fake())

    yield pretend
    sktransfer.session._probe_cuda.cache_clear()


def test_auto_takes_cuda_where_it_works(machine):
    machine(gpus=2)
    assert [resolve_device(name).name for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0", "cuda:0", "cuda:1", "cpu"
    ]  # fmt: skip
    assert resolve_device("cuda:1").providers[0] == ("CUDAExecutionProvider", (("device_id", "1"),))


def test_auto_takes_the_cpu_silently_where_there_is_no_gpu(machine, capfd):
    machine(gpus=0)
    assert resolve_device("auto").name == "cpu"
    assert capfd.readouterr() == ("", "")


def test_auto_warns_once_where_a_gpu_cannot_be_used(machine):
    machine(gpus=1, works=False)
    with pytest.warns(DeviceWarning, match="A GPU is present, but the CPU is used: onnxruntime .* could not load"):
        assert resolve_device("auto").name == "cpu"
    assert resolve_device("auto").name == "cpu"


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        ({"gpus": 0}, "no NVIDIA driver or no GPU was found. Install the driver"),
        ({"gpus": 1, "providers": ["CPUExecutionProvider"]}, "built without CUDA. Run: pip uninstall onnxruntime"),
        (
            {"gpus": 1, "works": False},
            r'could not load its CUDA or cuDNN libraries. Run: pip install "sktransfer\[cuda',
        ),
    ],
)
def test_cuda_means_cuda_or_an_error_that_says_what_to_install(machine, situation, message):
    machine(**situation)
    with pytest.raises(DeviceError, match=message):
        resolve_device("cuda")


def test_a_number_beyond_the_gpus_is_named(machine):
    machine(gpus=1)
    with pytest.raises(DeviceError, match="the NVIDIA driver reports 1 GPUs"):
        resolve_device("cuda:3")


def test_the_environment_overrides(monkeypatch):
    monkeypatch.setenv("SKTRANSFER_DEVICE", "cpu")
    assert resolve_device("cuda").name == "cpu"


def test_providers_are_passed_on():
    assert resolve_device(["CPUExecutionProvider"]).name == "cpu"
    with pytest.raises(DeviceError, match="Got 'RocketProvider' instead"):
        resolve_device(["RocketProvider"])
    with pytest.raises(ValueError, match="non-empty list"):
        resolve_device([])


def test_a_session_that_falls_back_is_an_error(backbone_file):
    missing = Device("cuda:0", (("CUDAExecutionProvider", (("device_id", "0"),)), ("CPUExecutionProvider", ())))
    if "CUDAExecutionProvider" not in ort.get_available_providers() or sktransfer.session._count_gpus():
        pytest.skip("needs onnxruntime-gpu on a machine without a GPU")
    with pytest.raises(DeviceError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        EmbeddingSession(plan_extraction(backbone_file).graph, missing)


def test_this_machine_opens_quietly(backbone_file, capfd):
    extract([photo(0)], backbone_file)
    assert capfd.readouterr() == ("", "")


def test_a_padded_batch_gives_the_same_rows(backbone_file):
    plan = plan_extraction(backbone_file)
    session = open_session(plan.graph, plan.device)
    pixels = np.stack([photo(seed, 32, 32) for seed in range(3)])
    np.testing.assert_array_equal(session.run(pixels, pad_to=8), session.run(pixels))


def test_sessions_are_bounded_and_released(backbone_file, monkeypatch):
    monkeypatch.setattr(sktransfer.session, "MAX_SESSIONS", 2)
    for layer in ("penultimate", "last_relu", "logits"):
        extract([photo(0)], backbone_file, layer=layer)
    assert len(sktransfer.session._sessions) == 2
    release_sessions()
    assert len(sktransfer.session._sessions) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_session(backbone_file):
    expected = extract([photo(0)], backbone_file, n_jobs=1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        vector = extract([photo(0)], backbone_file, n_jobs=1, cache_dir=None)
        os.write(writer, vector.tobytes())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == expected.tobytes()


def test_an_unknown_operator_is_an_error_that_names_the_file(tmp_path, photos):
    model = small_classifier()
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    model.graph.node[0].domain = "nowhere"
    with pytest.raises(BackboneError, match=r"c/model\.onnx"):
        extract(photos[:1], save_backbone(tmp_path / "c", model))


def test_a_graph_that_onnxruntime_refuses_is_an_error_that_names_the_file(backbone_file, photos, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("not implemented: Mystery")

    release_sessions()
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(BackboneError, match=r"onnxruntime cannot open .*model\.onnx: not implemented: Mystery"):
        extract(photos[:1], backbone_file)


def test_the_model_that_probes_a_device_is_one_identity():
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString() == sktransfer.session._IDENTITY_MODEL
    np.testing.assert_array_equal(
        ort.InferenceSession(sktransfer.session._IDENTITY_MODEL).run(None, {"x": np.ones(1, np.float32)})[0], 1
    )
