"""Advice knows the optimizer: what matters of a lost gradient is what becomes of the weights."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscale.advice import advise
from gradscale.advice.agreement import Agreement, agreements, module_of, reaches
from gradscale.advice.evidence import LIMITS, Collected, Truth
from gradscale.advice.updates import REPEATS, Updates
from gradscale.emulation.computing import computing_in
from gradscale.formats import FloatFormat
from gradscale.recipes import find
from gradscale.truth import Gradients, reference

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "edge"))

from lion import Lion

FP16 = FloatFormat.of("fp16")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 8, generator=g), torch.randint(4, (16,), generator=g))
        for _ in range(count)
    ]


def class_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def two_groups(parameters):
    return torch.optim.AdamW(
        [{"params": parameters[:1], "lr": 1e-2}, {"params": parameters[1:], "lr": 1e-4}]
    )


OPTIMIZERS = {
    **{
        name: (lambda parameters, name=name: getattr(torch.optim, name)(parameters, lr=1e-2))
        for name in (
            "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon",
            "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
        )
    },
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "groups": two_groups,
    "Lion": lambda parameters: Lion(parameters, lr=1e-3),
}  # fmt: skip


def stepped(model: nn.Module, make, gradients: Gradients) -> list[torch.Tensor]:
    """The obvious way: a copy of the model, its gradients set by hand."""
    twin = copy.deepcopy(model)
    optimizer = make(list(twin.parameters()))

    def closure():
        for name, parameter in twin.named_parameters():
            parameter.grad = gradients.parameters[name].clone()
        return torch.tensor(gradients.loss)

    for _ in range(REPEATS):
        closure()
        optimizer.step(closure)
    return [new - old for new, old in zip(twin.parameters(), model.parameters(), strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_that_of_the_optimizer_whichever_it_is_and_leaves_no_trace(name):
    model, make = network(), OPTIMIZERS[name]
    gradients = reference(model, lambda m: class_loss(m, batches()[0]))
    expected = stepped(model, make, gradients)
    before = [p.detach().clone() for p in model.parameters()]
    states = torch.get_rng_state(), random.getstate()
    moved = Updates(model, make).of(gradients)
    for found, wanted in zip(moved.parameters.values(), expected, strict=True):
        assert torch.equal(found, wanted) and found.any()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_is_advised_on(name):
    advice = advise((network(), batches(2), class_loss, OPTIMIZERS[name]), formats="fp16", steps=2)
    assert advice["fp16"].level == "safe", str(advice)
    assert advice["fp16"].chosen.worst > 0.9


def test_an_optimizer_that_calls_its_closure_trains_on_the_weights_as_they_are():
    model, batch = network(), batches(1)[0]
    advice = advise(
        (model, [batch] * 3, class_loss, lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4)),
        formats="bf16",
        steps=3,
    )
    twin = copy.deepcopy(model)
    optimizer = torch.optim.LBFGS(twin.parameters(), lr=0.5, max_iter=4)
    losses = []
    for _ in range(3):

        def closure():
            optimizer.zero_grad()
            loss = class_loss(twin, batch)
            loss.backward()
            return loss

        losses.append(class_loss(twin, batch).item())
        optimizer.step(closure)
    assert list(advice.losses) == pytest.approx(losses, rel=1e-5)


def test_half_the_elements_half_the_length_and_the_wrong_way():
    true = Gradients(parameters={"a.w": torch.ones(8)})

    def left(values: list[float]) -> float:
        held = Gradients(parameters={"a.w": torch.tensor(values)})
        return agreements(true, held)["a"].left

    assert left([1.0] * 8) == 1.0
    assert left([1.0, 0.0] * 4) == left([0.5] * 8) == left([2.0] * 8) == 0.5
    assert left([-1.0] * 8) == -1.0 and left([0.0] * 8) == 0.0
    assert Agreement().left == 1.0, "nothing to move, nothing lost"


def test_what_is_zero_up_to_rounding_has_no_direction_and_what_an_optimizer_makes_of_it_neither():
    zeros = {"a.b": torch.ones(4, dtype=torch.bool), "a.w": torch.tensor([True, False])}
    true = Gradients(
        parameters={"a.w": torch.tensor([1e-9, 1.0]), "a.b": torch.full((4,), 1e-9)}, zeros=zeros
    )
    held = Gradients(parameters={"a.w": torch.tensor([-1.0, 1.0]), "a.b": torch.full((4,), -1.0)})
    assert agreements(true, held)["a"] == Agreement(1.0, 1.0, 1.0)


def test_a_module_is_still_only_if_it_moves_little_by_either_measure():
    weights = {"a.w": torch.ones(4), "b.w": torch.full((4,), 1e-4), "c.w": torch.zeros(4)}
    moves = Gradients(
        parameters={
            "a.w": torch.full((4,), 1e-1),
            "b.w": torch.full((4,), 1e-5),  # little, but a tenth of its weights
            "c.w": torch.full((4,), 1e-5),  # little, and no weights to move against
        }
    )
    assert reaches(moves, weights) == pytest.approx({"a": 1.0, "b": 1.0, "c": 1e-4})


def deep(depth: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 4))


INDIFFERENT = {  # to the size of a gradient
    "Lion": lambda parameters: Lion(parameters, lr=1e-4),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-30),
    "RAdam": lambda parameters: torch.optim.RAdam(parameters, lr=1e-3, eps=1e-30),
}
PROPORTIONAL = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-4),
}


@pytest.mark.parametrize("name", INDIFFERENT)
def test_a_lost_gradient_is_a_frozen_layer_where_a_small_one_is_as_good_as_a_large_one(name):
    advice = advise((deep(), batches(1), class_loss, INDIFFERENT[name]), formats="fp16", steps=1)
    verdict = advice["fp16"]
    assert (verdict.level, verdict.scaling) == ("safe", "a plan")
    assert "0" in verdict.default.frozen and "25" not in verdict.default.frozen
    assert verdict.default.worst == pytest.approx(0.0, abs=1e-3) and verdict.plan.worst > 0.9
    assert f"frozen, though {name} would move it: 0 … " in str(advice)


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_a_lost_gradient_is_nothing_where_its_layer_would_hardly_move(name):
    advice = advise((deep(), batches(1), class_loss, PROPORTIONAL[name]), formats="fp16", steps=1)
    verdict = advice["fp16"]
    assert (verdict.level, verdict.scaling) == ("safe", "default")
    assert verdict.default.lost_share > 0.1, "the same gradients are lost"
    assert "0" in verdict.default.spared and not verdict.default.frozen
    assert f"nothing to {name}, which hardly moves it in float32 either: 0 … " in str(advice)
    assert advice.code == 'scaler = gradscale.GradScaler("cpu")'


def test_an_optimizer_that_warms_up_from_a_standstill_is_judged_by_its_gradients():
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    model = network()
    truth = Truth(reference(model, lambda m: class_loss(m, batches()[0])), Updates(model, make))
    collected = Collected()
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    collected.add(truth, Gradients(parameters=zero), FP16)
    assert set(collected.evidence.frozen) == {"0", "2"}


def test_weight_decay_is_not_taken_for_a_gradient():
    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, eps=1e-30)

    verdict = advise((deep(), batches(1), class_loss, make), formats="fp16", steps=1)["fp16"]
    assert "0" in verdict.default.frozen, "it decays, but does not learn"


def scaled(model, batch):
    return class_loss(model, batch[:2]) * batch[2]


@pytest.mark.parametrize("format", ["fp16", "e4m3"])
def test_a_pass_that_overflows_before_the_scale_has_settled_is_a_skipped_step_and_no_damage(format):
    rows = [(*batch, 2.0 ** (40 * (i == 1))) for i, batch in enumerate(batches(3))]
    verdict = advise((network(), rows, scaled), formats=format, steps=3)[format]
    assert verdict.level == "safe" and not verdict.plan.overflowed
    assert verdict.plan.worst > 0.9


def test_no_way_of_scaling_is_better_than_the_level_says():
    order = [level for level, _ in LIMITS]
    for factor in (1.0, 2.0**-32, 2.0**30):
        rows = [(*batch, factor) for batch in batches(2)]
        for verdict in advise((network(), rows, scaled), steps=2).verdicts:
            best = max(e.worst for e in verdict.evidence.values() if e and not e.overflowed)
            reached = [level for level, least in LIMITS if best >= least]
            assert reached[:1] == [verdict.level] if verdict.level in order else not reached


def test_without_a_scaler_nobody_skips_a_step_that_overflows():
    """With one, a single overflow was called unsafe above a plan that lost nothing."""
    model = network()
    true = reference(model, lambda m: class_loss(m, batches()[0]))
    truth = Truth(true, Updates(model, OPTIMIZERS["SGD"]))
    bad = Gradients(parameters={n: p * torch.inf for n, p in true.parameters.items()})
    for skips in (True, False):
        collected = Collected(skips=skips)
        assert collected.evidence is None
        collected.add(truth, true, FP16)
        collected.add(truth, bad, FP16)
        assert collected.evidence.overflowed is not skips
        assert collected.evidence.worst == float(skips)


def test_the_default_scaler_is_tried_and_advised_only_where_its_start_is_good_enough():
    ordinary = [(*batch, 1.0) for batch in batches(2)]
    divided = [(*batch, 2.0**-40) for batch in batches(2)]

    def make(parameters):
        return torch.optim.Adam(parameters, lr=1e-3, eps=1e-30)

    near, far = (
        advise((network(), rows, scaled, make), formats="fp16", steps=2)["fp16"]
        for rows in (ordinary, divided)
    )
    assert (near.level, near.scaling, near.log2_default) == ("safe", "default", 16)
    assert near.code == 'scaler = gradscale.GradScaler("cpu")'
    assert (far.level, far.scaling, far.log2_default) == ("safe", "one scale", 16)
    assert far.default.worst < 0.1 and set(far.default.frozen) == {"0", "2"}
    assert far.code == f'scaler = gradscale.GradScaler("cpu", init_scale=2.0**{far.log2_scale})'


def test_the_default_scaler_backs_off_as_it_would_in_training():
    rows = [(*batch, 2.0**12) for batch in batches(2)]
    verdict = advise((network(), rows, scaled), formats="fp16", steps=2)["fp16"]
    assert (verdict.level, verdict.scaling) == ("safe", "default")
    assert verdict.log2_default < 16


def test_a_format_that_saturates_keeps_the_scale_that_the_default_starts_at():
    verdict = advise((network(), batches(1), class_loss), formats="e4m3", steps=1)["e4m3"]
    assert verdict.scaling in ("default", "one scale")
    chosen = verdict.log2_default if verdict.scaling == "default" else verdict.log2_scale
    assert verdict.code.endswith(f"policy=gradscale.Static(2.0**{chosen}))")


def test_a_dense_prediction_in_eight_bits_is_left_to_the_default():
    """It was said to need 8 scales, where the start at 2^16 reaches the same."""
    recipe = find("denoise")
    train = recipe.load().train
    torch.manual_seed(0)
    rows = [recipe.batch(train, 0, step, 4) for step in range(2)]
    step = (recipe.model(), rows, recipe.loss, OPTIMIZERS["Adam"])
    verdict = advise(step, formats="e4m3", steps=2)["e4m3"]
    assert (verdict.level, verdict.scaling) == ("safe", "default")
    assert verdict.default.cosine > 0.99 and len(verdict.scales) > 1


def test_what_is_said_to_freeze_stands_still_in_training_and_nothing_else_does():
    """Two tools, one answer: advice, and four steps under the default scaler with Lion."""
    make, rows = INDIFFERENT["Lion"], batches(4)
    verdict = advise((deep(), rows, class_loss, make), formats="fp16", steps=4)["fp16"]
    model, scaler = deep(), torch.amp.GradScaler("cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(list(model.parameters()))
    for batch in rows:
        optimizer.zero_grad()
        with computing_in("fp16", "cpu", "on"):
            scaler.scale(class_loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    moved = {
        module_of(name): float((p - before[name]).count_nonzero()) / p.numel()
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }
    frozen = set(verdict.default.frozen)
    assert frozen and frozen < set(moved)
    assert max(moved[name] for name in frozen) < min(moved[n] for n in moved.keys() - frozen)
    assert moved["0"] == 0.0 and "0" in frozen
