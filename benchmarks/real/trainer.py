"""One way to train at work on one task."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import gradscale
from calendars import fix, quiet
from compiled_alone import compiled_alone
from real.tasks import Batch, Task
from real.ways import Way

BATCHES = 10


def batches_of(task: Task, device: str) -> list[Batch]:
    """The stream that every way of a task is trained on, again and again; on the device."""
    generator = torch.Generator(device).manual_seed(1)
    drawn = [task.batch(generator) for _ in range(BATCHES)]
    return [tuple(_laid_out(part, task) for part in batch) for batch in drawn]


def _laid_out(tensor: Tensor, task: Task) -> Tensor:
    images = task.channels_last and tensor.dim() == 4
    return tensor.to(memory_format=torch.channels_last) if images else tensor


class Trainer:
    """A model with optimizer and scaler; each step goes on with the next batch.

    Args:
        task: what is trained, from the same weights whatever the way.
        way: how.
        fused: the optimizer's kernel: fused, or torch's foreach operations.
        compiled: whether by `torch.compile`.
        batches: see `batches_of`.
        device: ``"cuda"`` or ``"cpu"``.
        init_scale: of the scaler; its default if nothing is said.
    """

    def __init__(
        self,
        task: Task,
        way: Way,
        *,
        fused: bool,
        compiled: bool,
        batches: Sequence[Batch],
        device: str,
        init_scale: float = 2.0**16,
    ) -> None:
        self.way, self.device, self._loss = way, device, task.loss
        torch.manual_seed(0)
        with torch.device(device):
            model: nn.Module = task.model()
        if task.channels_last:
            model.to(memory_format=torch.channels_last)
        kernel = {"fused": True} if fused else {"foreach": True}
        self.optimizer = task.optimizer(model.parameters(), **kernel)
        if way.half:
            gradscale.half_precision(model, self.optimizer)
        self.scaler: Any = way.make_scaler(device, init_scale)
        # After the scaler: what is compiled while a layer-wise one lives can follow a plan.
        self.model: Any = compiled_alone(model) if compiled else model
        self._batches = cycle(batches)

    def step(self) -> Tensor:
        """One step; the loss before it, on the device. Nothing here waits for the device."""
        batch = next(self._batches)
        self.optimizer.zero_grad(set_to_none=True)
        with products(self.way.tf32):
            half = self.way.autocast
            with torch.autocast(self.device, half, enabled=half is not None):
                loss = self._loss(self.model, batch)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def looked_at(self) -> tuple[float, bool]:
        """One step as `step` takes it: its loss, and whether the optimizer was skipped."""
        scale = self.scaler.get_scale()
        loss = self.step().item()
        if self.way.ours:
            return loss, self.scaler.last_step.skipped
        return loss, self.scaler.get_scale() < scale  # torch's scaler says no more

    def settle(self, measures: bool) -> None:
        """From now on every step of a layer-wise scaler measures, or none does."""
        if self.way.scaler != "layerwise":
            return
        fix(self.scaler, measures)
        alike = 0
        while alike < 3:  # the first of them may still have to plan what an earlier one measured
            alike = alike + 1 if quiet(self.scaler) is not measures else 0
            self.step()


@contextmanager
def products(tf32: bool) -> Generator[None]:
    """Products and convolutions of float32 inside read operands rounded to 10 bits, or do not."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
