"""How often a strategy is as good as float32, better, sooner: over all tasks and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from strategy import RULES
from summary import TRUTH, Cell, Found, interval_of, is_near
from task import Task

PEER = "torch"
BEST = "fp16, best constant"
JUDGED = (
    *(f"fp16 {name}" for name in (PEER, "guarded", *RULES, "layerwise")),
    *(f"{format} {name}" for format in ("e5m2", "e4m3") for name in (PEER, "layerwise", "current")),
    *(f"half {name}" for name in ("dynamic", "layerwise")),
)
ABOUT = (
    "Over all tasks and values of their knobs at which float32 learns. *As good*: its score is at "
    "most 5 % of what float32 learned below float32's, of those that were tried. *Above* and "
    "*below* float32, and *better* and *worse* than torch's scaler in the same format: the paired "
    "95 % interval of three seeds or more excludes 0, of those that have as many; one in twenty "
    "would by chance. *Sooner* and *later* than float32: by the steps to its loss at three "
    "quarters, more than a twentieth apart, of those for which it is known. The best constant is "
    "the best of fifteen at each value where they were tried, one seed, chosen by its result."
)
HEAD = "| | as good | above | below | better than torch | worse | sooner | later |"
Result = tuple[Task, Found]


@dataclass(frozen=True)
class Trial:
    """A strategy at a task and a value of its knob, beside what it is compared with.

    Attributes:
        task: which.
        cell: the strategy's.
        truth: float32's.
        peer: torch's scaler in the same format, if it was tried.
    """

    task: Task
    cell: Cell
    truth: Cell
    peer: Cell | None


def learned(task: Task, truth: dict[float, Cell], value: float) -> bool:
    """Whether float32 learns at this value a tenth of what it learns at the best."""
    best = max(cell.score for cell in truth.values())
    return truth[value].score - task.chance > 0.1 * (best - task.chance)


def trials(results: Iterable[Result], strategy: str) -> Iterator[Trial]:
    """All of a strategy, where float32 learns."""
    for task, found in results:
        truth = found.cells[TRUTH]
        peers = found.cells.get(f"{strategy.split()[0]} {PEER}", {})
        for value, cell in found.cells.get(strategy, {}).items():
            if value in truth and learned(task, truth, value):
                yield Trial(task, cell, truth[value], peers.get(value))


def table(results: list[Result]) -> str:
    """Markdown, a row a strategy."""
    rows = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for strategy in JUDGED:
        tried = list(trials(results, strategy))
        if tried:
            rows.append(f"| {strategy} | " + " | ".join(_row(tried, strategy)) + " |")
    rows.append(f"| {BEST} | {_best_constant(results)} |" + " |" * (HEAD.count("|") - 3))
    return "\n".join([ABOUT, "", *rows])


def _row(tried: list[Trial], strategy: str) -> list[str]:
    # By the paired difference: the two may have different seeds.
    truths = [t.truth.score for t in tried]
    near = [
        is_near(s + t.cell.difference, s, t.task.chance) for s, t in zip(truths, tried, strict=True)
    ]
    against_truth = [_side(t.cell, t.truth) for t in tried]
    peers = [_side(t.cell, t.peer) for t in tried if t.peer is not None]
    if strategy.endswith(f" {PEER}"):
        peers = []
    times = [_time(t.cell.target, t.truth.target) for t in tried]
    sides = [(sides, sign) for sides in (against_truth, peers) for sign in (1, -1)]
    shown = [_of(sides, sign) for sides, sign in [*sides, (times, -1), (times, 1)]]
    return [f"{sum(near)} of {len(near)}", *shown]


def _side(cell: Cell, other: Cell) -> int | None:
    """Whether its seeds lie above (1) or below (-1) the other's; None: too few to say."""
    pairs = list(zip(cell.scores, other.scores, strict=False))
    if len(pairs) < 3:
        return None
    difference, half = interval_of([mine - theirs for mine, theirs in pairs])
    return (difference - half > 0) - (difference + half < 0)


def _time(target: float, truth: float) -> int | None:
    if math.isnan(target) or math.isnan(truth):
        return None
    later = target > truth + 0.05
    return later - (target < truth - 0.05)


def _of(sides: list[int | None], sign: int) -> str:
    known = [side for side in sides if side is not None]
    return f"{sum(side == sign for side in known)} of {len(known)}" if known else ""


def _best_constant(results: list[Result]) -> str:
    near: list[bool] = []
    for task, found in results:
        constants = [cells for name, cells in found.cells.items() if " static " in name]
        truth = found.cells[TRUTH]
        for value in {value for cells in constants for value in cells}:
            if learned(task, truth, value):
                best = max(cells[value].scores[0] for cells in constants if value in cells)
                near.append(is_near(best, truth[value].scores[0], task.chance))
    return f"{sum(near)} of {len(near)}"
