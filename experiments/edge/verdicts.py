"""What `advise` says before training, against what became of it: `make experiments`.

    python experiments/edge/verdicts.py                 every task that has results
    python experiments/edge/verdicts.py units --again   one, anew

For each task of the edge, value of its knob and format that `edge.py` has trained, `advise` looks
at the first eight steps; where it advises a scale of its own, one training tries that. Its words
are kept in ``experiments/results/edge_verdicts.json``; what stands there is not asked again. Then
the tables of ``docs/advice.md``: its words against what the trainings came to.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from advised import model_step
from claims import learned
from edge import RESULTS, machine
from gradscale import advise
from gradscale.advice.evidence import NOTHING
from marks import with_generated
from strategy import Strategy
from summary import TRUTH, Cell, Found, is_near, read
from task import Task
from tasks import TASKS
from training import train

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "experiments" / "results" / "edge_verdicts.json"
PAGE = ROOT / "docs" / "advice.md"
FORMATS = ("fp16", "e5m2", "e4m3")

SAID = ("the default scale", "another single scale", "a plan", "unsafe")
WORDS = {"none": SAID[0], "default": SAID[0], "one scale": SAID[1], "a plan": SAID[2]}
BECAME = ("torch's scaler", "another single scale", "only layer-wise", "nothing")
NO_SINGLE = ("layerwise", "adaptive", "current", "delayed", "none")


class Asked(NamedTuple):
    """What was said of one task in one format.

    Attributes:
        said: of `SAID`.
        level: ``"safe"``, ``"risky"`` or ``"unsafe"``.
        left: of the worst update, under `GradScaler()`, at the best single scale, under the plan.
        cosines: to float32's gradients, likewise.
        log2_scale: the exponent of the best single scale.
        difference: to float32 of a training at that scale; None if it was not advised.
    """

    task: str
    value: float
    format: str
    said: str
    level: str
    left: tuple[float, float, float]
    cosines: tuple[float, float, float]
    log2_scale: int
    difference: float | None


def trained_formats(found: Found, value: float) -> Iterator[str]:
    """The formats in which the task was trained by torch's scaler and layer-wise."""
    for format in FORMATS:
        if all(value in found.cells.get(f"{format} {way}", {}) for way in ("torch", "layerwise")):
            yield format


def ask(task: Task, value: float, formats: list[str], found: Found) -> Iterator[Asked]:
    """Advice on seed 0, the first of float32's."""
    for verdict in advise(model_step(task, value, seed=0), formats=formats).verdicts:
        said = WORDS[verdict.scaling] if verdict.level in ("safe", "risky") else SAID[3]
        evidence = (verdict.default, verdict.one, verdict.plan)
        seen = [NOTHING if e is None else e for e in evidence]
        difference = None
        if said == SAID[1]:
            constant = Strategy(verdict.format, "static", verdict.log2_scale)
            score = train(task, value, constant, 0).score
            score = score if math.isfinite(score) else task.chance
            difference = round(score - found.cells[TRUTH][value].scores[0], 4)
        yield Asked(
            task.name,
            value,
            verdict.format,
            said,
            verdict.level,
            tuple(round(e.worst, 3) for e in seen),
            tuple(round(e.cosine, 3) for e in seen),
            verdict.log2_scale,
            difference,
        )


def became(asked: Asked, found: Found) -> str:
    """The simplest that trained as float32 did: of `BECAME`."""
    task, value, format = TASKS[asked.task], asked.value, asked.format
    cells = {
        label.removeprefix(f"{format} "): by_value[value]
        for label, by_value in found.cells.items()
        if label.startswith(f"{format} ") and value in by_value
    }
    if _trains(cells["torch"], task, found, value):
        return BECAME[0]
    single = [cell for way, cell in cells.items() if way not in NO_SINGLE]
    first = found.cells[TRUTH][value].scores[0]  # the seed with which it was tried
    if any(_trains(cell, task, found, value) for cell in single) or (
        asked.difference is not None and is_near(first + asked.difference, first, task.chance)
    ):
        return BECAME[1]
    return BECAME[2] if _trains(cells["layerwise"], task, found, value) else BECAME[3]


