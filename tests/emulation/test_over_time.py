"""Recurrent layers step by step: what the composite of all times computes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscale.emulation import emulate, over_time
from gradscale.emulation.recurrent import unfused


class Wisher:
    """Somebody who wants every time to be a place of its own."""


CASES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "two layers, both ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "batch first": (nn.LSTM, {"batch_first": True}),
    "no bias": (nn.GRU, {"bias": False}),
    "projected": (nn.LSTM, {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
}


def outcome(case: str, *, training: bool = True) -> tuple[Tensor, ...]:
    """Output, last states and all gradients of a layer in emulated float16."""
    kind, options = CASES[case]
    torch.manual_seed(0)
    layer = kind(4, 5, **options).train(training)
    x = torch.randn(6, 6, 4, requires_grad=True)
    with emulate():
        output, ends = layer(x)
        states = (ends,) if isinstance(ends, Tensor) else ends
        sum(
            (each * torch.arange(1.0, each.numel() + 1).view_as(each)).sum() / 64
            for each in (output, *states)
        ).backward()
    found = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    return output.detach(), *(state.detach() for state in states), *found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", (True, False))
def test_every_layer_computes_what_it_computes_for_all_times_at_once(
    case: str, training: bool
) -> None:
    together = outcome(case, training=training)
    wisher = Wisher()
    over_time.split_over_time(wisher)
    apart = outcome(case, training=training)
    assert len(apart) == len(together)
    for one, other in zip(apart, together, strict=True):
        # Both round each product to float16; sums over time are formed in another order.
        torch.testing.assert_close(one, other, rtol=4e-3, atol=4e-3 * float(other.abs().max()))


def test_dropout_between_layers_draws_what_torch_draws() -> None:
    over_time.split_over_time(wisher := Wisher())
    layer = nn.LSTM(4, 5, num_layers=3, dropout=0.5)
    x = torch.randn(6, 6, 4)
    with unfused(oneDNN=True, cuDNN=False):
        torch.manual_seed(1)
        expected = layer(x)[0]
    torch.manual_seed(1)
    with emulate():
        found = layer(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    del wisher


def nodes_of(wisher: object | None) -> int:
    if wisher is not None:
        over_time.split_over_time(wisher)
    layer, seen, todo = nn.GRU(4, 5), set(), []
    with emulate():
        todo.append(layer(torch.randn(6, 2, 4))[0].sum().grad_fn)
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return sum("mm" in node.name().lower() for node in seen)


def test_each_time_has_a_projection_of_its_own_while_somebody_wants_it() -> None:
    assert nodes_of(None) == 7  # six times, and one projection of all inputs
    wisher = Wisher()
    assert nodes_of(wisher) == 12
    del wisher
    assert nodes_of(None) == 7
