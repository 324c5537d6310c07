"""Transformers' `Trainer`, TRL and sentence-transformers: real runs on the CPU in fp16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale
from fading import Fading, fading_batch
from hosts import host

transformers = host("transformers")


class Classifier(Fading):
    def forward(self, x, labels):
        logits = super().forward(x)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def rows(count=64, bad=None):
    x, labels = fading_batch(0, count)
    if bad is not None:
        x[bad] = torch.inf
    return [{"x": one, "labels": label} for one, label in zip(x, labels, strict=True)]


def trainer(folder, steps=8, bad=None, **settings):
    arguments = transformers.TrainingArguments(
        str(folder),
        fp16=True,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=100,
        save_steps=4,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    return transformers.Trainer(Classifier(), arguments, train_dataset=rows(bad=bad))


def logged(run, name):
    return [line[name] for line in run.state.log_history if name in line]


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_the_norm_that_is_logged_and_clipped_is_the_true_one(tmp_path, layerwise):
    plain = trainer(tmp_path / "a", 1)
    plain.args.fp16 = False
    plain.train()  # without a scaler: Accelerate leaves fp16 out on a CPU
    (true,) = logged(plain, "grad_norm")
    run = trainer(tmp_path / "b", 1)
    gradscale.attach(run, layerwise=layerwise)
    run.train()
    (norm,) = logged(run, "grad_norm")
    assert float(norm) == pytest.approx(float(true), rel=1e-2)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_bad_batch_is_skipped_counted_and_heard_by_the_schedule(tmp_path, optim, layerwise):
    run = trainer(tmp_path, 8, bad=11, optim=optim)
    attachment = gradscale.attach(run, layerwise=layerwise)
    run.train()
    assert attachment.scaler.counters.skipped == 1
    assert run.lr_scheduler.last_epoch == 7
    assert logged(run, "skipped_steps")[-1] == 1
    assert len(logged(run, "loss_scale")) == 8
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


@pytest.mark.parametrize("layerwise", [False, True], ids=["global", "layerwise"])
def test_a_checkpoint_resumes_bit_for_bit(tmp_path, layerwise):
    settings = {"layerwise": layerwise, "growth_interval": 3}
    whole = trainer(tmp_path)
    attachment = gradscale.attach(whole, **settings)
    whole.train()
    assert (tmp_path / "checkpoint-4" / "scaler.pt").exists()
    again = trainer(tmp_path)
    resumed = gradscale.attach(again, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(again), weights(whole))
    assert resumed.scaler.get_scale() == attachment.scaler.get_scale()
    assert resumed.scaler.counters == attachment.scaler.counters


def test_a_new_accelerator_gets_a_scaler_of_its_own(tmp_path):
    run = trainer(tmp_path)
    attachment = gradscale.attach(run, init_scale=2.0**10)
    first = attachment.scaler
    run.create_accelerator_and_postprocess()  # as a hyperparameter search does before each trial
    assert run.accelerator.scaler is attachment.scaler is not first
    assert attachment.scaler.get_scale() == 2.0**10
    attachment.detach()
    assert run.accelerator.scaler is None


def test_what_is_trained_in_float32_is_refused(tmp_path):
    run = trainer(tmp_path)
    run.args.fp16 = False
    with pytest.raises(ValueError, match=r"TrainingArguments\(fp16=True\)"):
        gradscale.attach(run)


def tokenizer():
    import tokenizers

    words = {word: number for number, word in enumerate("<pad> <eos> a b c d e f g h".split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>"
    )


def test_trl_trains_a_language_model(tmp_path):
    trl, datasets = host("trl"), host("datasets")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=10,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    arguments = trl.SFTConfig(
        str(tmp_path),
        fp16=True,
        bf16=False,
        use_cpu=True,
        max_steps=30,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    run = trl.SFTTrainer(
        transformers.LlamaForCausalLM(config),
        arguments,
        train_dataset=datasets.Dataset.from_dict({"text": ["a b c d e f g h"] * 64}),
        processing_class=tokenizer(),
    )
    attachment = gradscale.attach(run, layerwise=True)
    run.train()
    losses = list(map(float, logged(run, "loss")))
    assert losses[-1] < 0.5 < losses[0]
    assert attachment.scaler.counters.steps == 30
    assert "Trainer" in repr(attachment)


def test_sentence_transformers_trains_an_embedding(tmp_path):
    sentence_transformers, datasets = host("sentence_transformers"), host("datasets")
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding

    torch.manual_seed(0)
    model = sentence_transformers.SentenceTransformer(
        modules=[StaticEmbedding(tokenizer(), embedding_dim=16), Dense(16, 8)], device="cpu"
    )
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        str(tmp_path),
        fp16=True,
        use_cpu=True,
        max_steps=20,
        logging_steps=1,
        learning_rate=1e-1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    pairs = {"anchor": ["a b", "c d", "e f", "g h"] * 8, "positive": ["a", "c", "e", "g"] * 8}
    run = sentence_transformers.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(model),
    )
    attachment = gradscale.attach(run)
    run.train()
    losses = list(map(float, logged(run, "loss")))
    assert losses[-1] < losses[0]
    assert attachment.scaler.counters.steps == 20
