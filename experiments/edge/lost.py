"""What a backward pass lost, apart: of the gradients of weights, and of what arrives at layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from gradscale.formats import FloatFormat
from gradscale.truth import Gradients, capture_gradients, compared
from gradscale.watching.rows import Row


class LostShares(NamedTuple):
    """Elements that are not zero in float32, and zero here, as shares.

    Attributes:
        weights: of the gradients of matrices and kernels.
        inputs: of the gradients that arrive at layers' outputs, which they pass on to their inputs;
            a product reads them in its own format.
    """

    weights: float = math.nan
    inputs: float = math.nan


def gradients(
    model: nn.Module, loss: Callable[[], Tensor], backward: Callable[[Tensor], None]
) -> Gradients:
    """What `backward(loss())` leaves in the parameters, and brings to the modules on its way."""
    model.zero_grad()
    with capture_gradients(model) as found:
        value = loss()
        found.modules.clear()  # a loss may hold a backward pass of its own, as that of forces does
        backward(value)
    found.parameters = {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.dim() > 1
    }
    return found


def lost_shares(true: Gradients, held: Gradients, format: FloatFormat) -> LostShares:
    """What `held` lost of `true`, if products read their gradient in `format`.

    Example:
        >>> true = Gradients(parameters={"w": torch.tensor([[1.0, 1e-9, 0.0]])})
        >>> half = Gradients(parameters={"w": torch.tensor([[1.0, 0.0, 0.0]])})
        >>> lost_shares(true, half, FloatFormat.of("fp16"))
        LostShares(weights=0.5, inputs=nan)
    """
    rows = compared(true, held, format).rows
    return LostShares(*(_share(r for r in rows if r.kind == k) for k in ("parameter", "module")))


def _share(rows: Iterable[Row]) -> float:
    counted = [(row.flushed, row.nonzero) for row in rows]
    nonzero = sum(count for _, count in counted)
    return sum(flushed for flushed, _ in counted) / nonzero if nonzero else math.nan
