"""LAMB (You et al. 2019, arXiv 1904.00962): a layer's step is as long as its weights, times lr."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of the paper without weight decay, bias-corrected, `phi` the identity.

    r = m / (sqrt(v) + eps);  weight -= lr * |weight| / |r| * r

    The ratio is 1 where a weight or its r is zero throughout.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on the gradients as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, object]) -> None:
        beta1, beta2 = group["betas"]  # type: ignore[misc]
        state = self.state[parameter]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        step = state["step"] = state.get("step", 0) + 1
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient.square(), 1 - beta2)
        root = (square / (1 - beta2**step)).sqrt_()
        update = mean / (1 - beta1**step) / (root + group["eps"])
        length, moved = parameter.norm(), update.norm()
        ratio = torch.where((length > 0) & (moved > 0), length / moved, 1.0)
        parameter.sub_(group["lr"] * ratio * update)  # type: ignore[operator]
