"""What was lost, three ways; how near the estimates come to the truth, on real models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscale import GradScaler
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.truth import Gradients, Output, compared, measure_lost
from gradscale.truth.one_pass import one_pass
from gradscale.truth.wider import wider
from gradscale.watching.rows import Row
from truth.nets import CANCELLING

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
HALF = FloatFormat.of("fp16")


def both_passes(gradient: Tensor, scale: float) -> tuple[Gradients, Gradients]:
    true = Gradients(parameters={"w": gradient})
    return true, Gradients(parameters={"w": (gradient * scale).half()}, scale=scale)


@settings(max_examples=60, deadline=None)
@given(
    octaves=st.lists(st.integers(-60, 10), min_size=1, max_size=40),
    log2_scale=st.integers(-4, 20),
)
def test_of_a_plain_cast_exactly_the_flushed_elements_are_lost(octaves, log2_scale):
    gradient = torch.ldexp(torch.ones(len(octaves)), torch.tensor(octaves))
    scale = 2.0**log2_scale
    kept_finite = gradient * scale < HALF.overflow_threshold
    gradient = torch.where(kept_finite, gradient, 2.0**-60)
    true, stored = both_passes(gradient, scale)
    found = compared(true, stored, HALF)
    assert found["w"].flushed == int((gradient * scale <= HALF.flush_threshold).sum())
    assert found["w"].nonzero == len(octaves)


def test_exact_zeros_are_not_lost():
    true, stored = both_passes(torch.tensor([1.0, 0.0, 0.0, 1e-9]), 1.0)
    found = compared(true, stored, HALF)
    assert (found.flushed, found.nonzero) == (1, 2)


def test_elements_behind_relu_and_dropout_are_not_lost():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    x, y = torch.randn(256, 16), torch.randint(4, (256,))

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return F.cross_entropy(m(x).float(), y)

    with emulate():
        found = measure_lost(model, loss, scale=2.0**12)
    zeros = found["0"].counts.zero
    assert zeros > 0.6 * found["0"].numel, "half dropped, half of the rest negative"
    assert found.flushed == 0


def test_an_activation_that_rounding_moved_across_a_kink_is_not_lost():
    true = Gradients(modules={Output("a"): torch.tensor([1e-3, 5e-4, 1e-9])})
    held = Gradients(modules={Output("a"): torch.tensor([1e-3, 0.0, 0.0]).half()})
    assert compared(true, held, HALF)["a"].flushed == 1


def test_rounding_noise_of_the_reference_is_not_lost():
    """As the queries of the first of causal positions, which have but one key to attend to."""
    true = Gradients(modules={Output("a"): torch.tensor([1e-3, 1e-3 * 2.0**-25, 1e-3 * 2.0**-23])})
    held = Gradients(modules={Output("a"): torch.tensor([1e-3, 0.0, 0.0]).half()})
    assert compared(true, held, HALF)["a"].flushed == 1


def test_eight_bit_products_read_less_than_float16_stores():
    tiny = torch.full((3,), 2.0**-20)
    true = Gradients(modules={Output("a"): tiny, Output("b"): tiny})
    held = Gradients(
        modules={Output("a"): tiny.half(), Output("b"): tiny.half()}, products={Output("a")}
    )
    found = compared(true, held, FloatFormat.of("e5m2"))
    assert found["a"].flushed == 3 and found["a"].format == "e5m2"
    assert found["b"].flushed == 0 and found["b"].format == "fp16"


def test_elements_that_overflowed_are_neither_lost_nor_hidden():
    true = Gradients(parameters={"w": torch.tensor([1.0, 1e6, 1e-9])})
    held = Gradients(parameters={"w": torch.tensor([1.0, torch.inf, 0.0])})
    found = compared(true, held, HALF)
    assert found["w"].flushed == 1 and found.nonfinite == 1


@pytest.mark.parametrize("make", CANCELLING, ids=lambda make: make.__name__)
def test_gradients_that_are_zero_up_to_rounding_are_no_alarm(make):
    net = make()

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return net.loss(m).float() * 1e-2

    with emulate():
        found = measure_lost(net.model, loss, scale=2.0**4)
    for name, share in net.zeros.items():
        row = found[name]
        assert row.negligible == (share == 1), name
        if share < 1:
            assert row.flushed <= (1 - share) * row.numel
    worst = [row for row in found if row.flushed and not row.negligible]
    assert found.rows[: len(worst)] == tuple(worst), "what is negligible comes last"


def test_tiny_tensors_do_not_top_the_table():
    small, large = torch.full((2,), 1e-12), torch.cat([torch.ones(900), torch.full((100,), 1e-12)])
    true = Gradients(parameters={"bias": small, "weight": large})
    held = Gradients(parameters={"bias": small.half(), "weight": large.half()})
    assert [row.name for row in compared(true, held, HALF)] == ["weight", "bias"]


def tasks():
    from layerwise_tasks import TASKS

    return TASKS


def trained(name: str):
    """A task's model after three steps, and the loss of a batch under autocast."""
    task = tasks()[name]
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr)
    for step in range(3):
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step)).backward()
        optimizer.step()
    batch = task.batch(0, 9)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return task.loss(m, batch)

    return model, loss


NEAR = {
    "ResNet": (0.002, 0.08),
    "pre-norm transformer": (0.002, 0.01),
    "dense prediction": (0.002, 0.03),
    "deep, no normalisation": (0.30, 0.05),
}
"""By how much probe and extrapolation may miss the true share; see docs/advice.md."""


