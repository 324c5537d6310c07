"""What causal language models of `transformers` have in common: the text of `char_gpt`, their loss.

The models are built from a configuration, with weights of their own initialization and nothing
edited. Attention is ``"eager"``: Gemma caps its scores, which torch's own attention cannot.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from char_gpt import RECIPE, TESTED, text
from gradscale.recipes.chars import CONTEXT, SYMBOLS
from task import Training

BATCH = 8
PACKAGE = "transformers"
SCORE, CHANCE = "minus bits per character", -math.log2(SYMBOLS)
SIZES: dict[str, Any] = {
    "vocab_size": SYMBOLS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "attn_implementation": "eager",
    "use_cache": False,
    # Characters, of which none begins, ends or fills a text.
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Arguments of every configuration."""


def training(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Training:
    """Of a causal language model by the loss that it computes itself, its router's included."""
    train, test = text()

    def loss(step: int) -> Tensor:
        (rows,) = RECIPE.batch(train, seed, step, BATCH)
        read = rows[:, :-1]
        return model(input_ids=read, labels=read).loss.float()

    def score() -> Tensor:
        (rows,) = next(RECIPE.evaluation(test, TESTED))
        logits = model(input_ids=rows[:, :-1]).logits.float()
        return -F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()) / math.log(2)

    return Training(model, optimizer, loss, score)
