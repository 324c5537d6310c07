"""A sentence-transformers trainer in float16, with a scale for every part of the network.

python examples/integrations/with_sentence_transformers.py --steps 100
"""

from __future__ import annotations

import argparse

import tokenizers
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import gradscale

WORDS = "<pad> one two three four uno due tre quattro".split()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer without a download: a number for each word."""
    model = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [StaticEmbedding(words(), embedding_dim=32), Dense(32, 16)]
    model = SentenceTransformer(modules=layers, device=device)
    arguments = SentenceTransformerTrainingArguments(
        "sentence-transformers-out",
        fp16=True,
        use_cpu=device == "cpu",
        max_steps=steps,
        logging_steps=max(1, steps // 10),
        learning_rate=1e-1,
        save_strategy="no",
        report_to=[],
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"anchor": WORDS[1:5] * 16, "positive": WORDS[5:] * 16}),
        loss=MultipleNegativesRankingLoss(model),
    )
    attachment = gradscale.attach(trainer, layerwise=True)
    print(attachment)
    trainer.train()
    print(attachment.scaler.layerwise.report())
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
