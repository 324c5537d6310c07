"""Figures for papers: what is in them, and what they say when there is nothing to draw."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gradscale.formats import FloatFormat
from gradscale.recording import read
from gradscale.report import draw_figure, save_figures
from gradscale.report.figures.heat import _ticks
from gradscale.report.figures.histogram import histogram_figure
from gradscale.report.figures.plan import exponent_by_row
from gradscale.report.figures.style import name_ticks, new_figure, shortened
from gradscale.report.run import Run
from report_recordings import MadeUp, from_tensors


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MadeUp(steps=200).write(tmp_path_factory.mktemp("run") / "mine" / "recording.jsonl")


def test_all_figures_are_saved_in_both_formats(recording, tmp_path):
    saved = save_figures(recording, tmp_path / "figures")
    names = ["heat", "histograms", "plan", "scale"]
    assert [path.name for path in saved] == [f"{n}.{f}" for n in names for f in ("png", "svg")]
    for path in saved:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 1350  # 6.75 inches at 200 dots
        else:
            assert "<svg" in path.read_text()[:1000]


def test_equal_recordings_give_equal_figures(recording, tmp_path):
    one, two = (save_figures(recording, tmp_path / name, ["svg"]) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_several_runs_get_a_folder_each_and_one_figure_together(recording, tmp_path):
    other = MadeUp(steps=60, seed=2).write(tmp_path / "other" / "recording.jsonl")
    saved = save_figures([recording, other], tmp_path / "figures", ["png"])
    places = {str(path.relative_to(tmp_path / "figures")) for path in saved}
    assert {"mine/heat.png", "other/heat.png", "scales.png"} <= places


def test_the_heat_map_has_a_line_for_every_gradient_and_none_for_activations(recording):
    figure = draw_figure(recording, "heat")
    assert isinstance(figure, Figure)
    assert figure.axes[0].images[0].get_array().shape == (20, 10)


def with_losses(folder: Path, losses: list) -> Path:
    lines = [{"kind": "run", "version": 1}]
    for step, loss in enumerate(losses):
        line = {"kind": "step", "step": step, "scale": 65536.0, "skipped": loss == "nan"}
        lines.append(line if loss is None else {**line, "loss": loss})
    path = folder / "recording.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_loss_is_not_drawn_through_a_step_where_it_was_nan(tmp_path):
    path = with_losses(tmp_path, [4.0, None, 3.0, "nan", 2.0, "inf", 1.0])
    line, crosses = draw_figure(path, "scale").axes[1].lines
    told = dict(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))
    assert [step for step, loss in told.items() if math.isnan(loss)] == [3, 5]
    assert 1 not in told, "a loss that nobody noted is no break"
    assert crosses.get_xdata().tolist() == [3, 5]


def test_a_loss_that_broke_off_once_in_many_steps_is_broken_there(tmp_path):
    losses: list = [1.0 + 0.5 * (-1) ** step for step in range(9000)]
    losses[4321] = "nan"
    line = draw_figure(with_losses(tmp_path, losses), "scale").axes[1].lines[0]
    steps, values = line.get_xdata().tolist(), line.get_ydata().tolist()
    assert len(steps) < 6000 and math.isnan(values[steps.index(4321)])


def test_a_scale_that_never_moved_is_one_line_among_different_powers(tmp_path):
    figure = draw_figure(with_losses(tmp_path, [1.0] * 5), "scale")
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == len(set(labels)) and "$2^{16}$" in labels


def test_where_not_every_row_has_room_those_that_lose_are_named():
    figure, axes = new_figure(4.0)
    names = [f"layers.{i}" for i in range(200)]
    weights = [1.0 if i in (17, 18, 150) else 0.0 for i in range(200)]
    name_ticks(axes, names, weights, 4.0)
    named = [int(place) for place in axes.get_yticks()]
    assert {17, 150} <= set(named) and 18 not in named, "18 has no room beside 17"
    assert min(b - a for a, b in pairwise(named)) >= 6 and len(named) > 25
    assert len(axes.get_yticklabels()) == len(named) and figure.axes == [axes]


def test_a_step_that_was_not_finite_has_a_tick():
    assert _ticks(24, []) == [0, 4, 8, 12, 15, 19, 23]
    assert _ticks(24, [13]) == [0, 4, 8, 13, 15, 19, 23]
    assert _ticks(24, [10, 11, 12]) == [0, 4, 8, 10, 12, 15, 19, 23]
    assert _ticks(1, [0]) == [0]


def test_the_parts_of_a_plan_have_names_that_do_not_meet(recording):
    figure = draw_figure(recording, "plan")
    figure.canvas.draw()
    names = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert {shortened(name, 24) for name in Run.of(read(recording)).network.names} <= set(names)
    boxes = list(names.values())
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])


def test_the_histogram_says_what_rounding_there_loses(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2000, generator=generator) * 2.0**-40
    run = Run.of(read(from_tensors(tmp_path / "recording.jsonl", {"w": tensor})))
    for shift in (0, 3):
        lost = int((FloatFormat.of("fp16").round(tensor * 2.0 ** (16 + shift)) == 0).sum())
        text = histogram_figure(run, ["w"], shift).axes[0].texts[0].get_text()
        share, _, rest = text.partition(" % ")
        assert float(share) == pytest.approx(100 * lost / 2000, rel=0.02)
        assert rest == f"lost at $2^{{{16 + shift}}}$ in fp16"


def test_a_row_without_a_histogram_is_refused(recording):
    run = Run.of(read(recording))
    with pytest.raises(ValueError, match=r"no histogram of such a row\. Rows with one: layers"):
        histogram_figure(run, ["nowhere"])


def test_the_plan_shows_what_rows_are_stored_at(recording):
    run = Run.of(read(recording))
    last = run.plans[-1][1]
    assert exponent_by_row(run)[0] == last.groups[0].exponent
    unplanned = Run.of(read(recording).__class__(**{**vars(run.recording), "steps": tuple(
        step.__class__(**{**vars(step), "plan": None}) for step in run.recording.steps
    )}))  # fmt: skip
    seen = run.recording.measured[-1].seen
    assert exponent_by_row(unplanned)[3] == seen.exponent[3]


@pytest.mark.parametrize("name", ["heat", "histograms", "plan", "scale"])
def test_a_figure_of_nothing_says_so(tmp_path, name):
    path = tmp_path / "recording.jsonl"
    path.write_text('{"kind": "run", "version": 1}\n')
    texts = draw_figure(path, name).axes[0].texts
    assert re.search("No gradients|no histograms|no part|no step", texts[0].get_text())
    assert save_figures(path, tmp_path / "figures") == []


def test_unknown_figures_and_formats_are_refused(recording, tmp_path):
    with pytest.raises(ValueError, match="must name one of heat, histograms, plan, scale"):
        draw_figure(recording, "cake")
    with pytest.raises(ValueError, match="must be of png, svg, pdf"):
        save_figures(recording, tmp_path, ["gif"])


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("numpy", "import gradscale.report"),
        ("matplotlib", "gradscale.report.draw_figure(path, 'heat')"),
        ("plotly", "gradscale.report.write_report(path, path + '.html')"),
    ],
)
def test_what_is_not_installed_is_named_with_the_way_to_install_it(recording, missing, code):
    program = f"""
import sys, torch
path = {str(recording)!r}
sys.modules[{missing!r}] = None
try:
    import gradscale.report
    {code}
except ImportError as error:
    print(error)
"""
    run = [sys.executable, "-c", program]
    found = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout
    assert missing in found and 'pip install "gradscale[report]"' in found
