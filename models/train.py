"""Train the embedded backbone from scratch and write it as ONNX.

    pip install "sktransfer[train]"
    python models/train.py --data FOLDER --out models/tiny-v1

FOLDER holds ``tiny_imagenet_train_*.parquet``, ``tiny_imagenet_val.parquet`` (columns ``wnid``, ``file``, ``image``:
encoded 64x64 photos) and ``tiny_imagenet_words.txt`` (``wnid<tab>name``). The run is seeded; on one processor type with
one thread count it gives the same weights again. ``models/README.md`` describes recipe, data and measured quality.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256)  # channels of the four stages
BLOCKS = (1, 1, 2, 1)  # residual blocks of the four stages
SIZES = ((0.40, 32), (0.70, 48), (1.00, 64))  # (share of the epochs done, side of the training crop in pixels)
MEAN, STD = 0.5, 0.5  # of pixels in 0..1
INPUT_SIZE, RESIZE_SIZE = 96, 96  # pixels, at inference


class ConvBn(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvBn(inputs, outputs, 3, stride)
        self.second = ConvBn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvBn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class TinyResNet(nn.Module):
    """Stem of stride 2, four residual stages, global average pooling, one linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = ConvBn(3, WIDTHS[0], 3, 2)
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            for block in range(depth):
                blocks.append(ResidualBlock(inputs, width, 2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def read_photos(paths: list[Path], classes: list[str]) -> tuple[Tensor, Tensor]:
    """Decode the Parquet files: uint8 (n, 3, 64, 64) and int64 class indices (n,)."""
    frame = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    photos = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in frame["image"]])
    labels = frame["wnid"].map({wnid: index for index, wnid in enumerate(classes)}).to_numpy()
    return torch.tensor(photos).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augment(photos: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random resized crop, flip, brightness, contrast and saturation of a float batch in 0..1."""
    n = len(photos)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    side = uniform(0.35, 1.0).sqrt()  # a crop of 35 to 100 % of the area
    aspect = uniform(-0.2, 0.2).exp()
    width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    if size < photos.shape[-1]:  # low-pass before the crop is sampled down
        photos = F.avg_pool2d(F.pad(photos, (0, 1, 0, 1), mode="replicate"), 2, 1)
    photos = F.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)

    def per_photo(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    gray = photos.mean(1, keepdim=True)
    colour = torch.where(uniform(0, 1) < 0.1, torch.zeros(n), uniform(0.6, 1.4))
    photos = gray + (photos - gray) * per_photo(colour)
    middle = photos.mean((1, 2, 3), keepdim=True)
    photos = middle * per_photo(uniform(0.7, 1.3)) + (photos - middle) * per_photo(uniform(0.7, 1.3))
    return photos.clamp(0, 1)


def train(network: TinyResNet, photos: Tensor, labels: Tensor, arguments: argparse.Namespace) -> None:
    """SGD with Nesterov momentum, one learning-rate cycle, label smoothing, growing crops."""
    generator = torch.Generator().manual_seed(arguments.seed)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": plain, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(photos) // arguments.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, arguments.epochs * steps, pct_start=0.2
    )
    network.train()
    for epoch in range(arguments.epochs):
        started, total = time.perf_counter(), 0.0
        size = next(size for share, size in SIZES if epoch < share * arguments.epochs)
        order = torch.randperm(len(photos), generator=generator)
        for step in range(steps):
            rows = order[step * arguments.batch_size : (step + 1) * arguments.batch_size]
            batch = augment(photos[rows].float() / 255, size, generator)
            batch = ((batch - MEAN) / STD).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(batch), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{arguments.epochs} size {size} loss {total / steps:.3f} {seconds:.0f} s", flush=True)


@torch.inference_mode()  # type: ignore[untyped-decorator,unused-ignore]
def top_accuracies(network: TinyResNet, photos: Tensor, labels: Tensor, size: int) -> tuple[float, float]:
    """Top-1 and top-5 accuracy on photos resized to `size`."""
    network.eval()
    hits = np.zeros(2)
    for start in range(0, len(photos), 250):
        batch = photos[start : start + 250].float() / 255
        if size != batch.shape[-1]:
            batch = F.interpolate(batch, size=(size, size), mode="bilinear", align_corners=False)
        ranked = network((batch - MEAN) / STD).topk(5).indices == labels[start : start + 250, None]
        hits += [ranked[:, 0].sum().item(), ranked.sum().item()]
    return hits[0] / len(photos), hits[1] / len(photos)


class GraphWriter:
    """Collect ONNX nodes; weights are stored as float16 behind a Cast, which onnxruntime folds when it loads."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: Tensor) -> str:
        half = value.detach().contiguous().numpy().astype(np.float16)
        self.weights.append(numpy_helper.from_array(half, f"{name}_half"))
        return self.add("Cast", [f"{name}_half"], name, to=TensorProto.FLOAT)

    def conv(self, layer: ConvBn, source: str, name: str) -> str:
        """A convolution with its batch normalisation folded in."""
        conv, norm = layer[0], layer[1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        kernel = self.weight(f"{name}_weight", conv.weight * scale.view(-1, 1, 1, 1))
        bias = self.weight(f"{name}_bias", norm.bias - norm.running_mean * scale)
        side, pad = conv.kernel_size[0], conv.padding[0]
        attributes = {"kernel_shape": [side, side], "strides": list(conv.stride), "pads": [pad] * 4}
        return self.add("Conv", [source, kernel, bias], name, **attributes)


def build_onnx(network: TinyResNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The network as ONNX: `input` (n, 3, 96, 96) -> `features` (n, 256) and `logits` (n, classes)."""
    graph = GraphWriter()
    x = graph.add("Relu", [graph.conv(network.stem, "input", "stem_conv")], "stem_relu")
    for index, block in enumerate(network.blocks):
        name = f"block{index + 1}"
        y = graph.add("Relu", [graph.conv(block.first, x, f"{name}_conv1")], f"{name}_relu1")
        y = graph.conv(block.second, y, f"{name}_conv2")
        if isinstance(block.shortcut, ConvBn):
            x = graph.conv(block.shortcut, x, f"{name}_shortcut")
        x = graph.add("Relu", [graph.add("Add", [y, x], f"{name}_add")], f"{name}_relu")
    pooled = graph.add("GlobalAveragePool", [x], "pool")
    features = graph.add("Flatten", [pooled], "features", axis=1)
    kernel, bias = graph.weight("head_weight", network.head.weight), graph.weight("head_bias", network.head.bias)
    graph.add("Gemm", [features, kernel, bias], "logits", transB=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny-v1",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, INPUT_SIZE, INPUT_SIZE])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", network.head.out_features]),
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", network.head.in_features]),
            ],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="sktransfer",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the tiny_imagenet_*.parquet files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-v1")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on so many photos only, to try the script")
    arguments = parser.parse_args()

    words = (arguments.data / "tiny_imagenet_words.txt").read_text().splitlines()
    names = dict(line.split("\t", 1) for line in words)
    train_files = sorted(arguments.data.glob("tiny_imagenet_train_*.parquet"))
    photos, labels = read_photos(train_files, list(names))
    photos, labels = photos[: arguments.limit], labels[: arguments.limit]
    held_out = read_photos([arguments.data / "tiny_imagenet_val.parquet"], list(names))

    torch.manual_seed(arguments.seed)
    network = TinyResNet(len(names)).to(memory_format=torch.channels_last)
    train(network, photos, labels, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), arguments.out / "network.pt")
    quality = {size: top_accuracies(network, *held_out, size) for size in (64, 80, 96, 112, 128)}
    for size, (top1, top5) in quality.items():
        print(f"validation at {size} pixels: top-1 {top1:.3f} top-5 {top5:.3f}")
    preprocessing = {
        "crop": [INPUT_SIZE, INPUT_SIZE],
        "resize": RESIZE_SIZE,
        "resample": "bilinear",
        "scale": 1 / 255,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
    }
    metadata = {
        "sktransfer.preprocessing": json.dumps(preprocessing),
        "sktransfer.name": "tiny-v1",
        "sktransfer.license": "BSD-3-Clause",
        "sktransfer.classes": json.dumps(list(names.values())),
    }
    onnx.save(build_onnx(network, metadata), arguments.out / "model.onnx")


if __name__ == "__main__":
    main()
