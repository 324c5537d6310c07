"""The contract of a recipe: real data, a network, its loss and its metric, as pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gradscale.recipes.batches import shuffled
from gradscale.recipes.needs import Need

Batch = tuple[Tensor, ...]


class Data(NamedTuple):
    """A fixed split. Tensors of one part share their first dimension, one item each."""

    train: Batch
    test: Batch


@dataclass(frozen=True)
class Defaults:
    """What a recipe trains with when nothing else is asked for.

    Attributes:
        steps: optimizer steps of one run.
        batch_size: items a step.
        lr: the peak learning rate of AdamW; it warms up and then falls along a cosine.
        weight_decay: of AdamW, on matrices and kernels only.
        eps: of AdamW; below the gradients, or it makes the small ones' steps smaller still.
        compare_divisors: what `compare` divides the loss by, one group of rows each.
        threads: CPU threads; None takes what torch takes. One is enough for a small network, and
            makes its results independent of how many cores the machine has.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.01
    eps: float = 1e-8
    compare_divisors: tuple[float, ...] = (1.0, 4096.0)
    threads: int | None = None


class Recipe(ABC):
    """A training task. A subclass is final and keeps no state.

    Attributes:
        name: what the user types.
        data: one line: which data, how much.
        network: one line: which network.
        metric_name: what `metric` measures.
        metric_is_share: whether it lies in [0, 1] and reads best in percent.
        needs: packages or files without which `load` cannot work.
        defaults: steps, batch size and so on.
    """

    name: ClassVar[str]
    data: ClassVar[str]
    network: ClassVar[str]
    metric_name: ClassVar[str]
    metric_is_share: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ()
    defaults: ClassVar[Defaults]

    @abstractmethod
    def load(self, folder: Path | None = None) -> Data:
        """The data, split the same way on every machine; `folder` is searched first.

        Raises:
            FileNotFoundError: if what the recipe `needs` is missing; it says how to install it.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new float32 network, initialized from torch's global generator."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss, a float32 scalar: the mean over everything in `batch`."""

    @abstractmethod
    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """The metric, a scalar: the mean over everything in `batch`."""

    def batch(self, train: Batch, seed: int, step: int, size: int) -> Batch:
        """The items of one step: a pure function, so that a resumed run sees the same ones."""
        index = shuffled(len(train[0]), seed=seed, step=step, size=size).to(train[0].device)
        return tuple(part[index] for part in train)

    def evaluation(self, test: Batch, size: int = 512) -> Iterator[Batch]:
        """The test set in order, `size` items at a time."""
        for start in range(0, len(test[0]), size):
            yield tuple(part[start : start + size] for part in test)

    def parameters(self) -> int:
        """How many parameters the network has; nothing is allocated for it."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.model().parameters())
