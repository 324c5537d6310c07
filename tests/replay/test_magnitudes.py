"""What would overflow and what would be lost at another scale, from rows written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradscale.formats import FloatFormat
from gradscale.histogram import MIN_OCTAVE, count_exponents
from gradscale.recording import Header, Recording, RowInfo, Seen, Step
from gradscale.recording.schema import Octaves
from gradscale.replay.lost_shares import LostShares
from gradscale.replay.peaks import Peaks, shown_amax

HALF = FloatFormat.of("fp16")


def seen(**given: Any) -> Seen:
    count = len(given["id"])
    zeros = (0,) * count
    lists = {name: zeros for name in "flushed nonzero zero nonfinite exponent lo hi".split()}
    fields = {"amax": (None,) * count, "methods": ("counted",) * count, "lost_share": 0.0, **lists}
    return Seen(**{**fields, "method": "counted", **given})


def recording(
    *steps: Step, kinds: tuple[str, ...] = ("module",), format: str = "fp16"
) -> Recording:
    rows = tuple(RowInfo(i, f"row {i}", kind, format, 1, i) for i, kind in enumerate(kinds))
    return Recording(Path("r.jsonl"), Header(format=format), rows, steps)


def limits(*steps: Step, **rest: Any) -> list[float | None]:
    peaks = Peaks(recording(*steps, **rest))
    return [peaks.limit(index) for index in range(len(steps))]


def test_each_row_overflows_at_its_own_place_in_the_plan():
    """A row at 2^4 times the loss scale, whose largest value is a quarter."""
    at = seen(id=(0, 1), amax=(-2.0, -1.0), exponent=(14, 10))
    step = Step(0, 2.0**10, amax=1e-3, seen=at)
    (limit,) = limits(step, kinds=("module", "module"))
    assert limit == HALF.overflow_threshold / 2.0**2
    assert 2.0**14 * 2.0**4 * 0.25 > HALF.overflow_threshold > 2.0**13 * 2.0**4 * 0.25
    assert limit <= 2.0**14


def test_activations_overflow_at_no_loss_scale():
    at = seen(id=(0, 1), amax=(20.0, 0.0))
    (limit,) = limits(Step(0, 1.0, amax=1.0, seen=at), kinds=("activation", "module"))
    assert limit == HALF.overflow_threshold


def test_between_measurements_the_largest_gradient_follows_that_of_the_parameters():
    measured = Step(0, 1.0, amax=0.5, seen=seen(id=(0,), amax=(3.0,)))  # 8 inside, 0.5 outside
    found = limits(measured, Step(1, 1.0, amax=0.25), Step(2, 1.0, amax=2.0))
    assert found == [HALF.overflow_threshold / peak for peak in (8.0, 4.0, 32.0)]


def test_without_amax_and_without_a_watch_nothing_tells():
    assert limits(Step(0, 1.0), Step(1, 1.0, amax=1.0)) == [None, HALF.overflow_threshold]


def test_a_format_that_saturates_overflows_where_half_precision_around_it_does():
    assert limits(Step(0, 1.0, amax=1.0), format="e4m3") == [HALF.overflow_threshold]
    e5m2 = FloatFormat.of("e5m2").overflow_threshold
    assert limits(Step(0, 1.0, amax=1.0), format="e5m2") == [e5m2]


def test_of_an_overflowed_step_a_policy_is_shown_the_maximum_before_it():
    steps = [
        Step(0, 1.0, True, "overflow", amax=0.0),
        Step(1, 1.0, amax=3.0),
        Step(2, 1.0, True, "overflow", amax=0.5),
        Step(3, 1.0),
    ]
    assert shown_amax(steps) == [0.0, 3.0, 3.0, None]


def histogram(values: torch.Tensor) -> Octaves:
    counts = count_exponents(values).tolist()
    filled = [index for index, count in enumerate(counts) if count]
    return Octaves(MIN_OCTAVE + filled[0], tuple(counts[filled[0] : filled[-1] + 1]))


def measured_step(values: torch.Tensor, log2_scale: int, method: str) -> Step:
    """What a watch writes of these gradients, stored in float16 at a scale."""
    stored = (values * 2.0**log2_scale).half().float() / 2.0**log2_scale
    flushed = int(((values != 0) & (stored == 0)).sum())
    shown = values if method == "counted" else stored
    at = seen(
        id=(0,),
        exponent=(log2_scale,),
        flushed=(flushed,),
        nonzero=(len(values),),
        methods=(method,),
        lost_share=flushed / len(values),
    )
    return Step(0, 2.0**log2_scale, seen=at, octaves={0: histogram(shown)})


def truth(values: torch.Tensor, log2_scale: int) -> float:
    return float((((values * 2.0**log2_scale).half() == 0) & (values != 0)).float().mean())


@pytest.mark.parametrize(("method", "tolerance"), [("counted", 1e-3), ("extrapolated", 0.015)])
@pytest.mark.parametrize("moved", [-6, -3, 0, 2, 5])
def test_the_lost_share_at_another_scale_is_near_the_truth(method, tolerance, moved):
    generator = torch.Generator().manual_seed(0)
    values = torch.exp2(-22 + 4 * torch.randn(200_000, generator=generator))
    step = measured_step(values, 4, method)
    share = LostShares(recording(step)).at(step, 2.0 ** (4 + moved))
    assert share == pytest.approx(truth(values, 4 + moved), abs=tolerance)
    assert share > 0


def test_a_scale_that_has_collapsed_to_zero_tells_nothing():
    at = seen(id=(0,), amax=(-2.0,), exponent=(0,))
    collapsed = Step(0, 0.0, amax=0.0, seen=at)
    assert limits(collapsed, Step(1, 1.0, amax=1.0)) == [None, HALF.overflow_threshold]
    assert LostShares(recording(collapsed)).at(collapsed, 1.0) is None


def test_steps_without_histograms_and_skipped_steps_say_nothing_of_another_scale():
    step = measured_step(torch.ones(4), 0, "counted")
    shares = LostShares(recording(step))
    without = Step(0, 1.0, seen=step.seen)
    assert shares.at(without, 1.0) == 0.0 and shares.at(without, 2.0) is None
    assert shares.at(Step(0, 1.0, True, seen=step.seen), 1.0) is None
    assert shares.at(Step(0, 1.0), 1.0) is None
