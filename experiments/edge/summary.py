"""What a results' file comes to: means over seeds, and the paired difference to float32."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

TRUTH = "fp32"
TOLERANCE = 0.05
"""What is as good as float32 misses no more of what that learned: of its score less chance."""


@dataclass(frozen=True)
class Cell:
    """A strategy at a value of the knob.

    Attributes:
        scores: by seed.
        difference: the mean over seeds of the score minus float32's of that seed.
        interval: half the width of its 95 % confidence interval (Student's t over seeds); infinite
            for a single seed.
        target: the share of its steps after which the training loss is what float32's is at three
            quarters of its own, the mean over seeds; infinite if a seed does not get there.
        skipped, dead, scales, cpu_ms, reductions, lost_weights, lost_inputs: means over seeds, see
            `training.Result`; NaN if no line has it.
    """

    scores: tuple[float, ...]
    difference: float
    interval: float
    skipped: float
    dead: float
    scales: float
    cpu_ms: float
    reductions: float
    target: float
    lost_weights: float
    lost_inputs: float

    @property
    def score(self) -> float:
        """The mean; a training that ended in NaN counts as the worst that can be."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class Found:
    """A results' file.

    Attributes:
        machine: where and when it was begun.
        cells: by strategy, then by the value of the knob.
    """

    machine: dict[str, str]
    cells: dict[str, dict[float, Cell]]


def read(path: Path, worst: float) -> Found:
    """The file's trainings, gathered; scores that are not finite count as `worst`.

    Those at values at which float32 was not trained yet have nothing to be held against: left out.
    """
    first, *lines = path.read_text().splitlines()
    runs: dict[tuple[str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        run = json.loads(line)
        if not math.isfinite(run["score"]):
            run["score"] = worst
        runs[run["strategy"], run["value"]][run["seed"]] = run
    cells: dict[str, dict[float, Cell]] = defaultdict(dict)
    for (strategy, value), by_seed in sorted(runs.items()):
        if (TRUTH, value) in runs:
            cells[strategy][value] = _cell(by_seed, runs[TRUTH, value])
    return Found(json.loads(first), dict(cells))


def _cell(by_seed: dict[int, dict[str, Any]], truth: dict[int, dict[str, Any]]) -> Cell:
    seeds = sorted(by_seed)
    differences = [by_seed[s]["score"] - truth[s]["score"] for s in seeds if s in truth]
    difference, interval = interval_of(differences)

    def mean(name: str) -> float:
        return _mean(by_seed[seed].get(name, math.nan) for seed in seeds)

    return Cell(
        scores=tuple(by_seed[seed]["score"] for seed in seeds),
        difference=difference,
        interval=interval,
        skipped=mean("skipped"),
        dead=mean("dead"),
        scales=mean("scales"),
        cpu_ms=mean("cpu_ms"),
        reductions=mean("reductions"),
        target=_mean(_reached(by_seed[s], truth[s]) for s in seeds if s in truth),
        lost_weights=mean("lost_weights"),
        lost_inputs=mean("lost_inputs"),
    )


def interval_of(differences: Sequence[float]) -> tuple[float, float]:
    """Their mean, and half the width of its 95 % confidence interval (Student's t).

    Example:
        >>> interval_of([0.25])
        (0.25, inf)
    """
    count = len(differences)
    mean = statistics.fmean(differences) if differences else math.nan
    if count < 2:
        return mean, math.inf
    quantile = float(student.ppf(0.975, count - 1))
    return mean, quantile * statistics.stdev(differences) / math.sqrt(count)


def is_near(score: float, truth: float, chance: float) -> bool:
    """Whether at most a `TOLERANCE` of what float32 learned is missing."""
    return score >= truth - TOLERANCE * abs(truth - chance)


def is_close(cell: Cell, truth: float, chance: float) -> bool:
    """Whether its seeds, three or more, leave open on which side of `is_near` it is."""
    bound = -TOLERANCE * abs(truth - chance)
    return len(cell.scores) >= 3 and abs(cell.difference - bound) < cell.interval


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _reached(run: dict[str, Any], truth: dict[str, Any]) -> float:
    """When a loss is first as small as float32's at three quarters; NaN where none was noted."""
    course, true = run.get("course", ()), truth.get("course", ())
    if not course or not true:
        return math.nan
    aim = true[math.ceil(len(true) * 3 / 4) - 1]
    reached = (part for part, loss in enumerate(course, 1) if loss <= aim)
    return next(reached, math.inf) / len(course)
