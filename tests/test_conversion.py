import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import IMAGENET, photo
from test_graph import assert_same

import sktransfer.conversion
from sktransfer import BackboneError, MissingExtraError, Preprocessing, extract, load_backbone
from sktransfer.conversion import export_backbone, export_module

torch = pytest.importorskip("torch", reason="the tests of the conversion need torch")
pytest.importorskip("onnxscript", reason="the tests of the conversion need onnxscript")

from torch_networks import build_network  # noqa: E402  (needs torch)

pytestmark = pytest.mark.usefixtures("one_registry")

MEAN, STD = tuple(IMAGENET["image_mean"]), tuple(IMAGENET["image_std"])
P32 = Preprocessing((32, 32), 36, mean=MEAN, std=STD)
CENTER = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}
PHOTOS = [photo(seed) for seed in range(3)]
IMAGES = (32, 32)
OLD = 17  # an opset of the exporter that takes milliseconds


class Small(torch.nn.Module):
    """As little as has all that an export may get wrong: weights, a normalisation, several layers."""

    def __init__(self):
        super().__init__()
        layers = [torch.nn.Conv2d(3, 256, 3, 4), torch.nn.BatchNorm2d(256), torch.nn.ReLU()]
        self.features = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.head = torch.nn.Linear(256, 5)

    def forward(self, x):
        return self.head(self.features(x))


class TimmStandIn:
    """What the conversion uses of timm, with a small network."""

    def __init__(self, monkeypatch, **config):
        self.config, self.loaded = {**CENTER, "mean": MEAN, "std": STD, **config}, []
        self.net, _ = build_network("resnet_basic")
        self.net.pretrained_cfg = {"architecture": "resnet18", "tag": "a1_in1k", "license": "apache-2.0"}
        timm, data = ModuleType("timm"), ModuleType("timm.data")
        timm.__version__ = "1.2.3"
        timm.list_models = lambda pretrained=False: ["resnet18.a1_in1k"] if pretrained else ["resnet18", "resnet50"]
        timm.create_model = self.create_model
        data.resolve_model_data_config = lambda model: self.config
        monkeypatch.setitem(sys.modules, "timm", timm)
        monkeypatch.setitem(sys.modules, "timm.data", data)

    def create_model(self, name, pretrained, exportable):
        print("downloading", name)
        self.loaded.append((name, pretrained))
        return self.net


class FakeWeights(enum.Enum):
    IMAGENET1K_V1 = 36
    IMAGENET1K_V2 = 40
    DEFAULT = IMAGENET1K_V2

    def transforms(self):
        return SimpleNamespace(
            crop_size=[32],
            resize_size=[self.value],
            mean=list(MEAN),
            std=list(STD),
            interpolation=SimpleNamespace(value="bilinear"),
        )


class TorchvisionStandIn:
    """What the conversion uses of torchvision, with a small network."""

    def __init__(self, monkeypatch):
        self.loaded = []
        self.net, _ = build_network("resnet_basic")
        torchvision, models = ModuleType("torchvision"), ModuleType("torchvision.models")
        torchvision.__version__ = "0.9.9+cpu"
        models.list_models = lambda module=None: ["resnet18", "resnet50"]
        models.get_model_weights = lambda name: FakeWeights
        models.get_model = self.get_model
        monkeypatch.setitem(sys.modules, "torchvision", torchvision)
        monkeypatch.setitem(sys.modules, "torchvision.models", models)

    def get_model(self, name, weights, progress=True):
        self.loaded.append((name, weights))
        return self.net


@pytest.fixture
def timm(monkeypatch):
    return TimmStandIn(monkeypatch)


@pytest.fixture
def torchvision(monkeypatch):
    return TorchvisionStandIn(monkeypatch)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Small().eval()


def own_features(net, preprocessing, photos=PHOTOS):
    pixels = np.stack([preprocessing.resize_and_crop(load_image(pixels)) for pixels in photos])
    x = (pixels * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    with torch.inference_mode():
        return net.features(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32))).numpy()


