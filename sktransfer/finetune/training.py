"""Epochs over maps: Adam on the loss, with the pulls taken as proximal steps, and the best epoch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sktransfer.finetune.part import TrainedPart, batches
from sktransfer.finetune.recipe import Recipe
from sktransfer.finetune.rows import Rows
from sktransfer.finetune.task import Head, Task

if TYPE_CHECKING:
    import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8
WARM_UP = 0.1  # share of the steps in which the learning rate rises; it falls to zero, as half a cosine, over all

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Epoch:
    """Mean loss over the images learnt from, without the pulls; loss and score over those held out, or NaN."""

    loss: float
    held_out_loss: float
    held_out_score: float


@dataclass
class Pulled:
    """A tensor that is trained, pulled to `target`: ½ weight ‖tensor − target‖² beside the summed loss."""

    tensor: torch.Tensor
    target: torch.Tensor
    weight: float


class Adam:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1) on the loss, a proximal step for the pull.

    With the step size that Adam has for each weight in the proximal step, fixed points are those of loss and pull
    together, any weight of the pull is stable, and an infinite one gives the target (as in `transfer.optimizers`).
    """

    def __init__(self, pulled: Sequence[Pulled], n: int) -> None:
        import torch

        self.pulled, self.n, self.t = pulled, n, 0
        self.means = [torch.zeros_like(one.tensor) for one in pulled]
        self.squares = [torch.zeros_like(one.tensor) for one in pulled]

    def step(self, rate: float) -> None:
        """Change the tensors in place, by their gradients, which are of the mean loss of n images."""
        import torch

        self.t += 1
        rate *= math.sqrt(1 - BETAS[1] ** self.t) / (1 - BETAS[0] ** self.t)
        with torch.no_grad():
            for one, mean, square in zip(self.pulled, self.means, self.squares, strict=True):
                gradient, one.tensor.grad = one.tensor.grad, None
                if gradient is None:
                    continue
                mean.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square(), 1 - BETAS[1])
                size = rate / (square.sqrt() + EPSILON)
                one.tensor -= size * mean
                self._pull(one, size)

    def _pull(self, one: Pulled, size: torch.Tensor) -> None:
        """Go to where ½ weight ‖tensor − target‖² / n + ½ ‖step‖² / size is least."""
        if math.isinf(one.weight):
            one.tensor.copy_(one.target)
        elif one.weight:
            one.tensor.sub_(one.target).div_(1 + size * (one.weight / self.n)).add_(one.target)


class Trainer:
    """The trained part and a linear head on its embeddings, taught by the images learnt from."""

    def __init__(self, part: TrainedPart, rows: Rows, task: Task, recipe: Recipe, head: Head) -> None:
        self.part, self.rows, self.task, self.recipe = part, rows, task, recipe
        self.mean, self.scale = self._put(head.mean), head.scale
        self.coefficients, self.intercepts = self._put(head.coefficients), self._put(head.intercepts)
        self.y = self._put(task.y)
        own = 0.0 if recipe.fresh_weights else recipe.source_weight
        pulled = [Pulled(part.tensors[name], part.tensors[name].clone(), own) for name in part.weights]
        pulled.append(Pulled(self.coefficients, self.coefficients.new_zeros(()), 1 / recipe.C))
        pulled.append(Pulled(self.intercepts, self.intercepts.new_zeros(()), 0.0))
        for one in pulled:
            one.tensor.requires_grad_(True)
        self.adam = Adam(pulled, len(task.learnt))
        self.rng = np.random.default_rng(recipe.random_state)
        self.n_steps = recipe.epochs * math.ceil(len(task.learnt) / recipe.batch_size)

    def _put(self, array: Array) -> torch.Tensor:
        import torch

        dtype = torch.int64 if array.dtype.kind == "i" else torch.float32
        return torch.from_numpy(np.array(array)).to(self.part.device, dtype)

    def train(self, follow: Callable[[Epoch], object]) -> list[Epoch]:
        """Run all epochs, or with early stopping leave the part with the weights of the best; returns them all."""
        history: list[Epoch] = []
        best, kept = math.inf, self.part.copy_tensors()
        for _ in range(self.recipe.epochs):
            loss = self._run_epoch()
            history.append(Epoch(loss, *self._judge()))
            follow(history[-1])
            if self.recipe.early_stopping and history[-1].held_out_loss < best:
                best, kept = history[-1].held_out_loss, self.part.copy_tensors()
        if self.recipe.early_stopping:
            self.part.restore(kept)
        return history

    def _run_epoch(self) -> float:
        order, total = self.rng.permutation(self.task.learnt), 0.0
        self.part.adapt(self.recipe.adapt_batch_norm)
        for part in batches(len(order), self.recipe.batch_size):
            rows = order[part]
            views = self.rng.integers(0, self.rows.n_views, len(rows))
            loss = self._find_loss(self._predict(views, rows), rows)
            loss.backward()
            self.adam.step(self.recipe.learning_rate * self._schedule())
            total += float(loss.detach()) * len(rows)
        self.part.adapt(False)
        return total / len(order)

    def _schedule(self) -> float:
        done = self.adam.t / self.n_steps
        return min(1.0, (self.adam.t + 1) / max(1.0, WARM_UP * self.n_steps)) * (1 + math.cos(math.pi * done)) / 2

    def _predict(self, views: Any, rows: Array) -> torch.Tensor:
        import torch

        x = torch.from_numpy(self.rows.take(views, rows)).to(self.part.device)
        centred = (self.part.run(x) - self.mean) * self.scale
        return centred @ self.coefficients.T + self.intercepts

    def _find_loss(self, outputs: torch.Tensor, rows: Array) -> torch.Tensor:
        """Cross-entropy, or half the squared error: the mean over the rows."""
        from torch.nn import functional

        if self.task.n_classes:
            return functional.cross_entropy(outputs, self.y[rows])
        return functional.mse_loss(outputs[:, 0], self.y[rows]) / 2

    def _judge(self) -> tuple[float, float]:
        """Loss and score of the images held out."""
        import torch

        held_out = self.task.held_out
        if not len(held_out):
            return math.nan, math.nan
        with torch.no_grad():
            parts = [self._predict(0, held_out[part]) for part in batches(len(held_out), self.recipe.batch_size)]
            outputs = torch.cat(parts)
            loss = float(self._find_loss(outputs, held_out))
        return loss, self.task.score(outputs.cpu().numpy(), held_out)


def embed(part: TrainedPart, rows: Rows, batch_size: int) -> Array:
    """Embeddings of the images as they are used, by torch: float32 (n, d)."""
    import torch

    n = rows.values.shape[1]
    with torch.no_grad():
        parts = [part.run(torch.from_numpy(rows.take(0, one)).to(part.device)) for one in batches(n, batch_size)]
    return np.asarray(torch.cat(parts).cpu().numpy())
