"""What a results' file comes to: means over seeds, and the paired difference to float32."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

TRUTH = "fp32"


@dataclass(frozen=True)
class Cell:
    """A strategy at a value of the knob.

    Attributes:
        scores: by seed.
        difference: the mean over seeds of the score minus float32's of that seed.
        interval: half the width of its 95 % confidence interval (Student's t over seeds); infinite
            for a single seed.
        skipped, dead, scales, cpu_ms, reductions: means over seeds, see `training.Result`; NaN if
            no line has it.
    """

    scores: tuple[float, ...]
    difference: float
    interval: float
    skipped: float
    dead: float
    scales: float
    cpu_ms: float
    reductions: float

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
    """The file's trainings, gathered; scores that are not finite count as `worst`."""
    first, *lines = path.read_text().splitlines()
    runs: dict[tuple[str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        run = json.loads(line)
        if not math.isfinite(run["score"]):
            run["score"] = worst
        runs[run["strategy"], run["value"]][run["seed"]] = run
    cells: dict[str, dict[float, Cell]] = defaultdict(dict)
    for (strategy, value), by_seed in sorted(runs.items()):
        cells[strategy][value] = _cell(by_seed, runs[TRUTH, value])
    return Found(json.loads(first), dict(cells))


def _cell(by_seed: dict[int, dict[str, Any]], truth: dict[int, dict[str, Any]]) -> Cell:
    seeds = sorted(by_seed)
    differences = [by_seed[s]["score"] - truth[s]["score"] for s in seeds if s in truth]
    count = len(differences)
    interval = math.inf
    if count > 1:
        quantile = float(student.ppf(0.975, count - 1))
        interval = quantile * statistics.stdev(differences) / math.sqrt(count)

    def mean(name: str) -> float:
        found = [by_seed[seed][name] for seed in seeds if name in by_seed[seed]]
        return statistics.fmean(found) if found else math.nan

    return Cell(
        scores=tuple(by_seed[seed]["score"] for seed in seeds),
        difference=statistics.fmean(differences) if differences else math.nan,
        interval=interval,
        skipped=mean("skipped"),
        dead=mean("dead"),
        scales=mean("scales"),
        cpu_ms=mean("cpu_ms"),
        reductions=mean("reductions"),
    )
