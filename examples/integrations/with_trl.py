"""TRL's `SFTTrainer` in float16: one line gives it a scale for every part of the network.

python examples/integrations/with_trl.py --steps 100
"""

from __future__ import annotations

import argparse

import tokenizers
import torch
from datasets import Dataset
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import gradscale

WORDS = "<pad> <eos> the scale of a loss is power two".split()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer without a download: a number for each word."""
    model = WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    arguments = SFTConfig(
        "trl-out",
        fp16=True,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        max_steps=steps,
        logging_steps=max(1, steps // 10),
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
    )
    trainer = SFTTrainer(
        LlamaForCausalLM(config),
        arguments,
        train_dataset=Dataset.from_dict({"text": ["the scale of a loss is a power of two"] * 256}),
        processing_class=words(),
    )
    attachment = gradscale.attach(trainer, layerwise=True)
    print(attachment)
    trainer.train()
    print(attachment.scaler.layerwise.report())
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
