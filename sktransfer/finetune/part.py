"""The part of a backbone that is trained, from where the rest ends to the embedding, computed by torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.exceptions import BackboneError
from sktransfer.finetune.operators import Call
from sktransfer.finetune.spatial import OPERATORS
from sktransfer.finetune.weights import Array, Role, draw_fresh, find_roles, read_constants, round_to
from sktransfer.layers import Cut
from sktransfer.network import Network
from sktransfer.safety import node_inputs

if TYPE_CHECKING:
    import onnx
    import torch

_STANDARD = frozenset({"", "ai.onnx"})
_FLOAT16 = 10  # ONNX's number


class TrainedPart:
    """The nodes between two tensors of a network, and their weights as tensors of torch.

    It computes in float32, whatever types the file keeps its weights and activations in.

    Parameters
    ----------
    network : Network
        With its weights.
    source : str
        Tensor that the part begins at; the image input for the whole network.
    cut : Cut
        The embedding.
    device : str
        Of torch.

    Raises
    ------
    BackboneError
        If the part has an operator that torch is not taught here, takes one image a run, or has no weights.
    """

    def __init__(self, network: Network, source: str, cut: Cut, device: str = "cpu") -> None:
        self.network, self.source, self.cut, self.device = network, source, cut, device
        batching = network.find_batching([cut.tensor])
        nodes, shapes = network.between(source, [cut.tensor]), list[Any]()
        if batching == "thawed":
            nodes, shapes = network.thaw(nodes)
        self.nodes = [node for node in nodes if node.op_type != "Constant"]
        self._refuse_unknown()
        if batching == "frozen":
            raise BackboneError(f"{network.path} must take several images a run to be trained. It is frozen at one.")
        constants = read_constants(network, self.nodes, shapes)
        before = {name for node in network.ancestors([source]) for name in node_inputs(node)}
        self.roles: dict[str, Role] = find_roles(self.nodes, constants, before)
        self.types = {name: constants[name].dtype for name in self.roles}
        self._rounds = network.elem_type(cut.tensor) == _FLOAT16
        self._calls = [_read_call(node, network.opset, device) for node in self.nodes]
        self._dead = _find_last_uses(self.nodes, {*constants, cut.tensor})
        self.tensors = {name: _to_torch(array, device) for name, array in constants.items()}
        if not self.weights:
            raise BackboneError(f"{network.path} has no weights between {source!r} and {cut.tensor!r} to be trained.")

    def _refuse_unknown(self) -> None:
        missing = sorted(
            {node.op_type for node in self.nodes if node.domain not in _STANDARD or node.op_type not in OPERATORS}
        )
        if missing:
            raise BackboneError(
                f"The part of {self.network.path} behind {self.source!r} must be made of operators that can be trained "
                f"here. Got {', '.join(missing)} too; let it begin further behind with trainable=."
            )

    @property
    def weights(self) -> list[str]:
        """Names of what is trained, in the order of the graph; statistics are not."""
        return [name for name, role in self.roles.items() if role.kind not in ("mean", "variance")]

    @property
    def statistics(self) -> list[str]:
        """Names of the means and variances of batch normalisations."""
        return [name for name in self.roles if name not in set(self.weights)]

    def adapt(self, adapts: bool) -> None:
        """Whether batch normalisations take their statistics from the batch from now on, and remember them."""
        for call in self._calls:
            call.adapts = adapts

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Embed what `source` holds for n images: float32 (n, …) -> (n, d)."""
        found = self._compute(x)[self.cut.tensor]
        if self._rounds:  # onnxruntime's CPU computes such networks in float32 and rounds what they return
            found = found + (found.half().float() - found).detach()
        return pool(found, self.cut)

    def _compute(self, x: torch.Tensor, *, keep: bool = False) -> dict[str, torch.Tensor]:
        values = {**self.tensors, self.source: x}
        for node, call, dead in zip(self.nodes, self._calls, self._dead, strict=True):
            if node.op_type == "Shape" and node.input[0] not in values:
                outputs: Any = self._find_shape(node.input[0], len(x), call)
            else:
                inputs = [values[name] if name else None for name in node.input]
                try:
                    outputs = OPERATORS[node.op_type](call, *inputs)
                except Exception as error:  # torch raises what it likes
                    where = f"{node.op_type} (tensor {node.output[0]!r})"
                    raise BackboneError(f"torch cannot compute {where} of {self.network.path}: {error}") from error
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values.update(zip(node.output, outputs, strict=False))
            for name in () if keep else dead:
                values.pop(name, None)
        return values

    def _find_shape(self, tensor: str, n: int, call: Call) -> torch.Tensor:
        """Shape of a tensor before the part."""
        import torch

        sizes = [n, *self.network.shape(tensor)[1:]]
        return torch.tensor(sizes[call.get("start", 0) : call.get("end")], dtype=torch.int64)

    def renew(self, random_state: int) -> None:
        """Draw all weights anew, and forget the statistics."""
        import torch

        rng = np.random.default_rng(random_state)
        with torch.no_grad():
            values = self._compute(torch.zeros((1, *self.input_shape), device=self.device), keep=True)
        for name, role in self.roles.items():
            drawn = draw_fresh(role, self.tensors[name].shape, values[role.used_as].shape, rng)
            self.tensors[name] = _to_torch(round_to(drawn, self.types[name]), self.device)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what `source` holds for one image.

        Raises
        ------
        BackboneError
            If the graph does not fix it.
        """
        if self.source == self.network.image_input.name:
            height, width = self.network.preprocessing.crop
            return (3, height, width) if self.network.layout == "NCHW" else (height, width, 3)
        shape = self.network.shape(self.source)[1:]
        if None in shape or not shape:
            raise BackboneError(
                f"The size of {self.source!r} of {self.network.path} is not fixed by its graph: {shape}."
            )
        return tuple(size or 0 for size in shape)

    def copy_tensors(self) -> dict[str, torch.Tensor]:
        """Weights and statistics as they are now."""
        return {name: self.tensors[name].detach().clone() for name in self.roles}

    def restore(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Take weights and statistics that `copy_tensors` gave."""
        import torch

        with torch.no_grad():
            for name, tensor in kept.items():
                self.tensors[name].copy_(tensor)

    def round(self) -> None:
        """Take the values that the file will have, in its types."""
        import torch

        with torch.no_grad():
            for name, array in self.copy_weights().items():
                self.tensors[name].copy_(_to_torch(array, self.device))

    def copy_weights(self) -> dict[str, Array]:
        """Weights and statistics as they are now, in the types of the file."""
        return {name: round_to(self.tensors[name].detach().cpu().numpy(), self.types[name]) for name in self.roles}


