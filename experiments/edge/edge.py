"""How far a knob can be turned before a loss scale is not enough: `make experiments`.

    python experiments/edge/edge.py                 all tasks, three seeds; hours on two cores
    FAST=1 python experiments/edge/edge.py          three strategies, few values, one seed
    python experiments/edge/edge.py units --seeds 5
    python experiments/edge/edge.py --drawn         only the strategies that figures show
    python experiments/edge/edge.py --close         five seeds where three do not tell

Every training is one line of ``experiments/results/edge/TASK.jsonl``, written when it has ended; of
another folder if `OUT` names one. What stands there is not trained again, so a run that was stopped
goes on. Then ``pages.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from strategy import CONSTANTS, DRAWN, FAST, LINES, TRUTH, Strategy
from summary import Found, is_close, read
from task import Task
from tasks import TASKS
from training import train

RESULTS = Path(os.environ.get("OUT", Path(__file__).parents[1] / "results" / "edge"))
Planned = tuple[float, Strategy, int]


def planned(
    task: Task, seeds: int, fast: bool = False, lines: tuple[Strategy, ...] = LINES
) -> Iterator[Planned]:
    """All trainings of a task: a seed at a time, so that a part of them is a whole figure."""
    for seed in range(1 if fast else seeds):
        for value in task.fast if fast else task.values:
            for strategy in FAST if fast else lines:
                if task.offers(strategy):
                    yield value, strategy, seed
    # The width of constants that work, at the first and the middle value.
    if not fast and lines is LINES:
        for value in (task.values[0], task.values[len(task.values) // 2]):
            for strategy in CONSTANTS:
                yield value, strategy, 0


def close(task: Task, found: Found) -> Iterator[Planned]:
    """Two seeds more of what figures show, where three leave open whether it is as good."""
    truth = found.cells[TRUTH.label]
    for strategy in DRAWN:
        for value, cell in found.cells.get(strategy.label, {}).items():
            if is_close(cell, truth[value].score, task.chance):
                for seed in (3, 4):
                    yield value, TRUTH, seed
                    yield value, strategy, seed


def trained(path: Path) -> set[tuple[float, str, int]]:
    """Which trainings a results' file holds."""
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return {(line["value"], line["strategy"], line["seed"]) for line in lines}


def machine(needs: str | None = None) -> dict[str, str]:
    """The first line of a results' file: where and when it was begun, with which packages."""
    return {
        "device": f"CPU, {platform.machine()}, half precision emulated",
        "torch": torch.__version__,
        **({} if needs is None else {needs: version(needs)}),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=[], help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--drawn", action="store_true", help="only the strategies of the figures")
    parser.add_argument("--close", action="store_true", help="two seeds more where it is close")
    given = parser.parse_args()
    for name in given.tasks:
        if name not in TASKS:
            parser.error(f"`{name}` is no task. Pass some of {', '.join(TASKS)}.")
        if TASKS[name].missing:
            parser.error(f"{TASKS[name].missing}.")
    for task in TASKS.values():
        if not given.tasks and task.missing:
            print(f"left out: {task.missing}")
    names = given.tasks or [name for name, task in TASKS.items() if not task.missing]
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if given.close:
        for task in (TASKS[name] for name in names):
            if (path := RESULTS / f"{task.name}.jsonl").exists():
                _run(task, close(task, read(path, worst=task.chance)))
        return
    for seeds in range(1, given.seeds + 1):  # all tasks with one seed, then the next
        for name in names:
            lines = DRAWN if given.drawn else LINES
            _run(TASKS[name], planned(TASKS[name], seeds, bool(os.environ.get("FAST")), lines))


def _run(task: Task, plan: Iterator[Planned]) -> None:
    path = RESULTS / f"{task.name}.jsonl"
    done = trained(path)
    if not path.exists():
        path.write_text(json.dumps(machine(task.needs)) + "\n")
    for value, strategy, seed in plan:
        if (value, strategy.label, seed) in done:
            continue
        done.add((value, strategy.label, seed))
        result = train(task, value, strategy, seed)
        with path.open("a") as file:
            file.write(json.dumps(result.to_json()) + "\n")
        print(
            f"{task.name} {value:g} {strategy.label} seed {seed}: {result.score:.3f}, "
            f"skipped {result.skipped}, dead {result.dead:.0%}, scales {result.scales}",
            flush=True,
        )


if __name__ == "__main__":
    main()
