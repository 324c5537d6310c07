"""What stays in float32, and that a plain forward pass fits together around it."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import gradscale
from gradscale import half_precision
from gradscale.half.casting import cast_to
from gradscale.half.hooks import hooked
from gradscale.half.kept import NORMALIZATION, kept_of

NORMS = [
    nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4),
    nn.RMSNorm(4), nn.LocalResponseNorm(2), nn.CrossMapLRN2d(2),
]  # fmt: skip


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_every_normalisation_class_of_torch_is_recognised(norm):
    assert isinstance(norm, NORMALIZATION)
    assert list(kept_of(nn.Sequential(nn.Linear(4, 4), norm)).modules) == ["1"]


def test_no_normalisation_class_of_torch_is_forgotten():
    classes = [c for c in vars(nn).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    named = [c for c in classes if "Norm" in c.__name__ and "Loss" not in c.__name__]
    assert [c for c in named if not issubclass(c, NORMALIZATION)] == []


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x):
        return self.proj(x) * self.gain * self.mask


@pytest.mark.parametrize(
    ("keep", "wide"),
    [
        ("head", ["head.weight"]),
        ("body.*", ["body.proj.weight", "body.gain", "body.mask"]),
        ("body.gain", ["body.gain"]),
        ("*.mask", ["body.mask"]),
        (nn.Linear, ["body.proj.weight", "head.weight"]),
        (lambda name, module: name.endswith("proj"), ["body.proj.weight"]),
        (["head", Body], ["body.proj.weight", "body.gain", "body.mask", "head.weight"]),
        ((), []),
        (None, []),
    ],
    ids="name pattern parameter buffer class predicate several nothing none".split(),
)
def test_what_the_user_names_stays_in_float32(keep, wide):
    model = nn.Module()
    model.body, model.head = Body(), nn.Linear(4, 2, bias=False)
    model.body.proj.bias = None
    half_precision(model, sgd(model), keep=keep)
    state = model.state_dict()
    assert sorted(n for n, v in state.items() if v.dtype == torch.float32) == sorted(wide)


def test_a_name_that_fits_nothing_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"keep='heda'\)` fits no module.*begin with: 0"):
        half_precision(model, sgd(model), keep="heda")
    for keep in (3, [3]):
        with pytest.raises(TypeError, match=r"keep=3\)`.*a module or its class, or a function"):
            half_precision(model, sgd(model), keep=keep)
    for keep, said in ((nn.Embedding, "Embedding"), (nn.Linear(2, 2), r"Linear\(…\)")):
        with pytest.raises(ValueError, match=rf"keep={said}\)` fits no.*of: Linear, Sequential\."):
            half_precision(model, sgd(model), keep=keep)


@pytest.mark.parametrize("several", [False, True])
def test_a_module_stays_in_float32_by_itself(several):
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    half = half_precision(model, sgd(model), keep=[model[0]] if several else model[0])
    assert half.kept == ("0",)
    assert model(torch.ones(1, 2)).dtype == torch.float32


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4),
        nn.Flatten(), nn.Linear(4 * 36, 2),
    )  # fmt: skip


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 20).reshape(5, 4))

    def forward(self, x):
        return x + self.table


torch.manual_seed(0)
MODELS = {
    "cnn": (cnn, torch.randn(2, 3, 8, 8)),
    "transformer": (transformer, torch.randn(2, 5, 8)),
    "lstm": (lambda: nn.LSTM(3, 5, 2), torch.randn(4, 2, 3)),
    "gru cells": (lambda: nn.GRU(3, 5), torch.randn(4, 2, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.arange(3)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(4, 4), Positions(), nn.Linear(4, 2)),
        torch.randn(2, 5, 4),
    ),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), spectral_norm(nn.Linear(4, 2))),
        torch.randn(2, 4),
    ),
}


@pytest.mark.parametrize("format", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_real_models_train_without_autocast_and_return_float32(name, format):
    torch.manual_seed(0)
    build, x = MODELS[name]
    model = build()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    half = half_precision(model, optimizer, format)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8)
    losses = []
    other = torch.optim.SGD(plain.parameters(), lr=0.003)
    for _ in range(4):
        for net, opt in ((model, optimizer), (plain, other)):
            opt.zero_grad()
            out = net(x)
            out = out[0] if isinstance(out, tuple) else out
            assert out.dtype == torch.float32
            loss = out.square().mean()
            losses.append(loss.item())
            if net is model:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
            else:
                loss.backward()
                opt.step()
    tolerance = 0.02 if format == torch.float16 else 0.1
    assert (
        losses[-2] == pytest.approx(losses[-1], abs=tolerance * losses[0])
        and losses[-2] < losses[0]
    )
    assert any(p.dtype == format for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_batch_norm_keeps_its_statistics_in_float32():
    model = cnn()
    half_precision(model, sgd(model))
    model(torch.randn(2, 3, 8, 8) + 3)
    assert {b.dtype for b in model[1].buffers() if b.is_floating_point()} == {torch.float32}
    assert model[1].running_mean.any()
    assert model[0](torch.randn(2, 3, 8, 8)).dtype == torch.float16


def test_a_module_of_buffers_alone_computes_in_float32_and_returns_half():
    model = nn.Sequential(nn.Linear(4, 4), Positions(), nn.Linear(4, 2))
    half_precision(model, sgd(model))
    assert model[1].table.dtype == torch.float32
    assert model[1](torch.ones(1, 5, 4).half()).dtype == torch.float16


def test_logits_of_a_kept_head_are_not_rounded_on_the_way_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    half_precision(model, sgd(model), keep="1")
    x = torch.randn(5, 4)
    logits = model(x)
    assert torch.equal(logits, F.linear(model[0](x).float(), model[1].weight, model[1].bias))
    assert not torch.equal(logits, logits.half().float())


class Tempered(nn.Module):
    """Changes in place what its head returned, all of it or a part."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        logits = self.head(x)
        logits *= 0.5
        logits[:, 0] = -torch.inf
        return logits


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_logits_that_were_changed_in_place_are_returned_as_they_are(mode):
    torch.manual_seed(0)
    model = Tempered()
    x = torch.randn(5, 4)
    expected = model(x).detach()
    half_precision(model, sgd(model), keep="head")
    with mode():
        assert torch.allclose(model(x), expected, rtol=2**-9, atol=2**-9)
        assert torch.equal(model.head(x), F.linear(x, model.head.weight, model.head.bias))


