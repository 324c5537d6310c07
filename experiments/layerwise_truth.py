"""How far one backward pass is from the truth: flushed elements, and weight gradients astray.

The truth is a float32 pass of the same batch with the same weights. What arrives at a layer's node
is read by hooks on nodes, which (unlike hooks on tensors) do not tie a plan down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscale.backward.measure_places import PRODUCTS
from gradscale.formats import FloatFormat

Arrived = dict[str, Tensor]


@contextmanager
def arriving(model: nn.Module) -> Generator[Arrived]:
    """Collects the gradient that arrives at the output of every call of every leaf module."""
    found: Arrived = {}
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del args
            if isinstance(output, Tensor) and output.grad_fn is not None:
                call = calls[name] = calls.get(name, -1) + 1
                key = f"{'product ' if _multiplies(module) else ''}{name}#{call}"
                node = _product_behind(output.grad_fn) if _multiplies(module) else output.grad_fn
                node.register_prehook(_keep(found, key))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _product_behind(node: Any) -> Any:
    """The node of the matrix product below the views that a linear layer ends with."""
    seen = node
    for _ in range(4):
        if seen.name() in PRODUCTS:
            return seen
        onward = [target for target, _ in seen.next_functions if target is not None]
        if len(onward) != 1:
            break
        seen = onward[0]
    return node


def _keep(found: Arrived, key: str) -> Callable[[Sequence[Tensor | None]], None]:
    def hook(gradients: Sequence[Tensor | None]) -> None:
        if gradients[0] is not None:
            found[key] = gradients[0].detach().clone()

    return hook


def true_pass(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[Arrived, dict[str, Tensor]]:
    """What arrives at the layers and the parameters' gradients in float32, on a copy."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    with arriving(twin) as found:
        loss(twin).backward()
    return found, weight_gradients(twin)


def weight_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all matrices and kernels."""
    return {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.dim() > 1
    }


def lost_shares(true: Arrived, stored: Arrived, format: FloatFormat) -> list[float]:
    """For each node the share of elements that are non-zero in `true` and zero in `stored`.

    What arrives at a product is rounded to `format` first, as the product rounds it.
    """
    shares: list[float] = []
    for key, reference in true.items():
        held = stored.get(key)
        nonzero = reference != 0
        if held is None or not nonzero.any():
            continue
        if key.startswith("product "):
            held = format.round(held.float())
        lost = nonzero & (held.reshape(reference.shape) == 0)
        shares.append(float(lost.sum()) / float(nonzero.sum()))
    return shares


def cosines(true: dict[str, Tensor], found: dict[str, Tensor]) -> list[float]:
    """For each layer the cosine between its weight gradient and the true one; 0 if it has none."""
    result: list[float] = []
    for name, reference in true.items():
        a, b = reference.double().flatten(), found[name].double().flatten()
        if not a.any():
            continue
        size = float(a.norm() * b.norm())
        finite = bool(torch.isfinite(b).all())
        result.append(float(a @ b) / size if finite and size > 0 else 0.0)
    return result
