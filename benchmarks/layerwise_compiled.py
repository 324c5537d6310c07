"""Cost of a plan inside compiled graphs, against the same model compiled without one.

Run it as ``python benchmarks/layerwise_compiled.py`` (some minutes a row, most of them compiling;
only ratios mean anything on a shared machine), or row by row with ``--rows``: a row is saved as
soon as it is taken, and stays until it is taken again. A round is one whole training step of every
arm, in changing order. The first arm is ``torch.compile(model)`` with torch.amp.GradScaler,
compiled before any plan was asked for; the others run the same model compiled for a plan:

    again         the first arm a second time: the noise of this machine
    uniform       layerwise=True between measurements, one group
    planned       a plan of four groups, between measurements
    measuring     every step measures: torch runs the backward pass operator by operator

Rows of a whole step are `CapturedStep(mode="compile")` with a plan over the same without one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calendars import NEVER, fix, quiet
from compiled_alone import compiled_alone
from gradscale import CapturedStep, Dynamic, GradScaler, Layerwise
from layerwise import quarters
from layerwise_models import Workload
from pairs import bracketed, in_turns, quartiles
from real.gpt import GPT, text_loss
from where import arguments, began, describe, in_words, save


def mlp() -> nn.Module:
    return nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(512, 512), nn.GELU())))


def squares(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(batch[0]).float().square().mean()


MODELS = {
    "MLP 8 x 512": Workload(mlp, lambda: (torch.randn(128, 512),), squares),
    "GPT 2 x 192": Workload(
        lambda: GPT(192, 2, 4, 256, 64), lambda: (torch.randint(256, (8, 65)),), text_loss
    ),
}


class Arm:
    """One compiled copy of a model, and one training step with any scaler."""

    def __init__(self, work: Workload, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.dtype, self.loss = device, work.dtype, work.loss
        self.model = work.model().to(device)
        self.batch = tuple(part.to(device) for part in work.batch())
        self.compiled = compiled_alone(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)

    def step(self, scaler: Any) -> float:
        """Seconds of one training step."""
        begin = now(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, self.dtype):
            loss = self.loss(self.compiled, self.batch)
        scaler.scale(loss).backward()
        scaler.step(self.optimizer)
        scaler.update()
        return now(self.device) - begin


def now(device: str) -> float:
    """Seconds: of this process on a CPU, of the clock once the device has done all."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def row(name: str, device: str, rounds: int) -> dict[str, Any]:
    """Every arm's step time over that of the model compiled without a plan."""
    plain = Arm(MODELS[name], device)
    theirs = torch.amp.GradScaler(device)
    for _ in range(3):
        say(f"{name}, plain: a step of {plain.step(theirs):.1f} s")
    scalers = {
        "uniform": GradScaler(device, layerwise=Layerwise(measure_every=NEVER)),
        # Far from overflow, after which every step would measure.
        "planned": GradScaler(device, init_scale=16.0, layerwise=quarters),
        "measuring": GradScaler(device, layerwise=Layerwise(measure_every=1)),
    }
    ours = Arm(MODELS[name], device)
    for arm, scaler in scalers.items():
        for _ in range(6):  # the fast start measures steps 0, 1, 2 and 4
            say(f"{name}, {arm}: a step of {ours.step(scaler):.1f} s")
    for arm in ("uniform", "planned"):
        fix(scalers[arm], measures=False)

    def timed(arm: str) -> float:
        assert arm == "measuring" or quiet(scalers[arm])
        return ours.step(scalers[arm])

    ways = {
        "plain": partial(plain.step, theirs),
        "again": partial(plain.step, theirs),
        **{arm: partial(timed, arm) for arm in scalers},
    }
    times = in_turns(ways, rounds)
    result: dict[str, Any] = {"model": name, "rounds": rounds}
    result["plain_ms"] = 1e3 * statistics.median(times["plain"])
    result |= {arm: quartiles(times[arm], times["plain"]) for arm in ways if arm != "plain"}
    graph = scalers["planned"].layerwise.tracks.latest.graph
    result["nodes"], result["inside"] = len(graph), sum(len(s.nodes) for s in graph.structure.spans)
    return result


