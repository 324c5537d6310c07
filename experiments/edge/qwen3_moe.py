"""A small Qwen3-MoE of `transformers`: the weight of its router's loss is a unit like any other."""

from __future__ import annotations

import torch

import language_model as lm
from task import Task, Training

WEIGHT = 0.001  # of the router's loss, as `transformers` has it


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: the router's loss counts 2 to it more than by default."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **lm.SIZES,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=WEIGHT * 2.0**octaves,
    )
    model = Qwen3MoeForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=1e-15)
    return lm.training(model, optimizer, seed)


TASK = Task(
    name="qwen3-moe",
    about="Qwen3-MoE of two layers, two of four experts a character, on source text, Adam",
    knob="octaves by which the router's loss weighs more than by default",
    values=(0, 12, 24),
    fast=(0, 24),
    steps=100,
    score=lm.SCORE,
    chance=lm.CHANCE,
    begin=begin,
    needs=lm.PACKAGE,
)