def pool(x: torch.Tensor, cut: Cut) -> torch.Tensor:
    """What the embedding graph does behind the backbone: see `graph.build_embedding_model`."""
    if cut.kind == "vector":
        return x
    if cut.pooling == "cls":
        return x[:, 0]
    if cut.pooling == "flatten":
        return x.flatten(1)
    if cut.kind == "tokens":
        x = x[:, cut.n_prefix :].movedim(-1, 1)
    elif cut.kind == "nhwc":
        x = x.movedim(-1, 1)
    x = x.flatten(2)
    if cut.pooling == "gem":
        return (x.clamp(min=1e-6) ** 3).mean(2) ** (1 / 3)
    return x.mean(2) if cut.pooling == "avg" else x.amax(2)


def _read_call(node: onnx.NodeProto, opset: int, device: str) -> Call:
    import onnx

    attributes: dict[str, Any] = {}
    for entry in node.attribute:
        value = onnx.helper.get_attribute_value(entry)
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, onnx.TensorProto):
            value = _to_torch(onnx.numpy_helper.to_array(value), device)
        attributes[entry.name] = value
    if node.op_type == "Split":
        attributes["n_outputs"] = len(node.output)
    return Call(node.op_type, attributes, opset)


def _to_torch(array: Array, device: str) -> torch.Tensor:
    """Float32 for all floats; integers, which are shapes, stay on the host."""
    import torch

    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)
    return torch.from_numpy(np.array(array, dtype=bool if array.dtype.kind == "b" else np.int64))


def _find_last_uses(nodes: Sequence[onnx.NodeProto], kept: set[str]) -> list[list[str]]:
    """The tensors that no node behind each one needs."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input if name and name not in kept}
    dead: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        dead[index].append(name)
    return dead


def batches(n: int, size: int) -> Iterator[slice]:
    """Parts of n rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
