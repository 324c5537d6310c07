"""One training: a task, a value of its knob, a strategy, a seed; and what came of it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import torch

from gradscale.training.scaling import outcome
from strategy import Strategy
from task import Task, Training
from way import Way

PARTS = 20


@dataclass(frozen=True)
class Result:
    """One line of a results' file.

    Attributes:
        value: of the knob.
        strategy: its label.
        seed: of weights and data.
        score: at the end; NaN if a weight is not finite.
        loss: the mean of the last eighth of the steps.
        skipped: steps.
        dead: weight matrices whose last gradient was zero throughout, as a share.
        scales: loss scales in use at the end, where it was layer-wise.
        cpu_ms: processor time of a step, the median; only its ratio to another means something.
        reductions: tensors read for their maximum to choose a scale of their own, a step.
        course: the mean loss of every twentieth of the steps; empty under unit scaling, whose loss
            has a size of its own.
        lost_weights: share of weight gradients' elements lost in one more step; NaN: not known.
        lost_inputs: the same of the gradients that arrive at layers.
    """

    value: float
    strategy: str
    seed: int
    score: float
    loss: float
    skipped: int
    dead: float
    scales: int
    cpu_ms: float
    reductions: float = 0.0
    course: tuple[float, ...] = ()
    lost_weights: float = math.nan
    lost_inputs: float = math.nan

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


@dataclass
class Course:
    """What was seen on the way, a number a step; `skipped` steps in all."""

    losses: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])
    skipped: int = 0


def begun(task: Task, value: float, strategy: Strategy, seed: int) -> tuple[Training, Way]:
    """A training before its first step."""
    torch.manual_seed(seed)
    training = task.training(strategy, value, seed)
    return training, Way(strategy, training)


def run(training: Training, way: Way, steps: int) -> Course:
    """All steps."""
    scaler, optimizer = way.scaler, training.optimizer
    course = Course()
    for step in range(steps):
        began = time.process_time()
        optimizer.zero_grad()
        with way.computing():
            loss = training.loss(step)
            way.backward(loss)
        if scaler is None:
            optimizer.step()
        else:
            scale = scaler.get_scale()
            scaler.step(optimizer)
            course.skipped += outcome(scaler, optimizer, scale).skipped
            scaler.update()
        course.losses.append(loss.item())
        course.seconds.append(time.process_time() - began)
    return course


def train(task: Task, value: float, strategy: Strategy, seed: int) -> Result:
    """Trains once; a pure function of its arguments, but for the time."""
    training, way = begun(task, value, strategy, seed)
    course = run(training, way, task.steps)
    losses, seconds = course.losses, course.seconds
    last = losses[-max(1, task.steps // 8) :]
    scales, dead, reductions = _scales(way.scaler), _dead(training.model), way.reductions
    lost = way.lost(task.steps)
    with torch.no_grad(), way.scoring():
        score = training.score().item()
    return Result(
        value=value,
        strategy=strategy.label,
        seed=seed,
        score=score,
        loss=sum(last) / len(last),
        skipped=course.skipped,
        dead=dead,
        scales=scales,
        cpu_ms=1000 * sorted(seconds)[len(seconds) // 2],
        reductions=reductions / task.steps,
        course=() if strategy.scaling == "unit" else _course(losses),
        lost_weights=lost.weights,
        lost_inputs=lost.inputs,
    )


def _course(losses: list[float]) -> tuple[float, ...]:
    ends = [len(losses) * part // PARTS for part in range(PARTS + 1)]
    parts = [losses[begin:end] for begin, end in pairwise(ends) if begin < end]
    return tuple(float(f"{sum(part) / len(part):.4g}") for part in parts)


def _dead(model: torch.nn.Module) -> float:
    matrices = [p.grad for p in model.parameters() if p.dim() > 1 and p.grad is not None]
    return sum(not grad.any() for grad in matrices) / max(1, len(matrices))


def _scales(scaler: object) -> int:
    layerwise = getattr(scaler, "layerwise", None)
    track = None if layerwise is None else layerwise.tracks.latest
    return 1 if track is None else len(set(track.plan.exponents))
