"""How a step becomes a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradscale.captured.compiled import Backend, CompiledStep
from gradscale.captured.cuda_graph import CudaGraph
from gradscale.captured.eager_step import EagerStep
from gradscale.captured.planned_gradients import PlannedGradients
from gradscale.captured.planned_graph import PlannedGraph
from gradscale.captured.planned_step import PlannedForms, PlannedStep
from gradscale.captured.step_result import Captured
from gradscale.captured.tensor_step import GradientsOf, TensorStep


def capture_cuda_graph(
    step: EagerStep, batches: Sequence[object], stream: torch.cuda.Stream
) -> Captured:
    """The scaler's own loop, recorded: with optimizers that step on the device it reads nothing."""
    layerwise = step.scaler._held.layerwise
    if layerwise is None:
        return CudaGraph(step, batches, stream)
    graph = PlannedGraph(lambda given: CudaGraph(step, given, stream), layerwise)
    return PlannedStep(graph, step.scaler, step.optimizer)


def capture_compiled(
    step: EagerStep, trained: Sequence[torch.Tensor], backend: Backend
) -> Captured:
    """The same step as a function of tensors, compiled; on the state that the scaler holds."""
    held = step.scaler._held
    if held.tensor is None:
        held.begin_on(trained[0].device)
    if held.layerwise is None:
        return CompiledStep(TensorStep(step, trained, held.policy, held.state), backend)
    gradients = PlannedGradients(held.layerwise, trained)

    def compiled(gradients_of: GradientsOf, backend: Backend) -> CompiledStep:
        of_step = TensorStep(step, trained, held.policy, held.state, gradients_of)
        return CompiledStep(of_step, backend)

    # Counting has many small operations, of which inductor would compile kernels for minutes.
    quick = "aot_eager" if backend == "inductor" else backend
    plain, measuring = compiled(gradients, backend), compiled(gradients.measuring, quick)
    forms = PlannedForms(plain, measuring, gradients, held.layerwise)
    return PlannedStep(forms, step.scaler, step.optimizer, forms.counted)