def test_logits_of_a_kept_head_are_not_rounded_in_inference_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    half_precision(model, sgd(model), keep="1")
    x = torch.randn(5, 4)
    expected = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)


def test_masks_states_and_packed_sequences_are_cast_with_the_inputs():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    half_precision(attention, sgd(attention))
    x = torch.randn(2, 5, 8)
    out, _ = attention(x, x, x, attn_mask=torch.zeros(5, 5))
    assert out.dtype == torch.float32
    recurrent = nn.LSTM(3, 5)
    half_precision(recurrent, sgd(recurrent), torch.bfloat16)
    out, (h, _) = recurrent(torch.randn(4, 2, 3), (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    assert out.dtype == h.dtype == torch.float32
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 2, 3), [4, 2])
    assert cast_to(packed, torch.bfloat16).data.dtype == torch.bfloat16
    assert recurrent(packed)[0].data.dtype == torch.float32


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    attentions: tuple[torch.Tensor, ...] = ()
    size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    logits: torch.Tensor
    norm: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "norm", self.logits.norm())


class Structured(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.body = nn.Linear(4, 2)
        self.make = make

    def forward(self, given):
        return self.make(self.body(given.logits))


@pytest.mark.parametrize(
    "make", [lambda x: Output(x, (x, x), 3), Frozen], ids=["dataclass", "frozen, with slots"]
)
def test_dataclasses_are_cast_on_the_way_in_and_out(make):
    model = Structured(make)
    half_precision(model, sgd(model))
    given = Output(torch.randn(3, 4), size=1)
    out = model(given)
    tensors = [out.logits, *(getattr(out, "attentions", None) or [out.norm])]
    assert type(out) is type(make(torch.ones(1))) and getattr(out, "size", 3) == 3
    assert [t.dtype for t in tensors] == [torch.float32] * len(tensors)
    assert given.logits.dtype == torch.float32  # the caller's own is left alone


@pytest.mark.parametrize("format", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_that_is_half_already_trains_as_one_that_was_rounded_before(format):
    def trained(half_before):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Linear(8, 1))
        model.bfloat16()
        model[0].bias.requires_grad_(False)
        if not half_before:
            model.float()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.5)
        if half_before:  # momentum in bfloat16
            model.eval()(torch.ones(2, 4, dtype=torch.bfloat16)).sum().mul(0).backward()
            optimizer.step()
            optimizer.zero_grad()
        half = half_precision(model, optimizer, format)
        assert "3 parameters with float32 masters, 1 without, 4 in float32" in repr(half)
        for _ in range(3):
            model.train()(torch.arange(8.0).view(2, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        dtypes = {v.dtype for s in optimizer.state.values() for v in s.values()}
        assert dtypes == {torch.float32}
        weights = [p.detach().clone() for p in half.parameters()]
        half.restore()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return [*weights, *model.buffers()]

    assert all(map(torch.equal, trained(True), trained(False)))


def test_tied_weights_have_one_master():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    model = Tied()
    optimizer = sgd(model)
    half = half_precision(model, optimizer)
    assert model.head.weight is model.embed.weight
    (master,) = half.parameters()
    (owned,) = optimizer.param_groups[0]["params"]
    assert owned is master
    F.cross_entropy(model(torch.arange(7)), torch.arange(7)).backward()
    optimizer.step()
    assert torch.equal(model.head.weight, master.half())
    assert list(half.float_state_dict()) == ["embed.weight", "head.weight"]


def test_frozen_parameters_are_cast_and_can_be_trained_later():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)  # in the optimizer
    model[1].requires_grad_(False)  # not in it
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    half = half_precision(model, optimizer)
    assert repr(half).startswith("HalfPrecision(float16: 4 parameters with float32 masters, 2 wit")
    before = model[0].weight.clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before) and not model[0].weight.requires_grad
    model[0].requires_grad_(True)
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_frozen_parameters_come_back_unrounded_if_the_optimizer_has_them():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    for frozen in (*model[0].parameters(), *model[1].parameters()):
        nn.init.constant_(frozen, 1 + 2.0**-20).requires_grad_(False)
    optimizer = torch.optim.AdamW([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    half = half_precision(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 2
    assert half.float_state_dict()["0.weight"].unique().tolist() == [1 + 2.0**-20]
    half.restore()
    assert model[0].weight.unique().tolist() == [1 + 2.0**-20]
    assert model[1].weight.unique().tolist() == [1.0]


def test_copies_pickles_and_compiled_models_cast_as_the_model_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    half_precision(model, sgd(model), keep="2")
    x = torch.randn(3, 4)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)


def test_hooks_are_where_they_are_needed_and_nowhere_else():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.LayerNorm(4)))
    half_precision(model, sgd(model))
    assert [hooked(module) for module in model.modules()] == [True, True, False, False, True]


def test_hooks_run_before_the_users_own_and_lie_in_the_order_in_which_they_run():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    seen = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    half_precision(model, sgd(model))
    model(torch.randn(3, 4))
    assert seen == [torch.float32, torch.float16, torch.float32]
    for module in model.modules():
        hooks = module._forward_pre_hooks
        assert [*dict.__iter__(hooks)] == [*hooks], "dynamo goes by the dict inside an OrderedDict"

    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(3, 4)), model(torch.ones(3, 4)))


@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_float_model_is_made_of_weights_that_a_module_computes_anew(old):
    torch.manual_seed(0)
    model = nn.Sequential(old(nn.Linear(4, 4)), nn.Linear(4, 2))
    optimizer = sgd(model)
    half = half_precision(model, optimizer)
    x = torch.randn(3, 4)
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model(x).sum().backward()  # leaves a weight that autograd made
    plain = half.float_model().eval()
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert torch.allclose(plain(x), model.eval()(x), atol=2**-8)
    plain.train()(x).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
