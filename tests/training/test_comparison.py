"""A comparison: its runs, and the arithmetic of its summary."""

from __future__ import annotations

import pytest

from gradscale.training import Candidate, Comparison, Spread, summaries_of


def comparison(**given) -> Comparison:
    fields = {
        "recipe": "digits",
        "format": "fp16",
        "policies": ("none", "dynamic"),
        "loss_divisors": (1.0, 256.0),
        "seeds": 2,
        "options": {"device": "cpu", "steps": 10},
        **given,
    }
    return Comparison(**fields)


def result(loss: float, **given) -> dict[str, object]:
    return {
        "loss": loss,
        "metric": 0.5,
        "lost_share": None,
        "reasons": {},
        "final_scale": 1.0,
        "ms_per_step": 2.0,
        **given,
    }


def test_every_row_divisor_and_seed_is_run_once_in_a_folder_of_its_own():
    planned = list(comparison().runs())
    assert len(planned) == len({one.folder for one in planned}) == 3 * 2 * 2
    assert {one.settings.seed for one in planned} == {0, 1}
    assert {one.settings.loss_divisor for one in planned} == {1.0, 256.0}


def test_it_survives_json():
    import json

    asked = comparison()
    assert Comparison.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_the_summary_holds_means_deviations_and_sums():
    asked = comparison(policies=("dynamic",), loss_divisors=(1.0,))
    values = iter(
        [
            result(1.0),
            result(2.0),
            result(1.5, reasons={"overflow": 1}, lost_share=0.25, final_scale=4.0),
            result(3.5, reasons={"overflow": 2}, lost_share=0.75, final_scale=8.0, ms_per_step=1.0),
        ]
    )
    results = {planned.folder: next(values) for planned in asked.runs()}
    truth, half = summaries_of(asked, results)
    assert truth.row == Candidate("fp32", "none") and truth.versus == Spread(0.0, 0.0)
    assert half.loss == Spread(2.5, pytest.approx(2**0.5))
    assert half.versus == Spread(1.0, pytest.approx(0.5**0.5))
    assert half.lost_share == Spread(0.5, pytest.approx(0.125**0.5))
    assert half.skipped == {"overflow": 3} and half.steps == 20
    assert half.scales == (4.0, 8.0) and half.ms_per_step == 1.0


def test_a_loss_that_is_not_a_number_is_kept():
    asked = comparison(policies=("none",), loss_divisors=(1.0,), seeds=1)
    values = iter([result(1.0), result("nan")])
    results = {planned.folder: next(values) for planned in asked.runs()}
    half = summaries_of(asked, results)[1]
    assert half.loss.mean != half.loss.mean


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "`--seeds 0` must be at least 1"),
        ({"format": "fp32"}, "`--format fp32` is every comparison's first row already"),
        ({"policies": ("magic",)}, "`--policy magic` must be one of"),
    ],
)
def test_wrong_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        comparison(**given)
