"""One row: what a way to train costs, against torch's scaler, and where its loss goes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pairs import in_turns, quartiles, without_collection
from real.device import allocated, elapsed, host_reads, peak
from real.trainer import Trainer

WARM = 10
"""Steps before memory is looked at: optimizer state is there, kernels are chosen."""
DEFAULT, LOW = 2.0**16, 2.0**4
"""Scales: where all scalers begin, and one at which nothing overflows."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        steps: the first ones of a training, whose loss is kept; more than `WARM`.
        rounds: in each of which every way runs a block of steps, in changing order.
        block: seconds that a block should take.
    """

    steps: int = 50
    rounds: int = 11
    block: float = 0.2


class Build(Protocol):
    """Makes a trainer that has not begun."""

    def __call__(self, *, init_scale: float) -> Trainer:
        """With a scaler that begins there."""
        ...


def measured(build: Build, base: Trainer, effort: Effort, device: str) -> dict[str, Any]:
    """The figures of one way.

    Args:
        build: makes its trainer.
        base: one with torch's scaler, at work already.
        effort: how much is measured.
        device: where.
    """
    before = allocated(device)
    trainer = build(init_scale=DEFAULT)
    seen = [trainer.looked_at() for _ in range(WARM)]
    allocated(device)  # the peak is counted from here
    seen += [trainer.looked_at() for _ in range(WARM, effort.steps)]
    most = peak(device)
    losses = [loss for loss, _ in seen]
    figures = {
        "losses": losses,
        "skipped": sum(skipped for _, skipped in seen),
        "peak": None if most is None else most - before,
        **_plan(trainer),
    }
    if not math.isfinite(losses[-1]):
        del trainer
        trainer = at_work(build)
    return figures | _times(trainer, base, effort)


def at_work(build: Build) -> Trainer:
    """A trainer after its first steps, none of which was skipped.

    torch's fused SGD reads momentum that nobody wrote if its very first step is skipped, and what
    it makes of that is not to be timed. Time does not depend on the scale.
    """
    trainer = build(init_scale=LOW)
    for _ in range(WARM):
        trainer.step()
    return trainer


def _plan(trainer: Trainer) -> dict[str, Any]:
    """Of a layer-wise scaler: its scales, what is multiplied, how often it will measure."""
    if trainer.way.scaler != "layerwise":
        return {}
    layerwise = trainer.scaler.layerwise
    track = layerwise.tracks.latest
    exponents, edges = track.plan.exponents, track.graph.edges
    return {
        "scales": len(set(exponents)),
        "edges": sum(exponents[edge.source] != exponents[edge.target] for edge in edges),
        "interval": layerwise.timing.calendar.interval,
    }


def _times(trainer: Trainer, base: Trainer, effort: Effort) -> dict[str, Any]:
    trainer.settle(measures=False)
    ways = {"base": _block(base, effort), "way": _block(trainer, effort)}
    with without_collection():
        times = in_turns(ways, effort.rounds)
    found: dict[str, Any] = {
        "ms": 1e3 * statistics.median(times["way"]),
        "ratio": quartiles(times["way"], times["base"]),
        "rounds": effort.rounds,
        "host_reads": host_reads(trainer.step, trainer.device),
        "host_reads_torch": host_reads(base.step, base.device),
    }
    if trainer.way.scaler == "layerwise":
        found["measuring"] = _measuring(trainer, ways["base"], effort)
    return found


def _measuring(trainer: Trainer, base: Callable[[], float], effort: Effort) -> list[float]:
    """The same ratio where every step measures."""
    trainer.settle(measures=True)
    ways = {"base": base, "way": _block(trainer, effort)}
    with without_collection():
        times = in_turns(ways, effort.rounds)
    return quartiles(times["way"], times["base"])


def _block(trainer: Trainer, effort: Effort) -> Callable[[], float]:
    """Runs some steps and returns the seconds of one; sized by a few that it runs now."""
    run = partial(_steps, trainer)
    one = elapsed(partial(run, 3), trainer.device) / 3
    steps = max(1, min(20, round(effort.block / one)))
    return lambda: elapsed(partial(run, steps), trainer.device) / steps


def _steps(trainer: Trainer, count: int) -> None:
    for _ in range(count):
        trainer.step()
