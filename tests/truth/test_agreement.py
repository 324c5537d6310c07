"""What `truth`, `advise`, `inspect`, `watch` and the page say of one network, format and batch.

Three of them compare with a float32 pass of the same batch: their figures are equal. A watch, and
the page of a recording made with it, see a single pass: theirs is an estimate, and what they state
beside it are the shares between which the truth lies.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscale
from browser import Page, chromium
from gradscale.backward.names import plain_modules
from gradscale.emulation.computing import computing_in
from gradscale.formats import FloatFormat
from gradscale.metrics.lost_count import count_lost, lost_between, may_lose
from gradscale.plans.window import flush_octave
from gradscale.recording import read
from gradscale.report import write_report
from gradscale.report.run import Run
from gradscale.report.sentences import sentences_of
from gradscale.report.summary import summary_of
from gradscale.truth import Lost, measure_lost
from gradscale.watching.report import WatchReport
from gradscale.watching.rows import Row
from invoking import call

BATCH = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
TARGET = torch.randint(4, (64,), generator=torch.Generator().manual_seed(6))
FORMATS = ["fp16", "e5m2", "e4m3"]


def smooth() -> nn.Module:
    """No true zero: every zero was flushed."""
    layers = [nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4)]
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), *layers, nn.Linear(32, 4))


def rectified() -> nn.Module:
    """Many zeros are true, and a convolution whose bias is zero up to rounding."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


NETWORKS = {"smooth": smooth, "rectified": rectified}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def plain_loss(log2_scale: int) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Tensor = BATCH) -> Tensor:
        return F.cross_entropy(model(batch), TARGET) * 2.0**log2_scale

    return loss


