"""Hugging Face models, which compute their own loss from `labels=`, in half precision."""

from __future__ import annotations

import pytest
import torch

import gradscale
from gradscale.emulation import emulate
from hosts import host

transformers = host("transformers")

WORDS, STEPS = 61, 8
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def ids(rows=8, length=12, words=WORDS):
    return torch.randint(3, words, (rows, length), generator=torch.Generator().manual_seed(0))


def images(rows=8):
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(rows, 3, 32, 32, generator=generator),
        "labels": torch.arange(rows) % 3,
    }


LANGUAGE = {"input_ids": ids(), "labels": ids()}
CLASSES = {"input_ids": ids(), "labels": torch.arange(8) % 3}
NUMBERS = {"input_ids": ids(), "labels": torch.linspace(-2, 2, 8)}
SPANS = {
    "input_ids": ids(),
    "start_positions": torch.arange(8),
    "end_positions": torch.arange(8) + 1,
}

ARCHITECTURES = {
    "GPT2LMHead": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}, LANGUAGE),
    "LlamaForCausalLM": ({"num_key_value_heads": 2, **SMALL}, LANGUAGE),
    "Qwen2ForCausalLM": ({"num_key_value_heads": 2, **SMALL}, LANGUAGE),
    "MixtralForCausalLM": (
        {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True, **SMALL},
        LANGUAGE,
    ),
    "Gemma2ForCausalLM": ({"num_key_value_heads": 2, "head_dim": 8, **SMALL}, LANGUAGE),
    "MambaForCausalLM": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, LANGUAGE),
    "BertForSequenceClassification": ({"num_labels": 3, **SMALL}, CLASSES),
    "RobertaForSequenceClassification": ({"num_labels": 1, **SMALL}, NUMBERS),
    "ElectraForQuestionAnswering": ({"embedding_size": 32, **SMALL}, SPANS),
    "DebertaV2ForMaskedLM": (
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], **SMALL},
        LANGUAGE,
    ),
    "T5ForConditionalGeneration": (
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0, "dropout_rate": 0.0},
        LANGUAGE,
    ),
    "BartForConditionalGeneration": (
        {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        LANGUAGE,
    ),
    "ViTForImageClassification": (
        {"image_size": 32, "patch_size": 8, "num_labels": 3, **SMALL},
        images(),
    ),
    "ConvNextForImageClassification": (
        {"hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "num_labels": 3, "image_size": 32},
        images(),
    ),
}  # fmt: skip


def built(name):
    settings, batch = ARCHITECTURES[name]
    kind = getattr(transformers, name + "Model" if name.endswith("Head") else name)
    config = kind.config_class(**settings, **(TEXT if "input_ids" in batch else {}))
    torch.manual_seed(0)
    model = kind(config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model, batch


def trained(name, how, checkpointed=False):
    model, batch = built(name)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if how == "half":
        gradscale.half_precision(model, optimizer)
    scaler, losses = gradscale.GradScaler("cpu", init_scale=2.0**8), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        if how == "autocast":  # CUDA's, on the CPU
            with emulate(forward="float16"), torch.autocast("cpu", torch.float16):
                loss = model(**batch).loss
        else:
            loss = model(**batch).loss
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, scaler.counters.skipped


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_with_labels_train_as_under_autocast(name):
    losses, skipped = trained(name, "half")
    expected, _ = trained(name, "autocast")
    assert skipped == 0
    assert all(torch.tensor(loss).half().item() != loss for loss in losses), "losses of few digits"
    assert losses == pytest.approx(expected, rel=2e-3)
    assert losses[-1] < losses[0]


def test_gradient_checkpointing_runs_again_in_the_same_dtypes():
    assert trained("LlamaForCausalLM", "half", checkpointed=True) == trained(
        "LlamaForCausalLM", "half"
    )
