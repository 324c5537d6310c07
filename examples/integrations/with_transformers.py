"""A Transformers `Trainer` in float16: one line gives it a scale for every part of the network.

python examples/integrations/with_transformers.py --steps 200
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import gradscale


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that count upwards from anywhere."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 32
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    arguments = TrainingArguments(
        "transformers-out",
        fp16=True,
        use_cpu=not torch.cuda.is_available(),
        max_steps=steps,
        logging_steps=max(1, steps // 10),
        learning_rate=1e-3,
        report_to=[],
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=Counting())
    attachment = gradscale.attach(trainer, layerwise=True)
    print(attachment)
    trainer.train()
    print(attachment.scaler.layerwise.report())
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
