"""Cost of layer-wise scaling against torch.amp.GradScaler, interleaved in one process.

Run it as ``python benchmarks/layerwise.py`` (a few minutes; only ratios mean anything on a shared
machine). A round is one whole training step of every arm, in changing order, on the same model;
a ratio is the median over rounds, with quartiles. The arms:

    torch again   torch.amp.GradScaler a second time: the noise of this machine
    uniform       layerwise=True between measurements, one group
    planned       a plan of four groups, a quarter of the nodes each, between measurements
    measuring     every step measures and plans
"""

from __future__ import annotations

import json
import statistics
import time
from functools import partial
from typing import Any

import torch

from calendars import NEVER, fix, quiet
from gradscale import GradScaler, Layerwise
from gradscale.backward import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.layerwise.calendar import Calendar
from layerwise_memory import peak_bytes
from layerwise_models import MODELS, Workload
from layerwise_planning import planning_rows
from pairs import bracketed, in_turns, quartiles
from where import arguments, began, describe, in_words, save


def quarters(graph: BackwardGraph, measurements: Measurements) -> dict[int, int]:
    """A plan of four groups at 2^0, 2^-4, 2^-8 and 2^-12, from the loss backward."""
    del measurements
    return {node: -4 * (4 * node // len(graph)) for node in range(len(graph))}


def scalers(device: str) -> dict[str, Any]:
    return {
        "torch": torch.amp.GradScaler(device),
        "torch again": torch.amp.GradScaler(device),
        "uniform": GradScaler(device, layerwise=Layerwise(measure_every=NEVER)),
        # Far from overflow, after which every step would measure.
        "planned": GradScaler(device, init_scale=2.0**10, layerwise=quarters),
        "measuring": GradScaler(device, layerwise=Layerwise(measure_every=1)),
    }


class Bench:
    """One model, one optimizer, and one training step with any scaler."""

    def __init__(self, work: Workload, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, work.dtype
        self.model = work.model().to(device)
        self.batch = tuple(part.to(device) for part in work.batch())
        self.loss = work.loss
        fused = device == "cuda"
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9, fused=fused)
        self.backward_s: list[float] = []

    def now(self) -> float:
        """Seconds: of the clock on a GPU, of this process's own time on a (shared) CPU."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, scaler: Any) -> float:
        """Seconds of one training step."""
        begin = self.now()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, self.dtype):
            loss = self.loss(self.model, self.batch)
        scaled = scaler.scale(loss)
        middle = self.now()
        scaled.backward()
        self.backward_s.append(self.now() - middle)
        scaler.step(self.optimizer)
        scaler.update()
        return self.now() - begin


def ratios(bench: Bench, rounds: int) -> dict[str, Any]:
    """Every arm's step time over torch's in the same round."""
    arms = scalers(bench.device)
    for name, scaler in arms.items():
        for _ in range(5 if name != "torch again" else 1):
            bench.step(scaler)
    # The fast start measures at powers of two; what is timed is a step between measurements.
    for name in ("uniform", "planned"):
        fix(arms[name], measures=False)
        bench.step(arms[name])
        bench.step(arms[name])
    bench.backward_s.clear()

    def step(name: str) -> float:
        assert name in ("torch", "torch again", "measuring") or quiet(arms[name])
        return bench.step(arms[name])

    times = in_turns({name: partial(step, name) for name in arms}, rounds)
    result: dict[str, Any] = {
        "torch_ms": 1e3 * statistics.median(times["torch"]),
        "backward_ms": 1e3 * statistics.median(bench.backward_s),
        "rounds": rounds,
    }
    for name in arms:
        if name != "torch":
            result[name] = quartiles(times[name], times["torch"])
    over = result["measuring"][1] - result["uniform"][1]
    calendar = Calendar().costing(arms["measuring"].layerwise.timing.calendar.cost)
    result["interval"] = calendar.interval
    result["amortised"] = result["uniform"][1] + over / calendar.interval
    uniform, planned = (arms[name].layerwise.tracks.latest for name in ("uniform", "planned"))
    result["nodes"] = len(uniform.graph)
    result["uniform_scales"] = len(uniform.decision.scales)
    cut = planned.plan.exponents
    result["hooked_edges"] = sum(cut[e.source] != cut[e.target] for e in planned.graph.edges)
    return result


def memory(bench: Bench) -> dict[str, float]:
    """Peak memory of a step above what lives between steps, over torch's."""
    arms = scalers(bench.device)
    del arms["torch again"]
    peaks: dict[str, int] = {}
    peak_bytes(lambda: None, bench.device)  # the profiler's own first allocations
    for name, scaler in arms.items():
        for _ in range(3):
            bench.step(scaler)
        if name in ("uniform", "planned"):
            fix(scaler, measures=False)
            bench.step(scaler)
            bench.step(scaler)
        # What lived before and dies within the step would count as negative.
        bench.optimizer.zero_grad(set_to_none=True)
        peaks[name] = peak_bytes(lambda s=scaler: bench.step(s), bench.device)
    ratio = {name: peaks[name] / peaks["torch"] for name in peaks if name != "torch"}
    return {"torch_MiB": peaks["torch"] / 2**20, **ratio}


def markdown(where: dict[str, Any], rows: list[dict[str, Any]], plans: list[dict[str, Any]]) -> str:
    """The tables that go into the documentation."""
    lines = [
        "# Layer-wise scaling against torch.amp.GradScaler", "",
        f"{in_words(where)}.",
        "Step time as a ratio to torch.amp.GradScaler: median of interleaved rounds [quartiles].",
        "`torch again` is the noise.", "",
        "| model | nodes | step ms | backward ms | torch again | uniform | planned (edges) | "
        "measuring | amortised over the default calendar (steps) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        arms = {n: bracketed(*row[n]) for n in ("torch again", "uniform", "planned", "measuring")}
        lines.append(
            f"| {row['model']} | {row['nodes']} | {row['torch_ms']:.1f} | {row['backward_ms']:.1f} "
            f"| {arms['torch again']} | {arms['uniform']} | {arms['planned']} "
            f"({row['hooked_edges']}) | {arms['measuring']} | "
            f"{row['amortised']:.3f} ({row['interval']}) |"
        )
    lines += ["", "Peak memory of a step, as a ratio to torch.amp.GradScaler's.", ""]
    lines += ["| model | torch MiB | uniform | planned | measuring |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        m = row["memory"]
        lines.append(
            f"| {row['model']} | {m['torch_MiB']:.1f} | {m['uniform']:.3f} | {m['planned']:.3f} | "
            f"{m['measuring']:.3f} |"
        )
    lines += [
        "",
        "Milliseconds of one thread for a float16 recurrence, by its number of nodes.",
        "",
    ]
    lines += ["| nodes | " + " | ".join(key for key in plans[0] if key != "nodes") + " |"]
    lines += ["|--:|" + "--:|" * (len(plans[0]) - 1)]
    for plan in plans:
        values = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in plan.values()]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__, rounds=15, threads=1)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--models", nargs="+")
    given = began(parser)
    works: dict[str, Workload] = MODELS[given.device]
    rows: list[dict[str, Any]] = []
    for name in given.models or works:
        bench = Bench(works[name], given.device)
        row = {"model": name, **ratios(bench, given.rounds), "memory": memory(bench)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    plans = planning_rows(given.nodes)
    where = describe(given.device)
    page = markdown(where, rows, plans)
    data = {"where": where, "rows": rows, "planning": plans}
    save(given.output, f"layerwise_{given.device}", data, page)
    print(page)


if __name__ == "__main__":
    main()
