"""Users' backward functions as public code has them, and a mixture of experts that needs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AddAuxiliaryLoss(torch.autograd.Function):
    """As DeepSeek's: the gradient of the auxiliary loss is 1, whatever the scale."""

    @staticmethod
    def forward(ctx, hidden, auxiliary):
        ctx.dtype = auxiliary.dtype
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.ones((), dtype=ctx.dtype, device=grad.device)


class WithLoss(torch.autograd.Function):
    """As icefall's: a loss of any shape, whose gradient is 1, beside an argument that has none."""

    @staticmethod
    def forward(ctx, x, y, name):
        ctx.shape = y.shape
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.ones(ctx.shape, dtype=torch.float32, device=grad.device), None


class AuxLossAutoScaler(torch.autograd.Function):
    """As Megatron's: its gradient is what `set_loss_scale` was told."""

    main_loss_backward_scale: Tensor = torch.tensor(1.0)

    @staticmethod
    def forward(ctx, hidden, auxiliary):
        ctx.save_for_backward(auxiliary)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, grad):
        (auxiliary,) = ctx.saved_tensors
        told = AuxLossAutoScaler.main_loss_backward_scale
        return grad, torch.ones_like(auxiliary) * told

    @staticmethod
    def set_loss_scale(scale):
        AuxLossAutoScaler.main_loss_backward_scale = scale


class Decay(torch.autograd.Function):
    """Passes its gradient on and adds some of its input to it: one output that is both."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 + 0.25 * x


class Clamp(torch.autograd.Function):
    """As in DPVO and DROID-SLAM."""

    @staticmethod
    def forward(ctx, x, limit):
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-ctx.limit, ctx.limit), None


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.sign()


class Reversal(torch.autograd.Function):
    """Linear: gradient reversal, as for domain adaptation."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.neg_() * 0.5


ADDITIONS = {
    "DeepSeek": lambda hidden, loss: AddAuxiliaryLoss.apply(hidden, loss),
    "icefall": lambda hidden, loss: WithLoss.apply(hidden, loss.expand(3) / 3, "router"),
    "Megatron": lambda hidden, loss: AuxLossAutoScaler.apply(hidden, loss),
}


class Experts(nn.Module):
    """A small mixture of experts whose router is balanced by a gradient that a function adds."""

    def __init__(self, add, width=8, experts=3):
        super().__init__()
        self.up = nn.Linear(width, width)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))
        self.down = nn.Linear(width, 1)
        self.add = add

    def forward(self, x):
        hidden = self.up(x).tanh()
        weights = self.router(hidden).softmax(-1)
        mixed = sum(w[:, None] * e(hidden) for w, e in zip(weights.T, self.experts, strict=True))
        balance = weights.mean(0).square().sum() * 0.01
        return self.down(self.add(mixed, balance)).square().mean()