def load_image(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def opset_of(path):
    return onnx.load(path).opset_import[0].version


# Libraries


def test_a_model_of_timm_becomes_a_backbone_with_its_preprocessing(tmp_path, timm, capfd):
    path = export_backbone("timm:resnet18.a1_in1k", tmp_path / "resnet.onnx")
    expected = Preprocessing((32, 32), 35, "bicubic", mean=MEAN, std=STD)  # 35: 32 / 0.9, rounded down
    backbone = load_backbone(path)
    assert backbone.preprocessing == expected
    assert (backbone.source, backbone.license) == ("timm 1.2.3 resnet18.a1_in1k", "Apache-2.0")
    assert_same(extract(PHOTOS, path), own_features(timm.net, expected), 1e-4)
    assert (timm.loaded, opset_of(path)) == ([("resnet18.a1_in1k", True)], 18)
    assert capfd.readouterr() == ("", "")


def test_random_weights_are_called_so(tmp_path, timm):
    path = export_backbone("timm:resnet18", tmp_path / "resnet.onnx", opset=OLD, pretrained=False)
    assert load_backbone(path).source == "timm 1.2.3 resnet18.a1_in1k, random weights"
    assert load_backbone(path).license == "unknown"
    assert timm.loaded == [("resnet18", False)]


@pytest.mark.parametrize(("name", "resize"), [("@IMAGENET1K_V1", 36), ("@IMAGENET1K_V2", 40), ("", 40)])
def test_a_model_of_torchvision_takes_the_preprocessing_of_its_weights(tmp_path, torchvision, name, resize):
    path = export_backbone(f"torchvision:resnet18{name}", tmp_path / "resnet.onnx", opset=OLD)
    expected = Preprocessing((32, 32), resize, mean=MEAN, std=STD)
    assert load_backbone(path).preprocessing == expected
    assert load_backbone(path).source == f"torchvision 0.9.9 resnet18@{torchvision.loaded[0][1].name}"
    assert_same(extract(PHOTOS, path), own_features(torchvision.net, expected), 1e-4)


def test_squashed_images_keep_both_sides(tmp_path, monkeypatch):
    TimmStandIn(monkeypatch, crop_mode="squash", crop_pct=1.0, input_size=(3, 32, 64))
    path = export_backbone("timm:resnet18", tmp_path / "resnet.onnx", opset=OLD)
    assert load_backbone(path).preprocessing.resize == load_backbone(path).preprocessing.crop == (32, 64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop_mode": "border"}, r"cropped by 'squash', or by 'center' to a square\. Got 'border' to 32 × 32"),
        ({"input_size": (3, 32, 64)}, "Got 'center' to 32 × 64 instead"),
        ({"input_size": (1, 32, 32)}, "must take images of 3 channels. Got 1"),
        ({"interpolation": "random"}, "preprocessing of timm:resnet18 cannot be expressed: resample must be one of"),
    ],
)
def test_preprocessing_that_cannot_be_expressed_is_refused(tmp_path, monkeypatch, config, message):
    TimmStandIn(monkeypatch, **config)
    with pytest.raises(BackboneError, match=message):
        export_backbone("timm:resnet18", tmp_path / "resnet.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("timm:resnot18", r"timm has no model 'resnot18'; the nearest names are 'resnet18', 'resnet50', 'resnet18\.a1"),
        ("torchvision:resnot", "torchvision has no model 'resnot'; the nearest names are 'resnet50', 'resnet18'"),
        ("torchvision:resnet18@V1", "resnet18 has no weights 'V1'; the nearest names are 'IMAGENET1K_V1'"),
        ("resnet18", r"must be timm:<model> or torchvision:<model>\[@<weights>\]. Got 'resnet18'"),
        ("timm:", "Got 'timm:' instead"),
        ("keras:resnet18", "Got 'keras:resnet18' instead"),
    ],
)
def test_unknown_models_are_named_with_the_nearest(tmp_path, timm, torchvision, reference, message):
    with pytest.raises(BackboneError, match=message):
        export_backbone(reference, tmp_path / "resnet.onnx")
    assert timm.loaded == torchvision.loaded == []


def test_a_download_that_fails_is_explained(tmp_path, timm):
    def create_model(name, **options):
        raise OSError("no connection")

    sys.modules["timm"].create_model = create_model
    with pytest.raises(BackboneError, match="timm could not load 'resnet18': no connection"):
        export_backbone("timm:resnet18", tmp_path / "resnet.onnx")


@pytest.mark.parametrize("library", ["timm", "torchvision", "torch"])
def test_a_missing_library_names_the_extra(tmp_path, timm, torchvision, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    reference = "torchvision:resnet18" if library == "torchvision" else "timm:resnet18"
    with pytest.raises(MissingExtraError, match=rf'needs {library}, .*pip install "sktransfer\[torch\]"'):
        export_backbone(reference, tmp_path / "resnet.onnx")


def test_a_wrong_output_is_refused_before_anything_is_loaded(tmp_path, timm):
    (tmp_path / "folder.onnx").mkdir()
    for output in (tmp_path / "resnet.pt", tmp_path / "folder.onnx"):
        with pytest.raises(BackboneError, match=r"output must be a file whose name ends in \.onnx. Got "):
            export_backbone("timm:resnet18", output)
    with pytest.raises(BackboneError, match="The folder of output must exist. Got '.*/missing/resnet.onnx'"):
        export_backbone("timm:resnet18", tmp_path / "missing" / "resnet.onnx")
    assert timm.loaded == []


# Modules


@pytest.mark.parametrize("opset", [9, 20])
def test_any_module_is_written_at_any_opset(tmp_path, net, opset):
    path = export_module(net, IMAGES, P32, tmp_path / "net.onnx", opset=opset, metadata={"sktransfer.source": "me"})
    assert opset_of(path) == opset
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert (load_backbone(path).preprocessing, load_backbone(path).source) == (P32, "me")
    assert_same(extract(PHOTOS, path), own_features(net, P32), 1e-4)


def test_the_file_tells_nothing_of_the_sources_and_is_the_same_again(tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 30 * 30, 5))
    one, two = (export_module(net, IMAGES, P32, tmp_path / f"{name}.onnx").read_bytes() for name in "ab")
    assert one == two
    assert b".py" not in one


