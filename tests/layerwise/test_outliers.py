"""Heavy-tailed losses under layer-wise scaling: what an overflow teaches, and for how long."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradscale.emulation import emulate
from gradscale.layerwise.outliers import FORGETTING, Outliers
from gradscale.layerwise.track import Track
from gradscale.plans.tail import NO_TAIL, Tail
from gradscale.scaler import GradScaler

START = 2.0**15


def network(fading):
    """One scale is enough for float16, or, where gradients fade from layer to layer, several."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(8 if fading else 2)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=(0.1 if fading else 0.25) * (2 / 16) ** 0.5)
    return nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers), nn.Linear(16, 4))


class Run:
    """A float16 training run in which some batches weigh far more than the others."""

    def __init__(self, fading, scaler=None):
        self.model = network(fading)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-5)
        self.scaler = scaler or GradScaler("cpu", init_scale=START, layerwise=True)
        self.skipped = []

    def step(self, number, weight=1.0, bad=False):
        g = torch.Generator().manual_seed(number)
        x, y = torch.randn(8, 16, generator=g), torch.randint(4, (8,), generator=g)
        self.optimizer.zero_grad()
        with emulate(forward=torch.float16, backward=torch.float16):
            with torch.autocast("cpu", torch.float16):
                out = self.model(x * float("nan") if bad else x)
            loss = weight * nn.functional.cross_entropy(out.float(), y)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.last_step.skipped:
            self.skipped.append(number)

    def steps(self, begin, end, heavy=None):
        for number in range(begin, end):
            self.step(number, heavy(number) if heavy else 1.0)
        return self

    @property
    def track(self) -> Track:
        (track,) = self.scaler.layerwise.tracks
        return track

    @property
    def exponents(self):
        # What the last step measured becomes a plan as the next one begins.
        self.scaler.layerwise.begin_step(self.scaler._scale)
        return [self.track.anchor + k for k in self.track.plan.exponents]


def heavy_now_and_then(number):
    """One step in twelve is 2^6 to 2^9 times as heavy; none of them is a step of the calendar."""
    return 2.0 ** (6 + number // 12 % 4) if number > 8 and number % 12 == 7 else 1.0


@pytest.mark.parametrize("fading", [False, True])
def test_heavy_steps_are_lost_once_or_twice_and_not_again_and_again(fading, monkeypatch):
    learned = Run(fading).steps(0, 150, heavy_now_and_then)
    assert 1 <= len(learned.skipped) <= 3 and learned.skipped[-1] < 60
    assert learned.track.outliers.reach >= 5
    monkeypatch.setattr(Tail, "after", lambda self, room: self)
    forgetful = Run(fading).steps(0, 150, heavy_now_and_then)
    # Where small gradients press, the maxima that are remembered say nearly as much.
    assert len(forgetful.skipped) >= (
        len(learned.skipped) + 1 if fading else 3 * len(learned.skipped)
    )


@pytest.mark.parametrize("fading", [False, True])
@pytest.mark.parametrize("measured", [False, True])
def test_one_heavy_step_moves_the_plan_after_the_next_measurement(fading, measured):
    run = Run(fading).steps(0, 16 if measured else 17)
    before, at = run.exponents, 16 if measured else 17
    run.step(at, 2.0**8)
    assert run.skipped == [at] and run.exponents is not None and run.track.lost is not None
    run.step(at + 1)
    after = run.exponents
    assert run.track.lost is None and run.track.outliers.times == 1
    assert run.track.outliers.reach >= 3 and run.track.outliers.step == at
    assert min(after) <= min(before) - 3
    (report,) = run.scaler.layerwise.report()
    assert any("after an overflow gradients are expected" in note for note in report.notes)


@pytest.mark.parametrize("at", [16, 17])
def test_bad_data_teaches_nothing(at):
    run, calm = Run(True).steps(0, at), Run(True).steps(0, at)
    run.step(at, bad=True)
    run.steps(at + 1, at + 4)
    calm.steps(at, at + 4)
    assert run.track.outliers == Outliers() and run.track.lost is None
    assert run.exponents == calm.exponents


@pytest.mark.parametrize("scale", [2.0**24, 2.0**40])
def test_a_scale_that_began_far_too_high_teaches_nothing(scale):
    run = Run(False, GradScaler("cpu", init_scale=scale, layerwise=True)).steps(0, 12)
    assert run.skipped and run.skipped == list(range(len(run.skipped)))
    assert run.track.outliers == Outliers() and run.track.lost is None


def test_an_overflow_before_anything_was_measured_whole_teaches_nothing():
    run = Run(False)
    run.step(0, 2.0**9)
    run.steps(1, 4)
    assert run.skipped == [0] and run.track.history
    assert run.track.outliers == Outliers() and run.track.lost is None


def test_a_loss_that_stays_heavy_is_measured_and_no_outlier():
    run = Run(False).steps(0, 17)
    run.steps(17, 30, lambda number: 2.0**9)
    assert run.skipped and run.track.outliers == Outliers()


@pytest.mark.parametrize("stop", [17, 18, 19, 30])
def test_a_run_resumed_after_an_overflow_goes_on_bit_for_bit(stop):
    def heavy(number):
        return 2.0**8 if number in (17, 25) else 1.0

    whole = Run(True).steps(0, stop, heavy)
    state = copy.deepcopy(whole.scaler.state_dict())
    weights = copy.deepcopy(whole.model.state_dict())
    whole.steps(stop, 40, heavy)

    resumed = Run(True)
    resumed.scaler.load_state_dict(state)
    resumed.model.load_state_dict(weights)
    resumed.steps(stop, 40, heavy)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert whole.scaler.layerwise.state_dict() == resumed.scaler.layerwise.state_dict()
    assert whole.track.outliers == resumed.track.outliers != Outliers()


@given(
    reach=st.integers(0, 63),
    times=st.integers(0, 10**6),
    begin=st.integers(0, 10**4),
    later=st.integers(0, 70 * FORGETTING),
)
def test_an_octave_is_forgotten_every_thousand_steps(reach, times, begin, later):
    fading = reach, times
    for step in range(begin + FORGETTING, begin + later + 1, FORGETTING):
        del step
        fading = max(0, fading[0] - 1), fading[1] // 2
    found = Outliers(reach, times, begin).tail(begin + later)
    assert (found.reach, found.times) == fading
    assert found.steps == min(1000, max(100, begin + later))


def test_what_is_forgotten_is_nothing():
    assert Outliers(3, 2, 50).tail(50 + 3 * FORGETTING)._replace(steps=100) == NO_TAIL
