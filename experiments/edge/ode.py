"""A neural ordinary differential equation (Chen et al. 2018), solved by `torchdiffeq` unedited."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import classify
from scaled_flow import ScaledFlow
from task import Task, Training

WIDTH = 32


class Flow(nn.Module):
    """`dx/dt` of a state `(n, WIDTH)`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """The same at every time."""
        return self.outer(torch.tanh(self.inner(state))).float()


class NeuralODE(nn.Module):
    """A linear layer, a flow from time 0 to 1 in equal steps of Euler's rule, a linear layer."""

    def __init__(self, steps: int, per_step: bool) -> None:
        super().__init__()
        self.enter, flow, self.leave = nn.Linear(64, WIDTH), Flow(), nn.Linear(WIDTH, 10)
        self.flow = ScaledFlow(flow) if per_step else flow
        self.options = {"step_size": 1 / steps}

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `(n, 1, 8, 8)`."""
        state = self.enter(images.flatten(1)).float()
        times = torch.tensor([0.0, 1.0])
        end = odeint(self.flow, state, times, method="euler", options=self.options)[1]
        return self.leave(end).float()


def begin(steps: float, seed: int, per_step: bool = False) -> Training:
    """`steps`: of the solver; each adds its share of the flow's gradient."""
    model = NeuralODE(int(steps), per_step)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-15)
    return classify.training(model, optimizer, 64, seed)


TASK = Task(
    name="ode",
    about="neural ODE on digits, Euler's rule of torchdiffeq, Adam",
    knob="steps of the solver",
    values=(4, 16, 64),
    fast=(4, 32),
    steps=150,
    score="accuracy",
    chance=0.1,
    begin=begin,
    own={"per-step": partial(begin, per_step=True)},
)
