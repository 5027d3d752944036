"""Files that must be refused with a reason, quickly, and without using memory."""

import numpy as np
import onnx
import pytest
from conftest import Builder, photo, run_process, small_classifier
from onnx import TensorProto, helper
from test_graph import assert_same, by_hand, embed

from sktransfer import BackboneError, extract
from sktransfer.network import load_model
from sktransfer.safety import is_plain_name


def load(tmp_path, model):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_model(path)


def external(location, **entries):
    """A classifier whose first weights lie in another file."""
    model = small_classifier()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    return model


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "C:\\secret", "..\\s", ""])
def test_weights_outside_the_folder_are_refused(tmp_path, place):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10_000)
    (tmp_path / "inner").mkdir()
    with pytest.raises(BackboneError, match="must lie beside it. Got the place"):
        load(tmp_path / "inner", external(place))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10_000)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(BackboneError, match="must lie beside it. 'weights.bin' is a link; put the file there"):
        load(tmp_path / "inner", external("weights.bin"))


@pytest.mark.parametrize(("offset", "size"), [(0, 100), (10_000, 20_000), (-8, 20_000), ("many", 20_000)])
def test_external_weights_that_are_too_short_are_refused(tmp_path, offset, size):
    (tmp_path / "weights.bin").write_bytes(b"\0" * size)
    model = external("weights.bin", offset=offset)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([60, 3, 20, 1])
    with pytest.raises(BackboneError, match="declares 3600 values and holds|has an unreadable offset"):
        load(tmp_path, model)


def huge():
    model = small_classifier()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([500_000_000, 1, 1, 1])
    return model


def test_a_tensor_that_declares_more_than_it_holds_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"'constant0' of .* declares 500000000 values and holds 162"):
        load(tmp_path, huge())


def test_a_negative_size_is_refused(tmp_path):
    model = small_classifier()
    model.graph.initializer[0].dims[0] = -1
    with pytest.raises(BackboneError, match="declares a negative size"):
        load(tmp_path, model)


def test_a_sparse_tensor_that_would_fill_the_memory_is_refused(tmp_path):
    model = small_classifier()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**31]))
    with pytest.raises(BackboneError, match="sparse tensor 'sparse' of .* would take 8589934592 bytes"):
        load(tmp_path, model)


def inflated():
    """A constant of 1 KB that is tiled to 40 GB."""
    b = Builder()
    x = b.node("Tile", b.conv("input", 3, 8), b.constant(np.array([1, 1, 1000, 1000])))
    return b.model([b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 8, 5)])


def test_an_activation_that_would_fill_the_memory_is_refused(tmp_path):
    onnx.save(inflated(), tmp_path / "model.onnx")
    with pytest.raises(BackboneError, match=r"'tile1' of .* would take 32768000000 bytes for one image"):
        extract([photo(0)], tmp_path / "model.onnx", preprocessing="imagenet")


def test_custom_operators_are_refused(tmp_path):
    model = small_classifier()
    model.graph.node[0].domain = "evil.corp"
    with pytest.raises(BackboneError, match="needs the custom operator evil.corp::Conv .* Export the network with"):
        load(tmp_path, model)


def test_a_cycle_is_refused(tmp_path):
    model = small_classifier()
    model.graph.node[0].input[0] = "vector"
    with pytest.raises(BackboneError, match="has a cycle at Conv"):
        load(tmp_path, model)


def test_what_nothing_computes_is_refused(tmp_path):
    model = small_classifier()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(BackboneError, match="uses 'nowhere', which nothing computes"):
        load(tmp_path, model)


def functions(calls):
    """A model of functions f0, f1, …; `calls` maps the name of one to the functions that it calls."""
    model = small_classifier()
    for name, called in calls.items():
        nodes = [helper.make_node(other, ["x"], ["x1" if i == len(called) - 1 else f"t{i}"], domain="own")
                 for i, other in enumerate(called)] or [helper.make_node("Identity", ["x"], ["x1"])]  # fmt: skip
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", name, ["x"], ["x1"], nodes, opsets))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.domain, node.op_type = "own", "f0"
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def test_functions_that_call_themselves_or_explode_are_refused(tmp_path):
    with pytest.raises(BackboneError, match="'f0' of .* calls itself"):
        load(tmp_path, functions({"f0": ["f1"], "f1": ["f0"]}))
    with pytest.raises(BackboneError, match="nested too deeply"):
        load(tmp_path, functions({f"f{i}": [f"f{i + 1}"] for i in range(500)} | {"f500": []}))
    with pytest.raises(BackboneError, match="must have at most 1000000 nodes. Got 1073741"):
        load(tmp_path, functions({f"f{i}": [f"f{i + 1}"] * 2 for i in range(30)} | {"f30": []}))


def test_functions_are_expanded(tmp_path):
    model = functions({"f0": ["f1"], "f1": []})
    assert_same(embed(tmp_path, model), by_hand(model, "vector"))


def test_nodes_in_another_order_are_sorted(tmp_path):
    model = small_classifier()
    expected = by_hand(model, "vector")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert_same(embed(tmp_path, model), expected)


def long_chain():
    """10,000 nodes in reverse order."""
    model = small_classifier()
    nodes = [helper.make_node("Identity", [f"t{i}"], [f"t{i + 1}"]) for i in range(10_000)]
    model.graph.node.extend(nodes[::-1])
    model.graph.node.append(helper.make_node("Identity", ["input"], ["t0"]))
    return model


MEASURE = """
import time, sktransfer.network, onnx, pathlib
from sktransfer.exceptions import SktransferError
from sktransfer.extraction import extract
def peak():  # ru_maxrss begins with that of the parent
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024
before = peak()
for path in sys.argv[1:]:
    start = time.monotonic()
    try:
        extract(["x"], path, preprocessing="imagenet")
    except SktransferError:
        print(time.monotonic() - start, peak() - before)
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """Seconds for each file that must be refused, and bytes for it and those before it, in a process of their own."""
    folder, makes = tmp_path_factory.mktemp("refused"), (huge, inflated, long_chain)
    for make in makes:
        (folder / f"{make.__name__}.onnx").write_bytes(make().SerializeToString())
    paths = [folder / f"{make.__name__}.onnx" for make in makes]
    printed = run_process(MEASURE, *paths, SKTRANSFER_DEVICE="cpu")
    lines = [tuple(map(float, line.split())) for line in printed.splitlines()]
    return dict(zip(makes, lines, strict=True))


@pytest.mark.parametrize("make", [huge, inflated, long_chain])
def test_refusing_takes_little_time_and_memory(costs, make):
    seconds, used = costs[make]
    assert seconds < 60
    assert used < 500e6


def test_text_and_empty_files_are_refused(tmp_path):
    for content in (b"", b"GIF89a", b"\x08" * 100, b"<html></html>"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(BackboneError, match="is not an ONNX file"):
            load_model(tmp_path / "model.onnx")


def test_a_file_larger_than_any_onnx_file_is_not_read(tmp_path):
    with open(tmp_path / "model.onnx", "wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(BackboneError, match="none is larger than 2 GB"):
        load_model(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "plain"),
    [("model.onnx_data", True), ("weights/a.bin", True), ("..", False), ("a/../b", False), ("/a", False), ("", False),
     ("c:a", False), ("a\\b", False), ("a\0b", False)],
)  # fmt: skip
def test_plain_names_stay_in_their_folder(name, plain):
    assert is_plain_name(name) == plain
