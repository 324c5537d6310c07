"""A pass at higher precision that leaves no trace."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscale.emulation import emulate
from gradscale.truth import one_pass, reference
from gradscale.truth.wider import wider


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
    )


X, Y = torch.randn(32, 8), torch.randint(3, (32,))


def plain(model):
    return F.cross_entropy(model(X), Y)


def inside_autocast(model):
    with torch.autocast("cpu", torch.float16):
        return F.cross_entropy(model(X).float(), Y)


def inside_emulation(model):
    with torch.autocast("cpu", torch.float16), emulate(backward="e5m2"):
        return F.cross_entropy(model(X).float(), Y)


def with_casts(model):
    hidden = model[:3](X.half()).to(torch.float16)
    return F.cross_entropy(model[3:](hidden).bfloat16(), Y)


def with_checkpoints(model):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = checkpoint(model[:4], X, use_reentrant=False)
        return F.cross_entropy(model[4](hidden).float(), Y)


def with_reentrant_checkpoints(model):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = checkpoint(model[:4], X.clone().requires_grad_(), use_reentrant=True)
        return F.cross_entropy(model[4](hidden).float(), Y)


LOSSES = (
    inside_autocast, inside_emulation, with_casts, with_checkpoints, with_reentrant_checkpoints,
)  # fmt: skip


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_it_is_the_float32_pass_bit_for_bit_whatever_the_loss_enters(loss, copied):
    model = net()
    true = one_pass(model, plain)
    found = reference(model, loss, copy=copied)
    assert same(true.parameters, found.parameters)
    if loss is not with_reentrant_checkpoints:
        assert same(true.modules, found.modules) or loss is with_checkpoints


def test_autocast_and_emulation_around_it_are_off_too():
    model = net()
    random_numbers = torch.get_rng_state()
    true = reference(model, plain)
    with torch.autocast("cpu", torch.bfloat16), emulate():
        model(X)  # autocast has cached half-precision weights by now
        torch.set_rng_state(random_numbers)
        found = reference(model, plain)
        assert torch.is_autocast_enabled("cpu")
        assert model(X).dtype == torch.bfloat16
    assert same(true.parameters, found.parameters)


def test_a_half_precision_model_with_half_precision_inputs_is_computed_in_float32():
    half = net().half()
    full = copy.deepcopy(half).float()
    inputs = X.half()
    found = reference(half, lambda m: F.cross_entropy(m(inputs), Y))
    true = reference(full, lambda m: F.cross_entropy(m(inputs.float()), Y))
    assert same(true.parameters, found.parameters)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert half[1].running_mean.dtype == torch.float16


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "values": copy.deepcopy(model.state_dict()),
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identities": [id(p.grad) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
        "python": random.getstate(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "training": [m.training for m in model.modules()],
    }


def assert_untouched(model: nn.Module, before: dict[str, object]) -> None:
    now = state_of(model)
    for name, value in now["values"].items():
        assert torch.equal(value, before["values"][name]), name
    for new, old in zip(now["grads"], before["grads"], strict=True):
        assert (new is None) == (old is None) and (new is None or torch.equal(new, old))
    assert torch.equal(now["random"], before["random"])
    for key in ("identities", "versions", "hooks", "python", "autocast", "training"):
        assert now[key] == before[key], key


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_buffers_random_numbers_and_settings_are_as_before(with_gradients, dtype):
    model = net().to(dtype)
    inputs = X.to(dtype)
    if with_gradients:
        model(inputs).sum().backward()
    before = state_of(model)
    for precision in ("fp32", "bf16"):
        reference(model, lambda m: m(inputs).sum() * random.random(), precision=precision)
        assert_untouched(model, before)


def test_an_exception_leaves_no_trace_either():
    model = net().half()
    before = state_of(model)

    def fails(m):
        m(X)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        reference(model, fails)
    assert_untouched(model, before)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_graph_that_waits_for_its_backward_pass_stays_valid():
    model = net()
    waiting = plain(model)
    reference(model, inside_autocast)
    waiting.backward()  # would complain of a buffer that was written to


def test_it_draws_what_the_next_pass_will_draw():
    model = net()
    true = reference(model, plain)
    plain(model).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert same(true.parameters, grads)


def test_an_optimizer_in_the_backward_pass_does_not_step():
    model = nn.Linear(4, 1)
    steps: list[int] = []
    model.weight.register_post_accumulate_grad_hook(lambda p: steps.append(1))
    reference(model, lambda m: m(torch.ones(2, 4)).sum())
    assert steps == []
    model(torch.ones(2, 4)).sum().backward()
    assert steps == [1]


def test_a_second_network_in_the_loss_keeps_its_gradients():
    model, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    critic(torch.ones(1, 4)).sum().backward()
    before = critic.weight.grad.clone()
    reference(model, lambda m: critic(m(torch.ones(2, 4))).sum())
    assert torch.equal(critic.weight.grad, before)


def test_it_works_under_no_grad_and_with_compiled_blocks():
    model = net()
    true = reference(model, plain)
    with torch.no_grad():
        assert same(true.parameters, reference(model, plain).parameters)
    fast = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="aot_eager"), nn.Linear(4, 1))
    x = torch.randn(3, 4)

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float().sum()

    loss(fast)
    slow = nn.Sequential(fast[0]._orig_mod, fast[1])
    found, true = reference(fast, loss), one_pass(slow, lambda m: m(x).sum())
    assert [g.tolist() for g in found.parameters.values()] == [
        g.tolist() for g in true.parameters.values()
    ]


def test_bfloat16_has_the_range_of_float32_at_half_the_memory():
    model = nn.Linear(4, 1)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(torch.ones(2, 4)).float().mean() * 1e-20

    assert not one_pass(model, loss).parameters["weight"].any()
    found = reference(model, loss, precision="bf16")
    assert found.parameters["weight"].all()
    assert {g.dtype for g in found.modules.values()} == {torch.bfloat16}


def test_in_place_writes_and_out_arguments_reach_the_callers_own_tensors():
    half = torch.zeros(3, dtype=torch.float16)
    with wider():
        half.add_(1)
        half[0] = 5
        torch.add(torch.ones(3), 1, out=(out := torch.zeros(3)))
    assert half.tolist() == [5, 1, 1] and half.dtype == torch.float16
    assert out.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda m: m(X), r"a torch.float32 tensor of shape \(32, 3\); a loss is one real number"),
        (lambda m: m(X).sum().detach(), "does not depend on any parameter.*no_grad"),
    ],
)
def test_what_is_no_loss_is_refused_in_words(loss, words):
    with pytest.raises(ValueError, match=words):
        reference(net(), loss)
    with pytest.raises(TypeError, match=r"returned float; it must return the loss as a tensor"):
        reference(net(), lambda m: 1.0)
    with pytest.raises(ValueError, match=r"precision='fp8'.*must be 'fp32' or 'bf16'"):
        reference(net(), plain, precision="fp8")


def test_a_model_that_cannot_be_copied_is_named_with_a_way_out():
    model = nn.Linear(2, 2)
    model.cache = model.weight * 2
    with pytest.raises(ValueError, match=r"this Linear cannot be copied.*argument of `forward`"):
        reference(model, lambda m: m(torch.ones(1, 2)).sum(), copy=True)
    assert reference(model, lambda m: m(torch.ones(1, 2)).sum()).parameters