def in_format(format: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def emulated(model: nn.Module) -> Tensor:
        with computing_in(format, "cpu", "on"):
            return loss(model)

    return emulated


def watched(folder: Path, name: str, format: str, loss: Callable[..., Tensor]) -> WatchReport:
    """What a watch says of one pass, and what it leaves in a recording."""
    model = network(name)
    with (
        gradscale.watch(model) as watching,
        gradscale.Recorder(folder, watch=watching, format=format) as recorder,
    ):
        in_format(format, loss)(model).backward()
        recorder.step()
    return watching.report()


def shared(report: WatchReport, truth: Lost) -> Iterator[tuple[Row, Row]]:
    """The tensors that both have a row of; a watch has casts, truth all modules' outputs."""
    for row in report.in_order:
        for true in truth.rows:
            same = (true.name, true.kind, true.numel) == (row.name, row.kind, row.numel)
            if same and may_lose(row):
                yield row, true


def on_the_bound(row: Row) -> int:
    """Elements of the octave whose lower end the format flushes: counted as kept, all of them."""
    index = flush_octave(FloatFormat.of(row.format)) - row.exponent - row.counts.lowest
    return row.counts.octaves[index] if 0 <= index < len(row.counts.octaves) else 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("log2_scale", [-14, -8, -2])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_truth_lies_between_what_a_watch_states(
    name: str, format: str, log2_scale: int, tmp_path: Path
) -> None:
    loss = plain_loss(log2_scale)
    truth = measure_lost(network(name), in_format(format, loss))
    report = watched(tmp_path, name, format, loss)
    pairs = list(shared(report, truth))
    # All parameters, and all modules that have some.
    modules = {name for name, part in plain_modules(network(name)) if list(part.parameters(False))}
    assert {row.name for row, _ in pairs if row.kind == "module"} >= modules - {"1"}
    for row, true in pairs:
        assert row.least <= true.flushed <= row.most + on_the_bound(row), row.name
    ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
    bound = sum(map(on_the_bound, ours)) / sum(row.nonzero for row in theirs)
    between, true_share = lost_between(ours), count_lost(theirs).lost_share
    assert true_share is not None
    assert between.least <= true_share <= between.most + bound
    assert report.lost_between.least <= report.lost_share <= report.lost_between.most


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("log2_scale", [-8, -2])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_recording_its_summary_and_its_sentences_say_what_the_watch_said(
    name: str, format: str, log2_scale: int, tmp_path: Path
) -> None:
    report = watched(tmp_path, name, format, plain_loss(log2_scale))
    (step,) = read(tmp_path).steps
    assert step.seen is not None
    assert step.seen.lost_share == pytest.approx(report.lost_share, rel=1e-8)
    run = Run.of(read(tmp_path))
    lost = summary_of(run)["lost"]
    assert lost["share"] == report.lost_share
    assert lost["between"] == list(report.lost_between)
    assert "at least" in sentences_of(run)[0]
    assert "At least" in str(report) and "if all zeros are true" in str(report)


INSPECTED = """
import sys
sys.path[:0] = {paths!r}
from test_agreement import BATCH, network, plain_loss

def model_step():
    return network({name!r}), [BATCH], plain_loss({log2_scale})
"""


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_advice_loses_what_measure_lost_loses_at_each_of_its_scales(name: str, format: str) -> None:
    loss = plain_loss(-8)
    advice = gradscale.advise((network(name), [BATCH], loss), formats=format, steps=1)[format]
    scales = (0, advice.log2_default, advice.log2_scale)
    for log2_scale, told in zip(scales, (advice.none, advice.default, advice.one), strict=True):
        truth = measure_lost(network(name), in_format(format, loss), scale=2.0**log2_scale)
        assert told is not None and told.lost_share == truth.lost_share


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_truth_advice_inspection_and_its_page_give_the_same_figure(
    name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Page
) -> None:
    loss, module = plain_loss(-8), f"inspected_{name}_{format}"
    advice = gradscale.advise(
        (network(name), [BATCH], loss), formats=format, steps=1, emulate="on"
    )[format]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    source = INSPECTED.format(paths=paths, name=name, log2_scale=-8)
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    result = call(
        "inspect", f"{module}:model_step", "--format", format, "--steps", "1", "--emulate", "on",
        "--out", "out", "--json",
    )  # fmt: skip
    (verdict,) = json.loads(result.stdout)["verdicts"]
    told = verdict["evidence"]
    run = Run.of(read(tmp_path / "out" / format))
    scale = run.recording.steps[0].scale

    emulated = in_format(format, loss)
    unscaled = measure_lost(network(name), emulated).lost_share
    scaled = measure_lost(network(name), emulated, scale=scale).lost_share
    begun = measure_lost(network(name), emulated, scale=2.0**advice.log2_default).lost_share
    assert unscaled == advice.none.lost_share == told["none"]["lost_share"]
    assert scaled == advice.one.lost_share == told["one"]["lost_share"]
    assert begun == advice.default.lost_share == told["default"]["lost_share"]
    # The recording keeps whole elements, so its share is the same ratio.
    summary = summary_of(run)["lost"]
    assert summary["share"] == scaled and summary["between"] is None
    browser.open(tmp_path / "out" / "report.html")
    assert shown_share(browser) == pytest.approx(scaled, rel=0.05, abs=1e-12)


@pytest.mark.slow
def test_the_page_of_a_watched_run_shows_its_share_and_how_far_to_trust_it(
    tmp_path: Path, browser: Page
) -> None:
    report = watched(tmp_path / "run", "rectified", "fp16", plain_loss(-8))
    write_report(tmp_path / "run", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert shown_share(browser) == pytest.approx(report.lost_share, rel=0.05)
    least, most = (f"{100 * share:.0f} %" for share in report.lost_between)
    assert f"at least {least}, at most {most}" in browser.run(
        "return document.getElementById('tiles').innerText"
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def shown_share(page: Page) -> float:
    """The share on the page's tile, which has two digits."""
    tiles = page.run("return document.getElementById('tiles').innerText").split("\n")
    text = tiles[next(i for i, line in enumerate(tiles) if line.strip().lower() == "lost") + 1]
    return math.nan if "–" in text else float(text.rstrip(" %").lstrip("> ")) / 100
