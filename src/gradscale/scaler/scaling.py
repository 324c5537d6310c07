"""How losses are scaled: in float32, at the scale in force, left-over gradients brought along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor

from gradscale.scaler.bare_step import BareStepWatch
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.given_up import Counts, look_for_new_step

Outputs = TypeVar("Outputs")


def scaled(step: CurrentStep, outputs: Outputs, inputs: object) -> Outputs:
    """A nesting of losses, multiplied by the scale; see `GradScaler.scale`."""
    evidence = step.evidence
    earlier = len(evidence.losses), len(evidence.inputs)
    if inputs is not None:
        # Kept by reference: whoever writes into the batch in the loop changes what triage sees.
        evidence.inputs.append(inputs)
    return cast(Outputs, _nested(step, outputs, earlier))


def scale_without_loss(step: CurrentStep, optimizer: torch.optim.Optimizer, call: str) -> Tensor:
    """S. A stage of a pipeline whose loss another rank scales begins with it here.

    Raises:
        AssertionError: as torch's, if no loss has been scaled and there are no ranks that could.
    """
    held = step.held
    if held.tensor is None and step.process_group is not None:
        scale = held.begin_on(optimizer.param_groups[0]["params"][0].device)
        if held.layerwise is not None:
            held.layerwise.begin_step(scale)
    return held.ready(call)


def _nested(step: CurrentStep, outputs: object, earlier: Counts) -> object:
    if isinstance(outputs, Tensor):
        return _tensor(step, outputs, earlier)
    if isinstance(outputs, Iterable) and not isinstance(outputs, str | bytes | Mapping):
        items = cast("Iterable[object]", outputs)
        products = (_nested(step, item, earlier) for item in items)
        if isinstance(outputs, list | tuple):
            return type(outputs)(products)  # pyright: ignore[reportUnknownVariableType]
        return products
    raise ValueError(
        f"`scale({type(outputs).__name__})`: outputs must be a Tensor or an iterable of "
        "Tensors. Pass the loss, or a list of losses."
    )


def _tensor(step: CurrentStep, output: Tensor, earlier: Counts) -> Tensor:
    held = step.held
    scale, layerwise = held.tensor, held.layerwise
    if scale is None:
        scale = held.begin_on(output.device)
        step.bare = BareStepWatch(step.records)
    if layerwise is not None:
        layerwise.begin_step(scale)
    # Before more is added to what an earlier step has left.
    step.bring_along(scale)
    number = step.evidence.note_loss(output)
    given = output
    # Torch promotes a half 0-d loss times the float32 0-d scale by itself; only where one of two
    # factors has dimensions does that one's dtype win.
    if output.dim() and output.dtype in (torch.float16, torch.bfloat16):
        output = output.to(torch.float32)
    if layerwise is not None:
        output = layerwise.attach(output)
    elif held.functions.wanted:
        output = held.functions.attach(output, scale)
    product = output * scale.to(device=output.device, non_blocking=True)
    if product.requires_grad:
        if any(record.complete for record in step.records.values()):
            product.register_hook(partial(look_for_new_step, step, earlier, number))
        else:
            product.register_hook(partial(step.note_backward, number))
        if step.bare is not None:
            step.bare.watch(product, output.grad_fn, scale)
    if step.outputs is not None:
        step.outputs.append((product, given))
    return product
