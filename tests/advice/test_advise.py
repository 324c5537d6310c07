"""Advice on real models: what it says, that it is right, and that it leaves everything alone."""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscale
from gradscale.advice import Advice, ModelStep, advise
from gradscale.files.json_text import json_value
from gradscale.watching.rows import Row

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))


def class_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def classes(*shape: int, count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, *shape), torch.randint(4, (16,))) for _ in range(count)]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4))


def deep(depth: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 4))


def tiny_eps(parameters):
    """Adam for which a small gradient is as good as a large one."""
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-30)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, 2, batch_first=True, dropout=0.1), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Overflowing(nn.Module):
    """Activations that float32 holds and float16 does not."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        with torch.no_grad():
            self.up.weight.mul_(1e6)

    def forward(self, x):
        return self.head(self.norm(self.up(x)))


@pytest.fixture(scope="module")
def deep_advice() -> Advice:
    return advise((deep(), classes(8), class_loss, tiny_eps), steps=3)


def test_a_normalised_network_needs_one_scale_in_float16_and_none_in_bfloat16():
    advice = advise((perceptron(), classes(8), class_loss), steps=3)
    assert (advice["fp16"].level, advice["fp16"].scaling) == ("safe", "default")
    assert (advice["bf16"].level, advice["bf16"].scaling) == ("safe", "none")
    assert advice["fp16"].one.lost_share < 1e-3 and advice["fp16"].one.worst > 0.99
    assert advice.best.format == "fp16"


def test_the_advised_scale_trains_without_a_skipped_step():
    model, batches = perceptron(), classes(8)
    advice = advise((model, batches, class_loss), formats=["fp16"], steps=2)
    names: dict[str, object] = {"gradscale": gradscale}
    exec(advice.code, names)
    scaler, optimizer = names["scaler"], torch.optim.SGD(model.parameters(), lr=1e-3)
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16), gradscale.emulation.emulate():
            scaler.scale(class_loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.counters.skipped == 0
    assert scaler.get_scale() == 2.0 ** advice["fp16"].log2_default


def test_a_deep_network_without_normalisation_needs_a_plan(deep_advice):
    verdict = deep_advice["fp16"]
    assert (verdict.level, verdict.scaling) == ("safe", "a plan")
    assert verdict.one.lost_share > 0.1 and verdict.plan.lost_share < 0.01
    assert verdict.one.worst < 0.1 and verdict.plan.worst > 0.9
    assert "1.0" in verdict.one.frozen and not verdict.plan.frozen
    assert len(verdict.scales) > 1
    assert deep_advice.code == 'scaler = gradscale.GradScaler("cpu", layerwise=True)'
    far = max(verdict.groups, key=lambda group: group.exponent)
    near = min(verdict.groups, key=lambda group: group.exponent)
    assert "1.0" in far.modules and "25" in near.modules, "the far layers need the higher scale"


def test_it_says_so_in_plain_words_with_the_numbers(deep_advice):
    text = str(deep_advice)
    first = "Sequential on cpu, 3 steps of Adam: float16 is safe. Write:\n  scaler = "
    assert text.startswith(first)
    assert "fp16: safe, one scale is not enough; " in text
    for words in (
        "without scaling: ", "at the default scale, 2^", "at the best single scale, 2^",
        "with a plan of ", " % lost, cosine ", " % left of the update of ",
        "frozen, though Adam would move it: 0 … ",
    ):  # fmt: skip
        assert words in text
    assert "bf16: safe, needs no loss scaling" in text
    assert "Emulated on cpu: fp16, bf16, e5m2, e4m3." in text
    assert "No optimizer was given" not in text


def test_it_says_for_which_optimizer_it_speaks_if_none_was_given():
    text = str(advise((perceptron(), classes(8), class_loss), formats="bf16", steps=1))
    assert "No optimizer was given, so this is about Adam at 1e-3" in text


def test_the_rows_say_which_layers_lose_and_what_they_need(deep_advice):
    rows = deep_advice.rows
    assert [row.flushed for row in rows if not row.negligible] == sorted(
        (row.flushed for row in rows if not row.negligible), reverse=True
    )
    assert {row.method for row in rows} == {"reference"}
    first = next(row for row in rows if row.name == "1.0")
    assert first.lost_share > 0.5 and first.needs > first.exponent


def test_all_of_it_can_be_written_as_json(deep_advice):
    state = json.loads(json.dumps(json_value(deep_advice.to_dict()), allow_nan=False))
    assert state["best"] == "fp16" and state["code"] == deep_advice.code
    assert [v["format"] for v in state["verdicts"]] == ["fp16", "bf16", "e5m2", "e4m3"]
    assert (
        state["verdicts"][0]["evidence"]["plan"]["lost_share"]
        == deep_advice["fp16"].plan.lost_share
    )
    assert Row.from_dict(state["verdicts"][0]["rows"][0]) == deep_advice.rows[0]


def test_the_same_seed_gives_the_same_advice_and_another_one_need_not():
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.GELU(), nn.Linear(64, 4))
    batches = classes(8)
    one, two, three = (
        advise((model, batches, class_loss), formats=["fp16", "e5m2"], steps=3, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == two
    assert one.losses != three.losses


def test_the_model_its_gradients_and_the_random_numbers_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    batches = classes(8)
    class_loss(model, batches[0]).backward()
    before = copy.deepcopy(model.state_dict())
    grads = [(p.grad, p.grad.clone()) for p in model.parameters()]
    states = torch.get_rng_state(), random.getstate()
    advise((model, batches, class_loss), formats=["fp16"], steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, (grad, values) in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad and torch.equal(grad, values)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_activations_that_only_float32_holds_make_float16_unsafe_and_are_named():
    advice = advise((Overflowing(), classes(8), class_loss), formats=["fp16", "bf16"], steps=2)
    verdict = advice["fp16"]
    assert verdict.level == "unsafe" and verdict.code == ""
    assert verdict.hunt.forward.module == "up" and verdict.activation.module == "up"
    assert verdict.headroom < 0
    assert "fp16: unsafe: the forward pass is not finite" in str(advice)
    assert "forward, first in up (Linear)" in str(advice)
    assert advice.best.format == "bf16"
    assert advice.code == 'with torch.autocast("cpu", torch.bfloat16):  # no scaler'


def test_a_loss_that_is_nan_from_the_start_is_nobodys_precision():
    def loss(model, batch):
        return (class_loss(model, batch) * 0).log() * 0

    advice = advise((perceptron(), classes(8), loss), steps=2)
    assert advice.verdicts == () and advice.code == "" and advice.best is None
    assert "not finite in float32 already, so no precision is to blame" in str(advice)
    bad = perceptron()
    with torch.no_grad():
        bad[1].weight[3] = torch.nan
    advice = advise((bad, classes(8), class_loss), steps=2)
    assert advice.hunt.parameters == ("1.weight",)
    json.dumps(json_value(advice.to_dict()), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Sequence, (6, 8)),
        (
            lambda: nn.Sequential(
                nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
            ),
            (2, 8, 8),
        ),
        (
            lambda: nn.Sequential(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
                nn.Flatten(),
                nn.Linear(48, 4),
            ),
            (6, 8),
        ),
    ],
    ids=["lstm", "convolutions", "transformer"],
)
def test_every_kind_of_network_gets_a_verdict_for_every_format(model, shape):
    torch.manual_seed(0)
    network, batches = model(), classes(*shape)
    network(batches[0][0])  # lazy layers take shape
    advice = advise((network, batches, class_loss), steps=2)
    assert [verdict.format for verdict in advice.verdicts] == ["fp16", "bf16", "e5m2", "e4m3"]
    assert all(verdict.note == "" for verdict in advice.verdicts)
    assert advice["fp16"].level == advice["bf16"].level == "safe"
    negligible = {row.name for row in advice.rows if row.negligible}
    assert (
        ("0.bias" in negligible) == isinstance(network[0], nn.Conv2d)
        if (isinstance(network, nn.Sequential))
        else negligible == set()
    )


@pytest.mark.slow
def test_the_far_end_of_a_recurrence_in_eight_bits_needs_a_plan():
    from layerwise_tasks import TASKS

    task = TASKS["recurrence"]
    torch.manual_seed(0)
    batches = [task.batch(0, step) for step in range(1)]
    advice = advise((task.model(), batches, task.loss), formats=["e4m3"], steps=1)
    verdict = advice["e4m3"]
    assert verdict.scaling == "a plan" and verdict.plan.lost_share < verdict.one.lost_share / 2
    assert verdict.code == (
        'scaler = gradscale.GradScaler("cpu", layerwise=gradscale.Windows(product_format="e4m3"))'
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_is_in_half_precision_already_is_copied_to_float32(dtype):
    model = perceptron().to(dtype)
    batches = [(x.to(dtype), y) for x, y in classes(8)]
    advice = advise((model, batches, class_loss), formats=["fp16"], steps=2)
    assert advice["fp16"].level == "safe" and advice["fp16"].note == ""
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert f"The parameters are {dtype}." in str(advice)


def test_batches_that_end_early_are_enough_and_named():
    batches = iter(classes(8, count=3))
    advice = advise((perceptron(), batches, class_loss), formats=["bf16"], steps=10)
    assert len(advice.losses) == 3
    assert "The batches ended after 3 of 10 steps." in advice.notes


def test_batches_are_brought_to_the_models_device():
    class Batch(dict):
        def to(self, device):
            return Batch({name: value.to(device) for name, value in self.items()})

    moved = []

    def loss(model, batch):
        moved.append(type(batch).__name__)
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batches = [Batch(x=x, y=y) for x, y in classes(8)]
    advise((perceptron(), batches, loss), formats=["bf16"], steps=1, device="cpu")
    assert set(moved) == {"Batch"}


def test_the_users_optimizer_trains_the_copy():
    made = []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.5))
        return made[-1]

    model = perceptron()
    batches = classes(8, count=1) * 4
    advice = advise((model, batches, class_loss, optimizer), formats=["bf16"], steps=4)
    assert all(group["lr"] == 0.5 for each in made for group in each.param_groups)
    assert not {id(p) for p in model.parameters()} & {
        id(p) for each in made for group in each.param_groups for p in group["params"]
    }
    assert advice.optimizer == "SGD"
    assert list(advice.losses) == sorted(advice.losses, reverse=True)
    assert advice.losses[3] < advice.losses[0] - 0.1


def test_an_operation_that_a_format_lacks_is_said_and_the_others_go_on():
    class Picky(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            if out.dtype == torch.float16:
                raise RuntimeError("no kernel for Half")
            return out

    advice = advise((Picky(8, 4), classes(8), class_loss), formats=["fp16", "bf16"], steps=1)
    assert advice["fp16"].level == "unknown" and advice["fp16"].note == "no kernel for Half"
    assert "fp16: could not run: no kernel for Half" in str(advice)
    assert advice.best.format == "bf16"


def test_progress_is_told_step_by_step():
    told = []
    advise(
        (perceptron(), classes(8), class_loss),
        formats=["fp16", "bf16"],
        steps=4,
        progress=lambda *now: told.append(now),
    )
    done, total, what = zip(*told, strict=True)
    assert done == tuple(range(len(told))) and set(total) == {4 + 3 * 2} == {len(told)}
    assert set(what) == {"float32", "fp16", "bf16"}


def test_a_function_a_triple_and_a_model_step_are_the_same():
    model, batches = perceptron(), classes(8)
    triple = (model, batches, class_loss)
    ways = (triple, lambda: triple, ModelStep(model, batches, class_loss))
    texts = {str(advise(way, formats=["bf16"], steps=1)) for way in ways}
    assert len(texts) == 1


def test_compiled_blocks_are_advised_on_as_if_they_were_not():
    model = perceptron()
    slow = advise((model, classes(8), class_loss), formats=["fp16"], steps=1)
    model[0] = torch.compile(model[0], backend="aot_eager")
    fast = advise((model, classes(8), class_loss), formats=["fp16"], steps=1)
    assert slow.losses == fast.losses and slow["fp16"].one.lost_share == fast["fp16"].one.lost_share


class Frozen(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 4)
        self.requires_grad_(False)


def other_adam() -> torch.optim.Optimizer:
    return torch.optim.Adam(perceptron().parameters())


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (3, TypeError, r"`advise\(model_step\)` got int 3; it needs `\(model, batches, loss\)`"),
        ((1, 2), TypeError, r"got a tuple of 2; it needs"),
        ((1, [], class_loss), TypeError, "the first part is int 1; it must be the model"),
        (torch.nn.Linear(2, 1), TypeError, r"got the module Linear alone; it needs `\(model, b"),
        ((perceptron(), torch.ones(2), class_loss), TypeError, "an iterable of batches.*a list"),
        ((perceptron(), [1], None), TypeError, "the third part is None; it must be the loss"),
        ((perceptron(), [1], class_loss, 0.1), TypeError, "the fourth part.*returns an optimizer"),
        (
            (perceptron(), classes(8), class_loss, lambda parameters: None),
            TypeError,
            r"the fourth part returned None, no optimizer\.",
        ),
        (
            (perceptron(), classes(8), class_loss, lambda _: other_adam()),
            TypeError,
            r"the fourth part returned Adam of parameters that it was not given\..*its argument",
        ),
        ((perceptron(), [], class_loss), ValueError, "the batches are empty.*drop_last"),
        ((nn.ReLU(), [1], class_loss), ValueError, "ReLU has no parameter.*nothing to lose"),
        ((Frozen(), [1], class_loss), ValueError, "Frozen has no parameter.*Unfreeze it"),
        (
            (perceptron(), classes(8), lambda m, b: m(b[0])),
            ValueError,
            r"`loss\(model, batch\)` returned a torch.float32 tensor of shape \(16, 4\)",
        ),
        (
            (perceptron(), classes(8), lambda m, b: 1.0),
            TypeError,
            r"`loss\(model, batch\)` returned float",
        ),
    ],
)
def test_what_cannot_be_advised_on_is_refused_in_words(given, kind, words):
    with pytest.raises(kind, match=words):
        advise(given, formats=["fp16"], steps=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ["fp8"]}, r"formats=\['fp8'\]\)` must name one or more of fp16, bf16"),
        ({"formats": []}, r"must name one or more"),
        ({"formats": "fp61"}, r"formats='fp61'\)` must name one or more of fp16, bf16"),
        ({"formats": torch.float32}, r"formats=torch.float32\)` must name one or more"),
        ({"steps": 0}, r"`advise\(steps=0\)` must be a whole number of at least 1"),
        ({"emulate": "yes"}, r"emulate='yes'\)` must be 'auto', 'on' or 'off'"),
    ],
)
def test_options_out_of_range_are_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        advise((perceptron(), classes(8), class_loss), **options)
    with pytest.raises(KeyError, match="asked about no format"):
        Advice("Net", "cpu", "Adam", (), ())["fp16"]


@pytest.mark.parametrize("formats", ["bf16", "bfloat16", torch.bfloat16, [torch.bfloat16]])
def test_one_format_need_not_be_a_list_and_goes_by_any_of_its_names(formats):
    advice = advise((perceptron(), classes(8), class_loss), formats=formats, steps=1)
    assert [verdict.format for verdict in advice.verdicts] == ["bf16"]
