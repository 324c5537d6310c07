"""Does layer-wise scaling help? Six tasks, three formats, seven ways to choose the scales.

Run it as ``python experiments/layerwise_table.py`` from the repository root (``--quick`` for one
seed and few steps; about half an hour of a core otherwise), then ``layerwise_markdown.py``. Every
format of every task is written as soon as it is done. `Adaptive` runs with the first seed only.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscale
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from layerwise_tasks import TASKS, Task
from layerwise_truth import arriving, cosines, lost_shares, true_pass, weight_gradients

RESULTS = Path(__file__).parent / "results"
FORMATS = ("fp16", "e5m2", "e4m3")
EXPONENTS = range(-4, 41, 2)
Scaler = Any


def strategies(best: int) -> dict[str, Callable[[], Scaler]]:
    """Ways to choose the scales; `best` is the exponent of the best constant."""
    static = gradscale.Static(2.0**best)
    return {
        "none": lambda: torch.amp.GradScaler("cpu", enabled=False),
        "torch GradScaler": lambda: torch.amp.GradScaler("cpu"),
        "best constant": lambda: gradscale.GradScaler("cpu", policy=static),
        "Windows": lambda: gradscale.GradScaler("cpu", layerwise=True),
        "Adaptive product": lambda: _adaptive("product"),
        "Adaptive gradient": lambda: _adaptive("gradient"),
        "Adaptive output": lambda: _adaptive("output"),
    }


def _adaptive(rule: Any) -> Scaler:
    return gradscale.GradScaler("cpu", layerwise=gradscale.Adaptive(rule=rule))


@dataclass
class Run:
    """One training run."""

    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    lost_mean: list[float] = field(default_factory=list)
    lost_worst: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)
    report: str = ""
    groups: int = 1

    @property
    def final(self) -> float:
        """The mean loss of the last eighth of the steps."""
        return statistics.fmean(self.losses[-max(1, len(self.losses) // 8) :])


def emulating(format: str | None) -> AbstractContextManager[object]:
    """Products in float16 forward and `format` backward; as they are for None."""
    return nullcontext() if format is None else emulate(forward="fp16", backward=format)


def autocasting(format: str | None) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.float16, enabled=format is not None)


def train(task: Task, seed: int, steps: int, format: str | None, scaler: Scaler) -> Run:
    """One run; probed against the truth early, half-way and at the end."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model)
    probes = [steps // 8, steps // 2, steps - 2] if format else []
    run = Run()
    for step in range(steps):
        batch = task.batch(seed, step)
        probing = bool(probes) and step >= probes[0]
        true = true_pass(model, lambda m, b=batch: task.loss(m, b)) if probing else None
        finite, found = one_step(task, model, optimizer, scaler, batch, format, run)
        if not finite and scaler.is_enabled():
            run.skipped += 1
        if true is not None and format is not None and (finite or not scaler.is_enabled()):
            probes.pop(0)
            judge(run, true, (found, weight_gradients(model)), format)
    layerwise = getattr(scaler, "layerwise", None)
    if layerwise is not None:
        run.report = str(layerwise.report())
        track = layerwise.tracks.latest
        if track is not None and track.decision is not None:
            run.groups = len(track.decision.scales)
    return run


def one_step(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Scaler,
    batch: Any,
    format: str | None,
    run: Run,
) -> tuple[bool, dict[str, Tensor]]:
    """One training step; whether its gradients were finite, and what arrived at the layers."""
    optimizer.zero_grad()
    with emulating(format), arriving(model) as found:
        with autocasting(format):
            loss = task.loss(model, batch)
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    scaler.step(optimizer)
    scaler.update()
    run.losses.append(float(loss.detach()))
    return finite, found


def judge(run: Run, true: Any, seen: Any, format: str) -> None:
    """Notes how far a step was from the truth."""
    shares = lost_shares(true[0], seen[0], FloatFormat.of(format))
    angles = cosines(true[1], seen[1])
    run.lost_mean.append(statistics.fmean(shares))
    run.lost_worst.append(max(shares))
    run.cosine.append(statistics.fmean(angles))
    run.astray.append(sum(angle < 0.9 for angle in angles) / len(angles))


def sweep(
    task: Task, model: nn.Module, batch: Any, format: str, exponents: Sequence[int]
) -> dict[int, float]:
    """For each exponent the mean cosine of a single scale at these weights; NaN on overflow."""
    _, true = true_pass(model, lambda m: task.loss(m, batch))
    result: dict[int, float] = {}
    for exponent in exponents:
        model.zero_grad()
        with emulating(format):
            with autocasting(format):
                loss = task.loss(model, batch)
            (loss * 2.0**exponent).backward()
        found = weight_gradients(model)
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
        result[exponent] = statistics.fmean(cosines(true, found)) if finite else math.nan
    model.zero_grad()
    return result


def float32_run(task: Task, steps: int) -> Generator[tuple[int, nn.Module, Any]]:
    """Each step of a float32 run of seed 0 before it is taken: its number, model and batch."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    for step in range(steps):
        batch = task.batch(0, step)
        yield step, model, batch
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()


def best_constant(task: Task, steps: int, format: str) -> tuple[int, dict[int, float]]:
    """The exponent with the best mean cosine over three moments of a float32 run of seed 0."""
    moments = {0, steps // 2, steps - 1}
    total: dict[int, float] = dict.fromkeys(EXPONENTS, 0.0)
    for step, model, batch in float32_run(task, steps):
        if step in moments:
            for exponent, cosine in sweep(task, model, batch, format, EXPONENTS).items():
                total[exponent] += cosine / len(moments)
    return best_of(total), total


def best_of(found: dict[int, float], spare: int = 4) -> int:
    """The middle of the exponents whose cosine is within 0.001 of the best.

    Those less than `spare` octaves below one that overflowed are left out: other batches would.
    """
    over = min((k for k, cosine in found.items() if math.isnan(cosine)), default=math.inf)
    safe = {k: cosine for k, cosine in found.items() if k <= over - spare}
    good = [k for k, cosine in safe.items() if cosine >= max(safe.values()) - 1e-3]
    return good[len(good) // 2]


def versions() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def spread(values: Sequence[float]) -> list[float]:
    """Mean, smallest and largest."""
    return [statistics.fmean(values), min(values), max(values)]


def cell(runs: Sequence[Run]) -> dict[str, Any]:
    """One row: three seeds of one strategy."""
    return {
        "loss": spread([run.final for run in runs]),
        "skipped": spread([run.skipped for run in runs]),
        "scales": spread([run.groups for run in runs]),
        "lost_mean": spread([statistics.fmean(run.lost_mean or [1.0]) for run in runs]),
        "lost_worst": spread([max(run.lost_worst or [1.0]) for run in runs]),
        "cosine": spread([statistics.fmean(run.cosine or [0.0]) for run in runs]),
        "astray": spread([statistics.fmean(run.astray or [1.0]) for run in runs]),
        "report": runs[0].report,
        "runs": [asdict(run) | {"report": ""} for run in runs],
    }


def one_task(
    name: str,
    steps: int,
    seeds: Sequence[int],
    only: Sequence[str],
    formats: Sequence[str],
    file: Path,
) -> None:
    """Every format and strategy of one task; written after each format.

    With `only` the other strategies are kept as they are in the file.
    """
    task, start = TASKS[name], time.time()
    off = torch.amp.GradScaler("cpu", enabled=False)
    result: dict[str, Any] = {"task": name, "about": task.about, "formats": {}}
    if only:
        result = json.loads(file.read_text())
    else:
        baseline = [train(task, seed, steps, None, off) for seed in seeds]
        result["fp32"] = {"loss": spread([run.final for run in baseline])}
    result |= {"steps": steps, "seeds": list(seeds), **versions()}
    for format in formats:
        best, found = best_constant(task, steps, format)
        rows: dict[str, Any] = result["formats"].get(format, {"rows": {}})["rows"]
        for label, make in strategies(best).items():
            if only and label not in only:
                continue
            chosen = seeds[:1] if label.startswith("Adaptive") else seeds
            row = cell([train(task, seed, steps, format, make()) for seed in chosen])
            rows[label] = row
            print(
                f"{time.time() - start:6.0f}s {name:24} {format} {label:18} "
                f"loss {row['loss'][0]:.3f} lost {row['lost_mean'][0]:.3f} "
                f"cosine {row['cosine'][0]:.3f} skipped {row['skipped'][0]:.1f}",
                flush=True,
            )
        result["formats"][format] = {"best": best, "sweep": found, "rows": rows}
        file.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed and a quarter of the steps")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--only", nargs="+", default=[], help="run these strategies again")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.tasks:
        steps = TASKS[name].steps // (4 if options.quick else 1)
        file = options.out / f"layerwise_{name.replace(',', '').replace(' ', '_')}.json"
        seeds = range(1 if options.quick else options.seeds)
        one_task(name, steps, seeds, options.only, options.formats, file)


if __name__ == "__main__":
    main()