def _trains(cell: Cell, task: Task, found: Found, value: float) -> bool:
    """Constants have one seed, float32's first; others as many as it."""
    truth = found.cells[TRUTH][value].scores[: len(cell.scores)]
    return is_near(cell.score, sum(truth) / len(truth), task.chance)


def results() -> dict[str, Found]:
    """By task, what `edge.py` has written."""
    paths = {name: RESULTS / f"{name}.jsonl" for name in TASKS}
    return {n: read(p, worst=TASKS[n].chance) for n, p in paths.items() if p.exists()}


def known() -> list[Asked]:
    """What was asked before."""
    if not KEPT.exists():
        return []
    return [Asked(*row.values()) for row in json.loads(KEPT.read_text())["asked"]]


def write(asked: list[Asked]) -> None:
    """The words, in the order of the tasks."""
    order = {name: index for index, name in enumerate(TASKS)}
    rows = sorted(asked, key=lambda a: (order[a.task], a.value, FORMATS.index(a.format)))
    lines = ",\n".join(json.dumps(row._asdict()) for row in rows)
    KEPT.write_text(f'{{"machine": {json.dumps(machine())},\n"asked": [\n{lines}\n]}}\n')


def tables(asked: list[Asked], found: dict[str, Found]) -> str:
    """The confusion matrix, and every case that is off its diagonal."""
    pairs = [
        (a, became(a, found[a.task]))
        for a in asked
        if a.task in found
        and a.format in trained_formats(found[a.task], a.value)
        and learned(TASKS[a.task], found[a.task].cells[TRUTH], a.value)
    ]
    counts = Counter((a.said, then) for a, then in pairs)
    lines = [
        f"| said before training | {' | '.join(BECAME)} |",
        "|---|" + "--:|" * len(BECAME),
        *(
            f"| {said} | {' | '.join(str(counts[said, t] or '') for t in BECAME)} |"
            for said in SAID
        ),
    ]
    right = sum(SAID.index(a.said) == BECAME.index(then) for a, then in pairs)
    names = sorted({a.task for a, _ in pairs}, key=list(TASKS).index)
    where = ", ".join(f"{key} {value}" for key, value in machine().items() if key != "date")
    parts = [
        f"*{len(pairs)} cases of {len(names)} tasks ({', '.join(names)}), in {', '.join(FORMATS)}; "
        f"{right} on the diagonal. {where}.*",
        "\n".join(lines),
        _misses(pairs, found),
    ]
    return "\n\n".join(part for part in parts if part)


def _misses(pairs: list[tuple[Asked, str]], found: dict[str, Found]) -> str:
    off = [(a, then) for a, then in pairs if SAID.index(a.said) != BECAME.index(then)]
    if not off:
        return ""
    lines = [
        "| off the diagonal | said | trained as float32 | seeds | left: default, one, plan "
        "| cosine |",
        "|---|---|---|--:|---|---|",
    ]
    for a, then in off:
        left = ", ".join(f"{share:.0%}" for share in a.left)
        cosines = ", ".join(f"{cosine:.2f}" for cosine in a.cosines)
        seeds = len(found[a.task].cells[f"{a.format} torch"][a.value].scores)
        case = f"{a.task} at {a.value:g}, {a.format}"
        lines.append(f"| {case} | {a.said} | {then} | {seeds} | {left} | {cosines} |")
    return "\n".join(lines)


def main() -> None:
    """Ask what was not asked, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=[], help=", ".join(TASKS))
    parser.add_argument("--again", action="store_true", help="ask anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, asked = results(), known()
    names = given.tasks or [name for name in found if not TASKS[name].missing]
    for name in names:
        if name not in found:
            parser.error(f"`{name}` has no results. Pass some of {', '.join(found)}.")
    if given.again:
        asked = [a for a in asked if a.task not in names]
    for name in names:
        for value in sorted(found[name].cells[TRUTH]):
            done = {a.format for a in asked if (a.task, a.value) == (name, value)}
            missing = [f for f in trained_formats(found[name], value) if f not in done]
            for answer in ask(TASKS[name], value, missing, found[name]) if missing else ():
                asked.append(answer)
                print(*answer, "->", became(answer, found[name]), flush=True)
            write(asked)
    PAGE.write_text(with_generated(PAGE.read_text(), "verdicts", tables(known(), found)))


if __name__ == "__main__":
    main()
