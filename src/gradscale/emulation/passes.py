"""Which pass an operation belongs to: forward, recomputation included, or backward."""

from __future__ import annotations

import sys

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils import checkpoint

# The frame of the function is recognized by its code, whoever has wrapped it.
_ENGINE = _engine_run_backward.__code__
_CHECKPOINT_FILE = checkpoint.__file__


def in_autograd_node() -> bool:
    """Whether the autograd engine is running a node in this thread."""
    # torch declares a node, but returns None outside backward passes.
    return bool(torch._C._current_autograd_node())


def in_backward() -> bool:
    """Whether the operation at hand is part of a backward pass.

    The autograd engine names the node that it runs. Inside a node there may also be a forward pass:
    activation checkpointing recomputes there. It is told by the Python frames between the operation
    and the engine: `torch.utils.checkpoint` is among them, or gradients are recorded although the
    caller of the engine did not ask for that (`create_graph`).
    """
    if not in_autograd_node():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _ENGINE:
            recorded = torch.is_grad_enabled()
            return not recorded or _create_graph(frame.f_locals.get("args", ()))
        if frame.f_code.co_filename == _CHECKPOINT_FILE:
            return False
        frame = frame.f_back
    return True


def _create_graph(arguments: tuple[object, ...]) -> bool:
    # (grad_tensors, keep_graph, create_graph, inputs, ...), as both callers in torch pass them.
    return len(arguments) < 3 or bool(arguments[2])


def autocast_depth() -> int:
    """How many autocast contexts surround the calling code, disabled ones included."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth
