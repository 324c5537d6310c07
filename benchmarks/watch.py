"""Cost of watching a training loop against the same loop, interleaved in one process.

Run it as ``python benchmarks/watch.py`` (a few minutes; only ratios mean anything on a shared
machine). A round is one whole training step of every arm, in changing order, on the same model,
with torch.amp.GradScaler; a ratio is the median over rounds, with quartiles. The arms:

    plain again   the same loop a second time: the noise of this machine
    between       watched, a step between two measurements
    measuring     watched, a measuring step, its rows on the host
    activations   that, and every module's output counted

What a run costs follows from the two: with the default of every hundredth step, and for the first
hundred steps, of which 0, 1, 2, 4, … 64 measure.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch

import gradscale
from gradscale.backward.graph import walk
from layerwise import Bench
from layerwise_memory import peak_bytes
from layerwise_models import MODELS
from pairs import bracketed, in_turns, quartiles
from where import arguments, began, describe, in_words, save

NEVER = 10**9
EVERY = 100
FIRST = sum(gradscale.layerwise.calendar.Calendar(EVERY).due(step) for step in range(EVERY))


class Arm:
    """A loop that may be watched, a step at a time."""

    def __init__(self, bench: Bench, scaler: Any, **settings: Any) -> None:
        self.bench, self.scaler = bench, scaler
        watched = bool(settings)
        self.watch = gradscale.watch(bench.model, scaler, **settings) if watched else None

    def step(self) -> float:
        """Seconds of one step; entering and leaving the block is no part of it."""
        if self.watch is None:
            return self.bench.step(self.scaler)
        with self.watch:
            return self.bench.step(self.scaler)


def arms_of(bench: Bench) -> dict[str, Arm]:
    scaler = torch.amp.GradScaler(bench.device)
    arms = {
        "plain": Arm(bench, scaler),
        "plain again": Arm(bench, scaler),
        "between": Arm(bench, scaler, every=NEVER),
        "measuring": Arm(bench, scaler, every=1),
        "activations": Arm(bench, scaler, every=1, activations=True),
    }
    for arm in arms.values():
        for _ in range(5):
            arm.step()
    # The fast start measures at powers of two; what is timed is a step between measurements.
    between = arms["between"].watch
    assert between is not None
    between._steps._calendar = _Never()
    return arms


class _Never:
    """A calendar without another measurement."""

    def due(self, step: int) -> bool:
        del step
        return False


def ratios(bench: Bench, arms: dict[str, Arm], rounds: int) -> dict[str, Any]:
    """Every arm's step time over that of the plain loop in the same round."""
    times = in_turns({name: arm.step for name, arm in arms.items()}, rounds)
    result: dict[str, Any] = {
        "plain_ms": 1e3 * statistics.median(times["plain"]),
        "rounds": rounds,
    }
    for name in arms:
        if name != "plain":
            result[name] = quartiles(times[name], times["plain"])
    result["amortised"] = _amortised(result, 1 / EVERY)
    result["first steps"] = _amortised(result, FIRST / EVERY)
    watch = arms["measuring"].watch
    assert watch is not None and watch.latest is not None
    result["rows"] = len(watch.latest)
    with torch.autocast(bench.device, bench.dtype):
        result["nodes"] = len(walk(bench.loss(bench.model, bench.batch)).graph)
    return result


def _amortised(result: dict[str, Any], share: float) -> float:
    return result["between"][1] + share * (result["measuring"][1] - result["between"][1])


def memory(bench: Bench, arms: dict[str, Arm]) -> dict[str, float]:
    """Peak memory of a step above what lives between steps, over that of the plain loop."""
    peak_bytes(lambda: None, bench.device)  # the profiler's own first allocations
    peaks: dict[str, int] = {}
    for name in ("plain", "between", "measuring", "activations"):
        bench.optimizer.zero_grad(set_to_none=True)
        peaks[name] = peak_bytes(arms[name].step, bench.device)
    ratio = {name: peak / peaks["plain"] for name, peak in peaks.items() if name != "plain"}
    return {"plain_MiB": peaks["plain"] / 2**20, **ratio}


def markdown(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The tables that go into the documentation."""
    lines = [
        "# Watching against not watching", "",
        f"{in_words(where)}.",
        "Step time as a ratio to the plain loop: median of interleaved rounds [quartiles].",
        "`plain again` is the noise. Amortised: every 100th step measures; first 100: of them "
        f"{FIRST} do.", "",
        "| model | nodes | rows | step ms | plain again | between | measuring | activations | "
        "amortised | first 100 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        names = ("plain again", "between", "measuring", "activations")
        cells = " | ".join(bracketed(*row[name]) for name in names)
        lines.append(
            f"| {row['model']} | {row['nodes']} | {row['rows']} | {row['plain_ms']:.0f} | "
            f"{cells} | {row['amortised']:.3f} | {row['first steps']:.3f} |"
        )
    lines += ["", "Peak memory of a step, as a ratio to the plain loop's.", ""]
    lines += ["| model | plain MiB | between | measuring | activations |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        m = row["memory"]
        cells = " | ".join(f"{m[name]:.3f}" for name in ("between", "measuring", "activations"))
        lines.append(f"| {row['model']} | {m['plain_MiB']:.1f} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=25, threads=1)
    parser.add_argument("--models", nargs="+")
    given = began(parser)
    works = MODELS[given.device]
    rows: list[dict[str, Any]] = []
    for name in given.models or works:
        bench = Bench(works[name], given.device)
        arms = arms_of(bench)
        row = {"model": name, **ratios(bench, arms, given.rounds), "memory": memory(bench, arms)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    where = describe(given.device)
    page = markdown(where, rows)
    save(given.output, f"watch_{given.device}", {"where": where, "rows": rows}, page)
    print(page)


if __name__ == "__main__":
    main()