def captured(name: str, device: str, layerwise: Any) -> Callable[[], float]:
    """Times one whole step of a compiled `CapturedStep`."""
    work = MODELS[name]
    torch.manual_seed(0)
    model = work.model().to(device)
    batch = tuple(part.to(device) for part in work.batch())

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast(device, work.dtype):
            return work.loss(model, batch)

    # Far from overflow, after which every step would measure.
    step = CapturedStep(
        model, loss, torch.optim.SGD(model.parameters(), lr=1e-9), mode="compile",
        policy=Dynamic(init_scale=16.0), layerwise=layerwise,
    )  # fmt: skip
    for _ in range(6):
        begin = now(device)
        step.step(batch)
        say(f"{whole(name)}: a step of {now(device) - begin:.1f} s")
    if step.scaler.layerwise is not None:
        fix(step.scaler, measures=False)

    def timed() -> float:
        assert quiet(step.scaler)
        begin = now(device)
        step.step(batch)
        return now(device) - begin

    return timed


def whole_row(name: str, device: str, rounds: int) -> dict[str, Any]:
    """The whole step with a plan of four groups over the same step without one."""
    plain, planned = captured(name, device, False), captured(name, device, quarters)
    times = in_turns({"plain": plain, "again": plain, "planned": planned}, rounds)
    result: dict[str, Any] = {"model": whole(name), "rounds": rounds}
    result["plain_ms"] = 1e3 * statistics.median(times["plain"])
    return result | {arm: quartiles(times[arm], times["plain"]) for arm in ("again", "planned")}


def whole(name: str) -> str:
    """What the row of a whole step is called."""
    return f"{name}, whole step"


def say(progress: str) -> None:
    """Tells at once how far it is."""
    print(progress, file=sys.stderr, flush=True)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table that goes into the documentation."""
    arms = ("again", "uniform", "planned", "measuring")
    lines = [
        "# A plan inside compiled graphs", "",
        "Step time as a ratio to the model compiled without a plan: median of interleaved rounds "
        "[quartiles].", "",
        f"| model | nodes, inside | step ms | {' | '.join(arms)} | taken on |",
        "|---|--:|--:|" + "--:|" * len(arms) + "---|",
    ]  # fmt: skip
    for found in rows:
        cells = " | ".join(bracketed(*found[arm]) if arm in found else "" for arm in arms)
        inside = f"{found['nodes']}, {found['inside']}" if "nodes" in found else ""
        lines.append(
            f"| {found['model']} | {inside} | {found['plain_ms']:.0f} | {cells} | "
            f"{in_words(found['where'])}, {found['rounds']} rounds |"
        )
    return "\n".join(lines) + "\n"


def rows_of() -> dict[str, Callable[[str, int], dict[str, Any]]]:
    """By its name, what takes a row on a device in so many rounds."""
    found: dict[str, Callable[[str, int], dict[str, Any]]] = {}
    for name in MODELS:
        found |= {name: partial(row, name), whole(name): partial(whole_row, name)}
    return found


def taken_before(file: Path) -> dict[str, dict[str, Any]]:
    """By name the rows that a file of results holds; each says where it was taken."""
    if not file.exists():
        return {}
    saved = json.loads(file.read_text())
    return {row["model"]: {"where": saved.get("where"), **row} for row in saved["rows"]}


def main() -> None:
    makes = rows_of()
    parser = arguments(__doc__, rounds=15, threads=1)
    parser.add_argument("--rows", nargs="+", default=list(makes), choices=list(makes))
    given = began(parser)
    name = f"layerwise_compiled_{given.device}"
    rows = taken_before(given.output / f"{name}.json")
    for wanted in given.rows:
        begin = time.perf_counter()
        where = describe(given.device)
        rows[wanted] = {"where": where, **makes[wanted](given.device, given.rounds)}
        data = [rows[known] for known in makes if known in rows]
        save(given.output, name, {"rows": data}, markdown(data))
        say(f"{wanted}: {time.perf_counter() - begin:.0f} s in all, saved")
    print(markdown([rows[known] for known in makes if known in rows]))


if __name__ == "__main__":
    main()
