"""What an optimizer's step cannot do right with master weights, said within it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from gradscale.half.link import Link, written_of
from gradscale.half.shared_gradient import Held


def refuse_scaled(optimizer: Optimizer, links: Sequence[Link]) -> None:
    """Before gradients that came under a plan are widened by nobody who knows the scale."""
    if any(link.exponent and link.held in (Held.ARRIVED, Held.MODIFIED) for link in links):
        raise RuntimeError(
            f"`{type(optimizer).__name__}.step()`: the gradients come from "
            "`scaler.scale(loss).backward()` under a plan, and are not divided by the scale. Call "
            "`scaler.step(optimizer)`."
        )


def refuse_writes(optimizer: Optimizer, links: Sequence[Link]) -> None:
    """Before weights are copied back, over what somebody else wrote there."""
    if written_of(links):
        raise RuntimeError(
            f"`{type(optimizer).__name__}.step()` wrote the model's half-precision parameters, and "
            "not through the float32 masters in `optimizer.param_groups`, which are copied over "
            "them now. An optimizer that keeps a list of parameters of its own must read "
            "`param_groups` instead; a hook that writes weights before a step belongs before "
            "`step()`."
        )


def refuse_orphans(optimizer: Optimizer, model: nn.Module | None, links: Sequence[Link]) -> None:
    """In a step without any gradient: whether the model still has these parameters."""
    if model is None or any(link.master.grad is not None for link in links):
        return
    present = {id(parameter) for parameter in model.parameters()}
    if links and not any(id(link.parameter) in present for link in links):
        raise RuntimeError(
            f"`{type(optimizer).__name__}.step()`: the model's parameters were replaced after "
            "`half_precision(model, optimizer)`, so none of them has a gradient here. Call what "
            "replaces them first: `fully_shard(model)`, then build the optimizer, then "
            "`half_precision`."
        )
