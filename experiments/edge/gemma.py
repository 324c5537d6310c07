"""A small Gemma 2 of `transformers`, whose sublayers write larger and larger activations.

It normalizes what attention and perceptron have written before it adds that to the residual stream:
in float32 their last weights may be of any size. But what lies between grows with them, and its
gradients shrink: a loss scale can mend the second, and nothing but a format with more exponents the
first.
"""

from __future__ import annotations

import torch

import language_model as lm
from task import Task, Training


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: by which each sublayer writes more, half by each of its last two matrices."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(Gemma2Config(**lm.SIZES, intermediate_size=64, sliding_window=32))
    with torch.no_grad():
        for layer in model.model.layers:
            attention, perceptron = layer.self_attn, layer.mlp
            last = attention.v_proj, attention.o_proj, perceptron.up_proj, perceptron.down_proj
            for matrix in last:
                matrix.weight *= 2.0 ** (octaves / 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-8 * 2.0**-octaves)
    return lm.training(model, optimizer, seed)


TASK = Task(
    name="gemma",
    about="Gemma 2 of two layers on source text, Adam with a small eps",
    knob="octaves by which sublayers write more",
    values=(0, 12, 16, 20),
    fast=(0, 20),
    steps=120,
    score=lm.SCORE,
    chance=lm.CHANCE,
    begin=begin,
    needs=lm.PACKAGE,
)
