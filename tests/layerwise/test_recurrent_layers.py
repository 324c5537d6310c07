"""`nn.GRU` and `nn.LSTM` whose gradients fade over time: the earliest times have their scales."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscale
from gradscale import GradScaler

TIME = 64


class Recall(nn.Module):
    """Only the first time holds something, so that the input weights learn from it alone."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][-1]).float()


def input_gradient(model: Recall, scaler: torch.amp.GradScaler | None) -> Tensor:
    torch.manual_seed(1)
    x = torch.zeros(TIME, 16, 8)
    x[0] = F.one_hot(torch.randint(8, (16,)), 8)
    wanted = torch.randint(8, (16,))
    model.zero_grad()
    if scaler is None:
        F.cross_entropy(model(x), wanted).backward()
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16), gradscale.emulate():
                scaler.scale(F.cross_entropy(model(x), wanted)).backward()
            scaler.step(optimizer)
            scaler.update()
    return model.layer.weight_ih_l0.grad.double()


@pytest.mark.slow
@pytest.mark.parametrize("kind", (nn.GRU, nn.LSTM))
def test_the_earliest_time_is_kept(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Recall(kind)
    true = input_gradient(model, None)
    planned = input_gradient(model, GradScaler("cpu", layerwise=True))
    one = input_gradient(model, GradScaler("cpu", init_scale=2.0**14))
    assert (planned - true).norm() < 0.02 * true.norm()
    assert (one - true).norm() > 0.5 * true.norm()
