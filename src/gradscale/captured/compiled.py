"""A step given to `torch.compile` as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import cast

import torch

from gradscale.captured.step_result import Captured, StepResult
from gradscale.captured.tensor_step import TensorStep

Backend = str | Callable[..., object]
"""What `torch.compile(backend=…)` may be."""


class CompiledStep:
    """A `TensorStep` in one compiled graph: dynamo raises where it would have to break it.

    Args:
        step: what to compile, at the first call.
        backend: of `torch.compile`.
    """

    def __init__(self, step: TensorStep, backend: Backend) -> None:
        self._step = step
        # Typed loosely: torch's own overloads leave `isolate_recompiles` out.
        compiler = cast(Callable[..., Captured], torch.compile)
        self._compiled = compiler(
            step.__call__, fullgraph=True, backend=backend, isolate_recompiles=True
        )

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One step; compiles it anew if the batches' shapes changed."""
        for parameter, gradient in zip(self._step.trained, self._step.gradients, strict=True):
            # `zero_grad()` between steps takes it away, and dynamo would leave the parameter out.
            parameter.grad = gradient
        # Numbers are part of the graph: as inputs, they would be tensors that the host reads.
        with torch._dynamo.config.patch(trace_autograd_ops=True, specialize_float=True):
            return self._compiled(batches)


def can_compile_backward() -> bool:
    """Whether this torch traces `torch.autograd.grad`, and many steps apart. Loads the compiler."""
    import torch._dynamo.config as config

    return (
        hasattr(config, "trace_autograd_ops")
        and "isolate_recompiles" in signature(torch.compile).parameters
    )
