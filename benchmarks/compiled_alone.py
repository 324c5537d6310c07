"""A copy of a model compiled for itself, however many copies of it are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compiled_alone(model: nn.Module) -> Any:
    """The model compiled by inductor, whose graph no other copy takes and which takes no other's.

    Copies otherwise share a graph: one that is made for a plan would run one that was not.
    """
    from torch._inductor.compile_fx import compile_fx

    compiler: Callable[..., Any] = torch.compile
    # Dynamo goes by the backend's identity.
    return compiler(model, backend=lambda gm, inputs: compile_fx(gm, inputs))
