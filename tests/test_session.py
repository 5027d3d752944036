import dataclasses
import os
import subprocess
import sys
import threading

import numpy as np
import onnxruntime as ort
import pytest
from conftest import WITHOUT_ESTIMATORS, photo, save_backbone, small_classifier
from onnx import helper
from PIL import Image

import sktransfer.devices
import sktransfer.embedding
import sktransfer.extraction
import sktransfer.session
from sktransfer import BackboneError, DeviceError, DeviceWarning, extract, release_sessions
from sktransfer.devices import CPU, Device, resolve_device
from sktransfer.extraction import plan_extraction
from sktransfer.session import EmbeddingSession, choose_batch


@pytest.fixture
def machine(monkeypatch):
    """Pretend: a number of GPUs, the providers of onnxruntime, and whether CUDA sessions open."""

    def pretend(gpus, providers=("CUDAExecutionProvider", "CPUExecutionProvider"), works=True):
        for cached in (sktransfer.devices._probe, sktransfer.devices._warn_once):
            cached.cache_clear()
        monkeypatch.setattr(sktransfer.devices, "count_gpus", lambda: gpus)
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))
        opened = providers if works else ("CPUExecutionProvider",)
        fake = type("Session", (), {"get_providers": lambda self: list(opened)})
        monkeypatch.setattr(ort, "InferenceSession", lambda *args, **options: fake())

    yield pretend
    sktransfer.devices._probe.cache_clear()


def test_auto_takes_cuda_where_it_works(machine):
    machine(gpus=2)
    assert [resolve_device(name).name for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0", "cuda:0", "cuda:1", "cpu"
    ]  # fmt: skip
    name, options = resolve_device("cuda:1").providers[0]
    assert (name, dict(options)["device_id"]) == ("CUDAExecutionProvider", "1")


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


def test_tensorrt_keeps_its_engines_and_falls_back_to_cuda_for_what_it_lacks(machine, tmp_path):
    machine(gpus=1, providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"))
    device = resolve_device("tensorrt")
    assert (device.name, device.family, device.gpu, device.is_cpu) == ("tensorrt:0", "tensorrt", 0, False)
    assert [name.removesuffix("ExecutionProvider") for name, _ in device.providers] == ["Tensorrt", "CUDA", "CPU"]
    options = dict(device.providers[0][1])
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "sktransfer-engines")


def test_tensorrt_that_is_not_there_is_an_error(machine):
    machine(gpus=1)
    with pytest.raises(DeviceError, match="built without TensorRT"):
        resolve_device("tensorrt")


