"""Lion (Chen et al. 2023, arXiv 2302.06675): steps by the sign, so a lost gradient is a stop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of the paper, without weight decay.

    update = sign(beta1 * m + (1 - beta1) * grad);  m = beta2 * m + (1 - beta2) * grad

    Where gradient and momentum are exactly 0 the sign is 0, and the weight stays.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on the gradients as they are."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                sign = momentum.lerp(gradient, 1 - beta1).sign_()
                parameter.add_(sign, alpha=-group["lr"])
                momentum.lerp_(gradient, 1 - beta2)
