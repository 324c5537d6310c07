"""Figures for papers: what is in them, and what they say when there is nothing to draw."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gradscale.formats import FloatFormat
from gradscale.recording import read
from gradscale.report import draw_figure, save_figures
from gradscale.report.figures.histogram import histogram_figure
from gradscale.report.figures.plan import exponent_by_row
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