def test_a_provider_that_prints_while_it_fails_is_not_heard(machine, monkeypatch, capfd):
    machine(gpus=1, providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"))
    fake = type("Session", (), {"get_providers": lambda self: ["CPUExecutionProvider"]})

    def fall_back(*args, **options):  # onnxruntime/python/onnxruntime_inference_collection.py, InferenceSession
        print("*************** EP Error ***************")
        return fake()

    monkeypatch.setattr(ort, "InferenceSession", fall_back)
    with pytest.raises(DeviceError, match="could not load TensorRT. Run: pip install tensorrt"):
        resolve_device("tensorrt")
    assert capfd.readouterr() == ("", "")


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
    if "CUDAExecutionProvider" not in ort.get_available_providers() or sktransfer.devices.count_gpus():
        pytest.skip("needs onnxruntime-gpu on a machine without a GPU")
    with pytest.raises(DeviceError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        EmbeddingSession(plan_extraction(backbone_file).graph, missing)


def test_this_machine_opens_quietly(backbone_file, capfd):
    extract([photo(0)], backbone_file)
    assert capfd.readouterr() == ("", "")


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
    assert model.SerializeToString() == sktransfer.devices._IDENTITY_MODEL
    np.testing.assert_array_equal(
        ort.InferenceSession(sktransfer.devices._IDENTITY_MODEL).run(None, {"x": np.ones(1, np.float32)})[0], 1
    )


# -- a GPU, pretended: batches, lanes and memory are the same on any device --------------------------------------------

PRETENDED = Device("cuda:0", (("CPUExecutionProvider", ()),))


@pytest.fixture
def gpu(monkeypatch):
    """A device that takes the ways of a GPU and computes on the CPU."""
    monkeypatch.setattr(sktransfer.session, "GPU_MEMORY", "cpu")
    monkeypatch.setattr(sktransfer.extraction, "resolve_device", lambda device: PRETENDED)
    yield
    release_sessions()


@pytest.fixture
def batches(monkeypatch):
    """The numbers of images that reach the device."""
    sizes, run = [], sktransfer.session._Lane.run

    def count(self, pixels, lock):
        sizes.append(len(pixels))
        return run(self, pixels, lock)

    monkeypatch.setattr(sktransfer.session._Lane, "run", count)
    return sizes


@pytest.mark.parametrize("batch_size", ["auto", 1, 3, 50])
def test_a_gpu_gives_every_image_its_own_vector(backbone_file, photos, gpu, batches, batch_size):
    many = photos * 3 + [photo(seed) for seed in range(6, 30)]
    expected = extract(many, backbone_file, device="cpu", cache_dir=None)  # pretended too, one by one
    plan = plan_extraction(backbone_file)
    alone = EmbeddingSession(plan.graph, CPU).run(np.stack([pixels_of(plan, image) for image in many]))
    np.testing.assert_array_equal(extract(many, backbone_file, cache_dir=None, batch_size=batch_size), alone)
    np.testing.assert_array_equal(expected, alone)
    assert set(batches) <= {256, 1, 3, 50}


def pixels_of(plan, array):
    return plan.graph.preprocessing.resize_and_crop(Image.fromarray(array))


def test_a_gpu_sees_one_shape_and_every_distinct_image_once(backbone_file, photos, gpu, batches):
    before = sktransfer.session.forward_passes()
    extract(photos * 2, backbone_file, batch_size=4, cache_dir=None)
    assert set(batches) == {4}
    assert sktransfer.session.forward_passes() - before == 6
    extract(photos, backbone_file)
    extract(photos, backbone_file)
    assert sktransfer.session.forward_passes() - before == 12


def test_too_little_memory_halves_the_batch_and_goes_on(backbone_file, gpu, batches, monkeypatch):
    count = sktransfer.session._Lane.run

    def limited(self, pixels, lock):
        if len(pixels) > 4:
            raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9")
        return count(self, pixels, lock)

    monkeypatch.setattr(sktransfer.session._Lane, "run", limited)
    many = [photo(seed) for seed in range(21)]
    expected = extract(many, backbone_file, cache_dir=None, batch_size=1)
    release_sessions()
    np.testing.assert_array_equal(extract(many, backbone_file, cache_dir=None, batch_size=16), expected)
    assert set(batches) == {1, 4}


def test_too_little_memory_for_one_image_is_an_error_with_a_remedy(backbone_file, photos, gpu, monkeypatch):
    def full(self, pixels, lock):
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(sktransfer.session._Lane, "run", full)
    with pytest.raises(DeviceError, match=r'cuda:0 has too little memory for one image of .*use device="cpu"'):
        extract(photos, backbone_file, batch_size=8)


def test_other_errors_of_a_device_are_not_taken_for_its_memory(backbone_file, photos, gpu, monkeypatch):
    def fail(self, pixels, lock):
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(sktransfer.session._Lane, "run", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        extract(photos, backbone_file)


def test_lanes_are_made_once(backbone_file, photos, gpu, monkeypatch):
    made, make = [], sktransfer.session._Lane.__init__
    monkeypatch.setattr(sktransfer.session._Lane, "__init__", lambda *args: (made.append(args), make(*args))[1])
    for seed in range(3):
        extract([photo(seed, 50, 60), *photos], backbone_file, cache_dir=None, batch_size=2)
    assert len(made) == 2


def test_a_batch_under_way_keeps_its_size_when_another_thread_changes_it(backbone_file, gpu, batches):
    session = EmbeddingSession(plan_extraction(backbone_file).graph, PRETENDED)
    pixels = np.stack([photo(seed, 32, 32) for seed in range(4)])
    session.resize_batch(8)
    expected = session.run(pixels)
    session.resize_batch(2)
    session.run(pixels[:2])
    np.testing.assert_array_equal(session._run_batch(pixels, 8), expected)
    np.testing.assert_array_equal(session.run(pixels), expected)
    assert batches == [8, 2, 8, 2, 2]


def test_other_accelerators_get_batches_without_copies(backbone_file, gpu):
    device = Device("RocketProvider", PRETENDED.providers)
    session = EmbeddingSession(plan_extraction(backbone_file).graph, device)
    session.resize_batch(3)
    pixels = np.stack([photo(seed, 32, 32) for seed in range(4)])
    expected = EmbeddingSession(plan_extraction(backbone_file).graph, CPU).run(pixels)
    np.testing.assert_array_equal(session.run(pixels), expected)


def test_a_graph_of_one_image_a_run_gets_one(tmp_path, photos, gpu, batches):
    path = save_backbone(tmp_path / "frozen", small_classifier())
    plan = dataclasses.replace(plan_extraction(path).graph, batching="frozen")
    session = EmbeddingSession(plan, PRETENDED)
    session.resize_batch(8)
    assert session.run(np.zeros((3, 32, 32, 3), dtype=np.uint8)).shape == (3, 8)
    assert batches == [1, 1, 1]


def test_the_batch_of_a_gpu_follows_from_what_the_network_costs(tmp_path, monkeypatch):
    graph = plan_extraction(save_backbone(tmp_path / "b", small_classifier())).graph
    sizes = []
    for macs in (4.1e9, 0.3e9, 15.5e9, 1e15, 0):  # ResNet-50, MobileNetV2, VGG-16, …
        monkeypatch.setattr(sktransfer.session, "count_macs", lambda *_, macs=macs: macs)
        sizes.append(choose_batch(graph))
    assert sizes == [64, 256, 16, 16, 256]


OTHER_PROCESS = f"""{WITHOUT_ESTIMATORS}
import sktransfer.extraction, sktransfer.session
from sktransfer.devices import Device
from sktransfer.turns import take_turn
sktransfer.session.GPU_MEMORY = "cpu"
sktransfer.extraction.resolve_device = lambda device: Device("cuda:0", (("CPUExecutionProvider", ()),))
with take_turn("gpu-test"):
    print("taken", flush=True)
    sys.stdin.readline()
    sktransfer.extraction.extract(sys.argv[2:], sys.argv[1])
"""


def test_a_call_waits_for_its_turn_and_takes_what_the_other_process_has_computed(
    backbone_file, photo_files, gpu, monkeypatch
):
    monkeypatch.setattr(sktransfer.embedding, "identify_gpu", lambda number: "test")
    command = [sys.executable, "-c", OTHER_PROCESS, backbone_file, *photo_files]
    before, results = sktransfer.session.forward_passes(), []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        thread = threading.Thread(target=lambda: results.append(extract(photo_files, backbone_file)))
        thread.start()
        thread.join(0.5)
        assert results == []
        other.communicate("\n")
    thread.join(30)
    assert (len(results), sktransfer.session.forward_passes() - before) == (1, 0)
