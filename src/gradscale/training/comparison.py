"""A comparison: which runs it consists of, and what their results say together."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from gradscale.files.json_text import Json, JsonObject
from gradscale.training.folder import RunResult
from gradscale.training.settings import Settings, settings_for

_LISTS = ("policies", "loss_divisors")


class Candidate(NamedTuple):
    """One line of the table: a format, and who chooses the scale."""

    format: str
    policy: str

    @property
    def label(self) -> str:
        """As the table shows it."""
        if self.format == "fp32":
            return "float32"
        names = {"none": "no scaling", "torch": "torch.amp"}
        return f"{self.format}, {names.get(self.policy, self.policy)}"


class Planned(NamedTuple):
    """One run of a comparison, and where it is kept, relative to the comparison's folder."""

    row: Candidate
    settings: Settings
    folder: Path


@dataclass(frozen=True)
class Comparison:
    """The same network on the same data, once a row, loss divisor and seed.

    Attributes:
        recipe: the task.
        format: of every row but the first, which is float32.
        policies: one row each.
        loss_divisors: one group of rows each.
        seeds: runs a row, with seeds 0, 1, …
        options: further fields of `Settings`; None means the recipe's default.

    Example:
        >>> plan = Comparison("digits", "fp16", ("none", "dynamic"), (1.0,), 2, {"device": "cpu"})
        >>> [row.label for row in plan.rows], len(list(plan.runs()))
        (['float32', 'fp16, no scaling', 'fp16, dynamic'], 6)
    """

    recipe: str
    format: str
    policies: tuple[str, ...]
    loss_divisors: tuple[float, ...]
    seeds: int
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"`--seeds {self.seeds}` must be at least 1.")
        if self.format == "fp32":
            raise ValueError("`--format fp32` is every comparison's first row already.")
        # Every setting is checked now, rather than when its turn comes, hours later.
        for _ in self.runs():
            pass

    @property
    def rows(self) -> list[Candidate]:
        """Float32 first, then one row a policy."""
        halves = [Candidate(self.format, policy) for policy in self.policies]
        return [Candidate("fp32", "none"), *halves]

    def runs(self) -> Iterator[Planned]:
        """All runs, in the order in which they are trained.

        Raises:
            ValueError: if a setting is out of range.
        """
        for divisor in self.loss_divisors:
            for row in self.rows:
                for seed in range(self.seeds):
                    yield self._planned(divisor, row, seed)

    def _planned(self, divisor: float, row: Candidate, seed: int) -> Planned:
        settings = settings_for(
            self.recipe,
            format=row.format,
            policy=row.policy,
            seed=seed,
            loss_divisor=divisor,
            **self.options,
        )
        name = f"{row.format}-{row.policy}"
        return Planned(row, settings, Path(f"divisor-{divisor:g}") / name / f"seed-{seed}")

    def to_json(self) -> JsonObject:
        """The fields by name."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Json) -> Comparison:
        """The inverse of `to_json`.

        Raises:
            LookupError, TypeError, ValueError: if `fields` is not what `to_json` returns.
        """
        # Of a file, so that it may be anything.
        for name in Comparison.__annotations__:
            if not isinstance(fields, dict) or name not in fields:
                raise ValueError(f"it lacks `{name}`")
        known = cast("dict[str, Any]", fields)
        lists: dict[str, Any] = {name: tuple(known[name]) for name in _LISTS}
        return Comparison(**(known | lists))


class Spread(NamedTuple):
    """A mean over seeds and its standard deviation, 0 for a single seed."""

    mean: float
    sd: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """The spread of at least one value."""
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        return Spread(statistics.fmean(values), sd)


@dataclass(frozen=True)
class Summary:
    """What the runs of one row ended with.

    Attributes:
        loss: test loss.
        versus: test loss minus float32's, seed by seed.
        metric: the recipe's metric.
        lost_share: share of gradient elements flushed; None where it was not measured.
        skipped: steps skipped, all seeds together, by reason.
        steps: steps taken or skipped, all seeds together.
        scales: final scale of each seed.
        ms_per_step: the median step of the fastest seed, in milliseconds; None if unknown.
    """

    loss_divisor: float
    row: Candidate
    loss: Spread
    versus: Spread
    metric: Spread
    lost_share: Spread | None
    skipped: dict[str, int]
    steps: int
    scales: tuple[float, ...]
    ms_per_step: float | None

    def to_json(self) -> JsonObject:
        """The fields by name, spreads as ``mean`` and ``sd``."""
        return {
            "loss_divisor": self.loss_divisor,
            **self.row._asdict(),
            "loss": self.loss._asdict(),
            "loss_minus_float32": self.versus._asdict(),
            "metric": self.metric._asdict(),
            "lost_share": None if self.lost_share is None else self.lost_share._asdict(),
            "skipped": self.skipped,
            "steps": self.steps,
            "final_scales": self.scales,
            "ms_per_step": self.ms_per_step,
        }


def summaries_of(comparison: Comparison, results: dict[Path, RunResult]) -> list[Summary]:
    """One summary a row and divisor.

    Args:
        comparison: what was run.
        results: every run's result, by its folder.
    """
    groups: dict[tuple[float, Candidate], list[RunResult]] = {}
    steps = Counter[tuple[float, Candidate]]()
    for planned in comparison.runs():
        key = planned.settings.loss_divisor, planned.row
        groups.setdefault(key, []).append(results[planned.folder])
        steps[key] += planned.settings.steps
    truth = Candidate("fp32", "none")
    return [_summary(key, runs, groups[key[0], truth], steps[key]) for key, runs in groups.items()]


def _summary(
    key: tuple[float, Candidate], runs: list[RunResult], truth: list[RunResult], steps: int
) -> Summary:
    losses = [float(run["loss"]) for run in runs]
    true = [float(run["loss"]) for run in truth]
    lost = [run["lost_share"] for run in runs if run["lost_share"] is not None]
    times = [run["ms_per_step"] for run in runs if run["ms_per_step"] is not None]
    skipped = Counter[str]()
    for run in runs:
        skipped.update(run["reasons"])
    return Summary(
        loss_divisor=key[0],
        row=key[1],
        loss=Spread.of(losses),
        # By seed: what the seeds have in common, as the order of the data, does not count.
        versus=Spread.of([ours - theirs for ours, theirs in zip(losses, true, strict=True)]),
        metric=Spread.of([float(run["metric"]) for run in runs]),
        lost_share=Spread.of(lost) if lost else None,
        skipped=dict(skipped),
        steps=steps,
        scales=tuple(float(run["final_scale"]) for run in runs),
        # What else the machine did can only have made it slower.
        ms_per_step=min(times, default=None),
    )
