"""How a step becomes a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradscale.captured.compiled import CompiledStep
from gradscale.captured.cuda_graph import CudaGraph
from gradscale.captured.eager_step import EagerStep
from gradscale.captured.step_result import StepResult
from gradscale.captured.tensor_step import TensorStep

Captured = Callable[[Any], StepResult]


def capture_cuda_graph(step: EagerStep, batches: Any, stream: torch.cuda.Stream) -> Captured:
    """The scaler's own loop, recorded: with optimizers that step on the device it reads nothing."""
    return CudaGraph(step, batches, stream)


def capture_compiled(
    step: EagerStep, trained: Sequence[torch.Tensor], backend: str | Callable[..., Any]
) -> Captured:
    """The same step as a function of tensors, compiled; on the state that the scaler holds."""
    held = step.scaler._held
    if held.tensor is None:
        held.begin_on(trained[0].device)
    return CompiledStep(TensorStep(step, trained, held.policy, held.rebound()), backend)