@pytest.mark.slow
@pytest.mark.parametrize("log2_scale", [-8, 0, 8])
@pytest.mark.parametrize("name", NEAR)
def test_the_estimates_are_as_near_to_the_truth_as_the_page_says(name, log2_scale):
    model, loss = trained(name)
    with emulate():
        found = {
            method: measure_lost(model, loss, scale=2.0**log2_scale, method=method)
            for method in ("reference", "probe", "extrapolated")
        }
    truth = found["reference"].lost_share
    below, off = NEAR[name]
    assert truth - below <= found["probe"].lost_share <= truth + 1e-4, "a lower bound"
    assert abs(found["extrapolated"].lost_share - truth) <= off
    for method, lost in found.items():
        assert lost.method == method and {row.method for row in lost} == {method}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_nothing_is_lost_at_a_good_scale(name):
    model, loss = trained(name)
    with emulate():
        found = measure_lost(model, loss, scale=2.0**12)
    if name != "deep, no normalisation":
        assert found.lost_share < 1e-4


def test_a_probe_leaves_out_what_overflows_at_its_scale():
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 2.0**-24]])

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(x).float().sum() * 2.0**-2

    with emulate():
        truth = measure_lost(model, loss)
        probed = measure_lost(model, loss, method="probe")
        too_high = measure_lost(model, loss, method="probe", octaves=20)
    assert truth["weight"].flushed == probed["weight"].flushed == 1
    assert too_high["weight"].flushed <= 1


def test_the_extrapolation_sees_a_gradient_that_vanished_whole():
    model, loss = trained("deep, no normalisation")
    with emulate():
        found = measure_lost(model, loss, method="extrapolated")
        true = measure_lost(model, loss)
    assert not one_pass(model, loss).parameters["layers.0.weight"].any()
    for name in ("layers.0.weight", "layers.0", "layers.5"):
        assert found[name].lost_share == true[name].lost_share == 1.0, name


class Compiled(nn.Module):
    """Holds a model as `torch.compile` does."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, Compiled])
def test_a_wrapper_changes_neither_the_extrapolation_nor_the_names_of_modules(wrap):
    model, loss = trained("deep, no normalisation")
    with emulate():
        plain = measure_lost(model, loss, method="extrapolated")
        wrapped = measure_lost(wrap(model), loss, method="extrapolated")
    assert plain.flushed == wrapped.flushed
    names = [{row.name for row in found if row.kind == "module"} for found in (plain, wrapped)]
    assert names[0] == names[1]


def test_the_extrapolation_takes_layers_that_begin_with_zeros_for_what_they_are():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    nn.init.zeros_(model[2].weight)
    x = torch.randn(16, 8)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(x).float().sum() * 2.0**4

    with emulate():
        assert measure_lost(model, loss, method="extrapolated").flushed == 0


def test_it_says_how_it_knows():
    model = nn.Linear(4, 2)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(torch.ones(3, 4)).float().mean() * 2.0**-30

    with emulate():
        words = {m: str(measure_lost(model, loss, method=m)) for m in ("reference", "probe")}
        state = json.loads(json.dumps(measure_lost(model, loss).to_dict()))
    assert "100.000% of" in words["reference"]
    assert "compared with a pass of the same batch at higher precision" in words["reference"]
    assert "a lower bound, from a pass of the same batch at a higher scale" in words["probe"]
    assert state["method"] == "reference"
    assert Row.from_dict(state["rows"][0]).flushed > 0


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"scale": 0.0}, r"measure_lost\(scale=0.0\)` must be above 0"),
        ({"method": "guess"}, r"method='guess'.*one of reference, probe, extrapolated"),
        ({"method": "probe", "octaves": 0}, r"octaves=0` must be at least 1"),
        ({"format": "fp7"}, r"FloatFormat.of\('fp7'\)"),
    ],
)
def test_wrong_arguments_are_refused_in_words(kwargs, words):
    with pytest.raises(ValueError, match=words):
        measure_lost(nn.Linear(1, 1), lambda m: m(torch.ones(1, 1)).sum(), **kwargs)
    with pytest.raises(KeyError, match="no such module or parameter"):
        measure_lost(nn.Linear(1, 1), lambda m: m(torch.ones(1, 1)).sum())["head"]


def test_recurrent_calls_are_counted_one_by_one():
    cell = nn.RNNCell(3, 4)

    def loss(m):
        h = torch.zeros(2, 4)
        for _ in range(5):
            h = m(torch.ones(2, 3), h)
        return h.sum()

    found = one_pass(cell, loss)
    assert [output.call for output in found.modules] == [4, 3, 2, 1, 0], "backward order"


def test_a_wider_pass_is_no_different_from_float32_without_half_precision():
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    plain = one_pass(model, lambda m: m(x)[0].sum())
    wide = one_pass(model, lambda m: m(x)[0].sum(), dtype=torch.float32)
    assert all(torch.equal(g, wide.parameters[n]) for n, g in plain.parameters.items())
    with wider():
        assert torch.ones(2).half().dtype == torch.float32


def test_the_scale_may_be_the_scaler_itself():
    model, x = nn.Linear(2, 1), torch.ones(1, 2)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(x).float().sum() * 2.0**-30

    scaler = GradScaler("cpu", init_scale=2.0**20)
    assert measure_lost(model, loss, scale=scaler).scale == 2.0**20
    assert measure_lost(model, loss, scale=scaler).lost_share == 0.0
