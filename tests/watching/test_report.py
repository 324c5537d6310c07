"""A report: its order, its numbers, and the table that a person reads."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import gradscale
from gradscale.backward.measurements import Counts
from gradscale.plans.window import Window
from gradscale.watching.report import WatchReport
from gradscale.watching.rows import Row


def row(name: str, numel: int, flushed: int, **changed: object) -> Row:
    kept = numel - flushed
    counts = Counts(1.0, 0, 0, -30, (flushed, *[0] * 29, kept))
    fields: dict[str, object] = {
        "kind": "parameter", "format": "fp16", "exponent": 0, "method": "counted",
        "window": Window(5, 11, 13), "negligible": False,
    }  # fmt: skip
    fields |= changed
    return Row(name, counts=counts, flushed=flushed, **fields)  # type: ignore[arg-type]


def names(report: WatchReport) -> list[str]:
    return [row.name for row in report]


def test_lost_elements_weigh_more_than_a_high_share_of_few() -> None:
    rows = (
        row("large, little lost", 10**6, 100),
        row("tiny, all lost", 4, 4),
        row("bias, most lost", 1000, 900),
        row("large, much lost", 10**6, 10**5),
        row("fine", 10**6, 0),
    )
    assert names(WatchReport(rows)) == [
        "large, much lost", "bias, most lost", "tiny, all lost", "large, little lost", "fine",
    ]  # fmt: skip


def test_what_is_not_finite_comes_first_and_what_is_negligible_last() -> None:
    broken = row("broken", 10, 0)
    broken = Row(**{**vars(broken), "counts": Counts(1.0, 0, 1, 0, (9,))})
    rows = (
        row("lost", 100, 50),
        row("negligible", 10**6, 10**6, negligible=True),
        broken,
        row("too large", 10, 0, exponent=17),
    )
    report = WatchReport(rows)
    assert names(report) == ["broken", "too large", "lost", "negligible"]
    assert names(report)[:2] == [each.name for each in report.worst(2)]
    assert "negligible" not in [each.name for each in report.worst(99)]
    assert report.lost_share == 50 / 119


def test_the_lost_share_is_of_gradients_that_may_lose_something() -> None:
    rows = (
        row("a", 100, 10),
        row("b", 900, 0),
        row("in float32", 10**6, 0, format="fp32"),
        row("act (output)", 10**6, 10**5, kind="activation"),
    )
    assert WatchReport(rows).lost_share == 0.01
    assert WatchReport().lost_share == 0.0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("layers.0", ["layers.0", "layers.0.w", "after layers.0", "cast after layers.0",
                      "layers.0 (output)"]),
        ("layers.0.w", ["layers.0.w"]),
        ("cast after layers.0", ["cast after layers.0"]),
        ("layers.*.w", ["layers.0.w", "layers.10.w"]),
        ("layers.1", []),
    ],
)  # fmt: skip
def test_rows_are_found_by_module_and_by_pattern(name: str, found: list[str]) -> None:
    rows = tuple(
        row(each, 1, 0)
        for each in ("layers.0", "layers.0.w", "after layers.0", "cast after layers.0",
                     "layers.0 (output)", "layers.10.w")
    )  # fmt: skip
    assert [each.name for each in WatchReport(rows).of(name=name).in_order] == found


def test_truth_is_put_in_by_name_and_says_where_it_is_from() -> None:
    report = WatchReport((row("a", 10, 0, method="extrapolated"), row("b", 10, 0)))
    told = report.with_truth({"a": 5}, "reference")
    assert [(each.name, each.method, each.flushed) for each in told] == [
        ("a", "reference", 5), ("b", "counted", 0),
    ]  # fmt: skip


def test_it_is_a_sequence_and_goes_into_json() -> None:
    report = WatchReport((row("a", 10, 0), row("b", 10, 5)), steps=(0, 1), scaled=True)
    assert len(report) == 2 and report[0].name == "b" and report[:1] == (report[0],)
    state = json.loads(json.dumps(report.to_dict()))
    assert state["lost_share"] == 0.25 and state["steps"] == [0, 1]
    assert [Row.from_dict(each) for each in state["rows"]] == list(report)


def trained(scaler: bool) -> gradscale.watching.Watch:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    )
    scaling = gradscale.GradScaler("cpu") if scaler else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscale.watch(model, scaling, every=2) as watch:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(32, 8)).square().mean() * 2.0**-20
            if scaling is None:
                loss.backward()
                optimizer.step()
            else:
                scaling.scale(loss).backward()
                scaling.step(optimizer)
                scaling.update()
    return watch


def test_the_table_fits_into_100_columns_and_says_how_each_number_was_found() -> None:
    text = str(trained(scaler=False).report())
    lines = text.split("\n")
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("fp16 loses ") and "(counted)" in lines[0]
    assert lines[1] == "Steps 0 to 4, 4 of them measured."
    assert lines[2] == "No scaler was given, so the loss scale is taken to be 1."
    assert lines[4].split() == [
        "name", "largest", "typical", "zero", "lost", "subn.", "room", "window", "has", "needs",
        "how",
    ]  # fmt: skip
    assert all(line.endswith("counted") for line in lines[5:14])
    assert "scale is taken" not in str(trained(scaler=True).report())


def test_it_says_that_there_is_nothing_yet() -> None:
    watch = gradscale.watch(nn.Linear(2, 1))
    assert str(watch.report()).startswith("Nothing has been measured: no backward pass")
    assert watch.latest is None and len(watch.report()) == 0


def test_any_format_can_be_asked_for_and_any_exponent() -> None:
    watch = trained(scaler=False)
    lost = [watch.report(f).lost_share for f in ("bf16", "fp16", "float8_e5m2", "float8_e4m3fn")]
    assert lost[0] == 0.0 and lost == sorted(lost) and lost[1] > 0.01
    rising = [watch.report("fp16", at=at).lost_share for at in (0, 8, 16, 24)]
    assert rising == sorted(rising, reverse=True) and rising[-1] == 0.0
    custom = watch.report(gradscale.FloatFormat(3, 4), at=0)
    assert custom.format == "e3m4" and custom.lost_share == 1.0
    assert watch.report().format == "fp16"


def test_a_window_is_kept_by_its_own_exponent() -> None:
    watch = trained(scaler=False)
    for each in watch.report("fp16"):
        at = watch.report("fp16", at=each.window.lo).of(each.kind)
        (same,) = [one for one in at if one.name == each.name]
        assert same.lost_share <= 1e-3
        below = watch.report("fp16", at=each.window.lo - 1).of(each.kind)
        (same,) = [one for one in below if one.name == each.name]
        assert same.lost_share > 1e-3


def test_scales_that_changed_in_between_are_each_taken_at_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscale.watch(model, scaler, every=1) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.ones(8, 64)).float().square().mean() * 2.0**-22
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(2.0**4)
    both, last = watch.report(), watch.latest
    assert last is not None
    (row,), (late,) = both.of("cast"), last.of("cast")
    assert row.exponent == late.exponent == 4
    assert row.numel == 2 * late.numel and 0 < row.flushed <= late.flushed * 2
    assert row.flushed < late.flushed * 2  # less is lost at the higher scale