def test_without_preprocessing_the_file_states_none(tmp_path, net):
    path = export_module(net, IMAGES, None, tmp_path / "net.onnx", opset=OLD)
    assert load_backbone(path).preprocessing is None


def test_impossible_opsets_are_refused(tmp_path, net):
    for opset in (8, 99):
        with pytest.raises(BackboneError, match=f"opset must be None or an integer from 9 to 25. Got {opset} instead"):
            export_module(net, IMAGES, P32, tmp_path / "net.onnx", opset=opset)


def test_without_onnxscript_the_older_exporter_is_taken(tmp_path, net, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert opset_of(export_module(net, IMAGES, P32, tmp_path / "net.onnx")) == 17
    with pytest.raises(MissingExtraError, match=r'needs onnxscript, .*pip install "sktransfer\[torch\]"'):
        export_module(net, IMAGES, P32, tmp_path / "new.onnx", opset=23)


class Branching(torch.nn.Module):
    """A branch on the values of the image, which only tracing can pass."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() < 1e9 else x.amax((2, 3))


def test_what_the_first_exporter_cannot_capture_goes_through_the_other(tmp_path, capfd):
    path = export_module(Branching(), IMAGES, P32, tmp_path / "net.onnx")
    assert opset_of(path) == 17
    assert capfd.readouterr() == ("", "")


class Wrong(torch.nn.Module):
    """Computes something else at every call, so no export can be right."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.mean((2, 3)) * self.calls


class Frozen(torch.nn.Module):
    """Takes as many images as were traced, and no others."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]), -1) + torch.arange(int(x.shape[0]))[:, None]


@pytest.mark.parametrize("module", [Wrong, Frozen])
def test_a_wrong_export_is_refused_and_leaves_the_old_file(tmp_path, module, capfd):
    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(BackboneError, match=r"could not be exported. torch.export: .* TorchScript: "):
        export_module(module(), IMAGES, P32, tmp_path / "net.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.onnx", b"old")]
    assert capfd.readouterr() == ("", "")


def test_a_distance_that_is_no_number_is_a_wrong_export(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return (x - 9).log().mean((2, 3))

    with pytest.raises(BackboneError, match="computes something else than the module, nan apart"):
        export_module(Broken(), IMAGES, P32, tmp_path / "net.onnx", opset=OLD)


def test_a_module_that_cannot_take_the_images_says_so(tmp_path, net):
    with pytest.raises(BackboneError, match=r"must take float images \(n, 3, 32, 32\): mat1 and mat2"):
        export_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 2)), IMAGES, None, tmp_path / "n.onnx")


def test_the_module_itself_is_left_as_it_is(tmp_path, net):
    net.train().half()
    path = export_module(net, IMAGES, P32, tmp_path / "net.onnx", opset=OLD)
    assert net.training
    assert {weights.dtype for weights in net.parameters()} == {torch.float16}
    assert_same(extract(PHOTOS, path), own_features(net.float().eval(), P32), 1e-4)


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, net, monkeypatch):
    monkeypatch.setattr(sktransfer.conversion, "MAX_BYTES", 100)
    for opset in (18, OLD):
        path = export_module(net, IMAGES, P32, tmp_path / f"net{opset}.onnx", opset=opset)
        assert (tmp_path / f"net{opset}.onnx.data").stat().st_size > path.stat().st_size
        assert_same(extract(PHOTOS, path), own_features(net, P32), 1e-4)


def test_a_module_with_several_outputs_is_written_with_all(tmp_path):
    class Both(torch.nn.Module):
        def forward(self, x):
            return {"mean": x.mean((2, 3)), "max": x.amax((2, 3))}

    path = export_module(Both(), IMAGES, P32, tmp_path / "net.onnx", opset=OLD)
    assert len(onnx.load(path).graph.output) == 2
    assert json.loads(onnx.load(path).metadata_props[0].value)["crop"] == [32, 32]
