"""The gradients of one backward pass: of every parameter, and at every module's output."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradscale.backward.measure_places import PRODUCTS
from gradscale.backward.names import plain_modules
from gradscale.formats import FloatFormat
from gradscale.nested_tensors import tensors_in


class Output(NamedTuple):
    """One output of one call of a module.

    Attributes:
        module: its name, as in `named_modules()`, without what wrappers add.
        call: how often the module had been called before in this pass.
        number: which of several outputs.
    """

    module: str
    call: int = 0
    number: int = 0


@dataclass
class Gradients:
    """What one backward pass left, as it was stored: `scale` times the gradient.

    Attributes:
        parameters: by name; a parameter without a gradient is left out.
        modules: what arrived at the outputs of modules. An output that a module only passes on,
            as a container does its last child's, counts where it was made.
        products: the outputs of matrix products, which read their gradient in the product's format.
        loss: the loss, unscaled.
        scale: by which the loss was multiplied.
        zeros: for parameters whose gradient is a sum that cancels, which elements are zero up to
            rounding; see `gradscale.backward.cancellation`.
        owners: by the name of a parameter that of its module, as in `modules`.
        emulated: the format to which `emulate` rounded what products read; None without.
    """

    parameters: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    modules: dict[Output, Tensor] = field(default_factory=dict[Output, Tensor])
    products: set[Output] = field(default_factory=set[Output])
    loss: float = float("nan")
    scale: float = 1.0
    zeros: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    owners: dict[str, str] = field(default_factory=dict[str, str])
    emulated: FloatFormat | None = None

    @property
    def format(self) -> FloatFormat:
        """What products read their gradient in: what was emulated, or else the narrowest dtype.

        float16 for a pass in which everything is wider: that is what it would be brought to.
        """
        if self.emulated is not None:
            return self.emulated
        narrow = {held.dtype for held in self.modules.values()} & {torch.float16, torch.bfloat16}
        return FloatFormat.of(torch.bfloat16 if narrow == {torch.bfloat16} else torch.float16)

    @property
    def finite(self) -> bool:
        """Whether no gradient holds an infinity or a NaN. Reads the host."""
        tensors = (*self.parameters.values(), *self.modules.values())
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@contextmanager
def capture_gradients(model: nn.Module) -> Generator[Gradients]:
    """Collects what arrives at the modules' outputs in the backward passes inside.

    It hooks autograd nodes, not tensors: a layer-wise plan moves hooked tensors to the loss scale.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> with capture_gradients(model) as found:
        ...     model(torch.ones(1, 2)).sum().backward()
        >>> sorted(found.modules)
        [Output(module='0', call=0, number=0), Output(module='1', call=0, number=0)]
    """
    found = Gradients()
    calls: dict[str, int] = {}
    made: set[tuple[Node, int]] = set()

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            del module, args
            call = calls.get(name, 0)
            for index, tensor in enumerate(tensors_in(output)):
                node, number = tensor.grad_fn, tensor.output_nr
                # Where it was made, not where it is passed on: it would count once a container.
                if node is not None and (node, number) not in made:
                    made.add((node, number))
                    calls[name] = call + 1
                    _collect(found, Output(name, call, index), node, number)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in plain_modules(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _collect(found: Gradients, output: Output, node: Node, number: int) -> None:
    if _is_product(node):
        found.products.add(output)

    def keep(gradients: tuple[Tensor | None, ...]) -> None:
        grad = gradients[number]
        if grad is not None:
            # What several passes bring to one node adds up, as in `.grad`.
            known = found.modules.get(output)
            found.modules[output] = grad.detach() if known is None else known + grad.detach()

    # Before the node runs: there all that arrives has been added up.
    node.register_prehook(keep)


def _is_product(node: Node) -> bool:
    """Whether this is a matrix product, below the views and casts that a layer may end with."""
    # A linear layer that ends in `.float()`, on sequences: cast, view, product; one to spare.
    for _ in range(4):
        if node.name() in PRODUCTS:
            return True
        onward = [target for target, _ in node.next_functions if target is not None]
        if len(onward) != 1:
            return False
        node = onward[0]
    return False


def as_dense(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, detached, as a dense one."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()  # type: ignore[operator]
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
