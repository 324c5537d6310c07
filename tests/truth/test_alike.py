"""Two passes of different precision drop the same elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscale.truth import measure_lost, one_pass, reference
from gradscale.truth.alike import alike

X = torch.ones(6, 4, 5, 5)


def fill(x):
    return torch.empty_like(x).bernoulli_(0.3)


DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.3, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, train=True),
    "channels": lambda x: F.dropout2d(x, 0.3),
    "rand": lambda x: torch.rand(x.shape, dtype=x.dtype),
    "randn_like": torch.randn_like,
    "bernoulli_": fill,
    "bernoulli": lambda x: torch.bernoulli(x * 0.3),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("draw", DRAWS)
def test_what_is_drawn_is_the_float32_draw_rounded(draw, dtype):
    state = torch.get_rng_state()
    with alike():
        single = DRAWS[draw](X)
        torch.set_rng_state(state)
        half = DRAWS[draw](X.to(dtype))
    assert half.dtype == dtype and torch.equal(half, single.to(dtype))
    assert single.unique().numel() > 1


def test_dropout_keeps_its_rate_and_its_mean():
    with alike():
        dropped = F.dropout(torch.ones(100_000), 0.25)
        channels = F.dropout2d(torch.ones(500, 4, 2, 2), 0.5)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert set(channels.flatten(2).std(-1).unique().tolist()) == {0.0}, "whole channels"


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_range_drop_nothing_and_all(p):
    with alike():
        assert F.dropout(X, p).sum().item() == (1 - p) * X.numel()
        assert torch.equal(F.dropout(X, 0.5, training=False), X)


def test_dropout_inside_of_attention_and_recurrences_is_left_out():
    x = torch.randn(3, 5, 8)
    attention = nn.MultiheadAttention(8, 2, dropout=0.9, batch_first=True)
    lstm, gru = nn.LSTM(8, 8, 2, dropout=0.9), nn.GRU(8, 8, 2, dropout=0.9)
    packed = nn.utils.rnn.pack_sequence([x[0], x[1, :3]])
    with alike():
        for run in (
            lambda: attention(x, x, x)[0],
            lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.9),
            lambda: lstm(x)[0],
            lambda: gru(x)[0],
            lambda: lstm(packed)[0].data,
            lambda: gru(packed)[0].data,
        ):
            assert torch.equal(run(), run())


def test_two_precisions_agree_on_a_transformer_with_dropout_and_checkpoints():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True)
    x = torch.randn(8, 6, 16)

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(m, x, use_reentrant=False).float().pow(3).mean()

    true = reference(layer, loss, draw_alike=True)
    half = one_pass(layer, loss, draw_alike=True)
    for name, grad in true.parameters.items():
        cosine = F.cosine_similarity(grad.flatten(), half.parameters[name].flatten(), 0)
        assert cosine > 0.98 or name.endswith("in_proj_bias"), name
    assert measure_lost(layer, loss, format="bf16").lost_share < 1e-3
