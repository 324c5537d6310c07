"""A format without an infinity clips what is too large: that is lost, too, and nothing is safe."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscale.advice import advise
from gradscale.advice.evidence import ASTRAY, Collected, ScalingEvidence, Truth
from gradscale.advice.updates import Updates
from gradscale.advice.verdict import level_of
from gradscale.formats import FloatFormat
from gradscale.percent import percent
from gradscale.truth import Gradients
from gradscale.truth.gradients import Output

E4M3 = FloatFormat.of("e4m3")


def class_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))


def batches():
    torch.manual_seed(1)
    return [(torch.randn(64, 8), torch.randint(4, (64,))) for _ in range(2)]


def of_size(model, sizes):
    """Gradients: the sizes of the two layers' weights, all others zero."""
    grads = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    return Gradients(parameters=grads | {k: grads[k] + size for k, size in sizes.items()})


@pytest.mark.parametrize("lr", [None, 0.1])
def test_a_scale_at_which_the_largest_gradients_are_clipped_is_not_safe(lr):
    """It was: three fifths of Adam's update are left, which takes the size of no gradient."""
    make = None if lr is None else lambda p: torch.optim.SGD(p, lr=lr)
    advice = advise((network(), batches(), class_loss, make), formats="e4m3", steps=2)
    verdict = advice["e4m3"]
    assert verdict.default.worst > 0.5 and verdict.default.cosine < ASTRAY
    assert verdict.default.lost_share == 0.0 and verdict.default.clipped_share > 0.0
    assert (verdict.level, verdict.scaling) == ("safe", "one scale")
    assert verdict.one.cosine > 0.99 and verdict.one.worst > 0.9
    assert verdict.log2_scale < verdict.log2_default == 16
    assert verdict.code.endswith(f"policy=gradscale.Static(2.0**{verdict.log2_scale}))")
    assert f" % lost, {percent(verdict.default.clipped_share)} clipped, cosine 0.8" in str(advice)
    assert advice.to_dict()["verdicts"][0]["evidence"]["default"]["clipped_share"] > 0.0


@pytest.mark.parametrize("cosine", [ASTRAY, 0.89])
@pytest.mark.parametrize("left", [0.5, 0.49, 0.1, 0.09])
def test_a_cosine_lowers_a_verdict_to_risky_and_raises_none(left, cosine):
    level = level_of(ScalingEvidence(0.0, cosine, left, "0", overflowed=False))
    expected = "safe" if left >= 0.5 else "risky" if left >= 0.1 else "unsafe"
    assert level == ("risky" if expected == "safe" and cosine < ASTRAY else expected)


def test_the_cosine_is_that_of_what_the_optimizer_moves():
    def make(parameters):
        still, *rest = parameters
        return torch.optim.SGD([{"params": [still], "lr": 0.0}, {"params": rest}], lr=0.1)

    model = network()
    true, held = ({"0.weight": size, "2.weight": 1.0} for size in (1e3, -1e3))
    collected = Collected()
    truth = Truth(of_size(model, true), Updates(model, make))
    collected.add(truth, of_size(model, held), E4M3)
    assert collected.evidence.cosine == pytest.approx(1.0)
    assert collected.evidence.spared == ("0",), "it is astray, and nobody moves it"


def test_clipped_is_what_products_read_beyond_the_largest_number_of_a_format_without_infinity():
    model = network()
    read, passed = Output("2"), Output("1")
    found = of_size(model, {"2.weight": 1.0})
    found.modules = {read: torch.tensor([448.0, -449.0, 0.0, 1.0]), passed: torch.full((4,), 1e4)}
    found.products = {read}
    truth = Truth(of_size(model, {"2.weight": 1.0}), Updates(model, torch.optim.SGD))
    for format, share in ((E4M3, 1 / 3), (FloatFormat.of("e5m2"), 0.0)):
        collected = Collected()
        collected.add(truth, found, format)
        assert collected.evidence.clipped_share == pytest.approx(share)
