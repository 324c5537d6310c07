"""Time, memory and losses at the sizes that people train, against torch.amp.GradScaler.

    python benchmarks/real_size.py              on a GPU; 9 minutes at most
    python benchmarks/real_size.py --compile    the same under torch.compile
    python benchmarks/real_size.py --tiny       the same code on toys; the figures mean nothing
    python benchmarks/real_size.py --page       docs/results.md from benchmarks/results

Networks: ResNet-50, GPT-2 of 124 M, a U-Net at 512 x 512; batches are made up and can be learned.
Ways: float32, TF32, bf16, fp16 under torch's scaler, ours, and layer-wise; models stored in
float16; fused optimizers first, then foreach. Every row is a line of ``real_size-cuda.jsonl``,
written when it ends; what stands there or in benchmarks/results is not measured again, so a run
that was stopped goes on. Exit status: 0 if all is there, 3 if time was up, 1 if a row failed or a
step of ours waited for the device where torch's does not.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from real.page import page, write_section
from real.row import WARM, Build, Effort, at_work, measured
from real.rows import Budget, Key, Rows, read
from real.tasks import FULL, TINY, Batch, Task
from real.trainer import Trainer, batches_of
from real.ways import BASE, WAYS, Way
from where import RESULTS, arguments, began, describe

BY_NAME = {way.name: way for way in WAYS}
BUILD = Path(__file__).parents[1] / "build"


def options() -> argparse.ArgumentParser:
    parser = arguments((__doc__ or "").splitlines()[0], rounds=11, threads=1)
    parser.add_argument("--tiny", action="store_true", help="toys, to try the code")
    parser.add_argument("--compile", action="store_true", help="models under torch.compile")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row begins too late to end")
    parser.add_argument("--steps", type=int, default=50, help="whose loss is kept")
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in FULL])
    parser.add_argument("--ways", nargs="*", default=list(BY_NAME), choices=list(BY_NAME))
    parser.add_argument("--page", action="store_true", help="only write docs/results.md")
    return parser


def planned(given: argparse.Namespace) -> Iterator[Key]:
    """All rows, the most telling ones first."""
    for fused in (True,) if given.compile else (True, False):
        for task in given.tasks:
            for way in given.ways:
                yield Key(task, way, fused, given.compile)


class Bench:
    """Makes rows; what several of them need is made once."""

    def __init__(self, tasks: dict[str, Task], given: argparse.Namespace) -> None:
        self._tasks, self._given = tasks, given
        self._batches: tuple[str, list[Batch]] = ("", [])
        self._base: tuple[Key, Trainer] | None = None

    def row(self, key: Key) -> dict[str, Any]:
        """The figures of a row, or what went wrong."""
        given = self._given
        # The course of losses is the same under either kernel, but for the last bits.
        steps = given.steps if key.fused else WARM + 10
        try:
            # What a layer-wise scaler prepares for compiled models must not outlive it.
            gc.collect()
            if given.device == "cuda":
                torch.cuda.empty_cache()
            base = self._based(key)
            effort = Effort(steps, given.rounds, 0.02 if given.tiny else 0.2)
            return measured(self._build(key, BY_NAME[key.way]), base, effort, given.device)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}

    def _based(self, key: Key) -> Trainer:
        """A warm trainer with torch's scaler, the same for rows that differ in the way alone."""
        wanted = key._replace(way=BASE.name)
        if self._base is None or self._base[0] != wanted or key.compiled:
            self._base = None
            if key.compiled:
                torch._dynamo.reset()
            self._base = wanted, at_work(self._build(key, BASE))
        return self._base[1]

    def _build(self, key: Key, way: Way) -> Build:
        task, device = self._tasks[key.task], self._given.device
        if self._batches[0] != key.task:
            self._batches = key.task, batches_of(task, device)
        _, batches = self._batches
        return partial(
            Trainer,
            task,
            way,
            fused=key.fused,
            compiled=key.compiled,
            batches=batches,
            device=device,
        )


def main() -> int:
    parser = options()
    given = began(parser)
    if given.page:
        write_section(read(RESULTS / "real_size-cuda.jsonl"))
        return 0
    if given.device == "cpu" and not given.tiny:
        parser.error("there is no GPU here. Pass `--tiny` to try the code on toys.")
    tasks = {task.name: task for task in (TINY if given.tiny else FULL)}
    if unknown := set(given.tasks) - set(tasks):
        parser.error(f"no such task: {', '.join(sorted(unknown))}. Pass some of {list(tasks)}.")
    name = f"real_size-{'tiny-' * given.tiny}{given.device}"
    if given.tiny and given.output == RESULTS:
        given.output = BUILD
    torch.backends.cudnn.benchmark = True
    return run(given, tasks, name)


def run(given: argparse.Namespace, tasks: dict[str, Task], name: str) -> int:
    """Measures what is missing while there is time, and writes the page of all that is there."""
    where = describe(given.device)
    rows = Rows(given.output / f"{name}.jsonl", RESULTS / f"{name}.jsonl", where["hardware"])
    budget, bench, status = Budget(60 * given.minutes), Bench(tasks, given), 0
    for key in rows.missing(planned(given)):
        if not budget.fits_another():
            print(f"time is up, {budget.left:.0f} s left: the next call goes on")
            status = 3
            break
        begin = time.monotonic()
        rows.add(key, {**bench.row(key), "where": where})
        budget.took(time.monotonic() - begin)
        print(f"{said(rows.rows[key])}; {time.monotonic() - begin:.0f} s", flush=True)
    (given.output / f"{name}.md").write_text(page(list(rows.rows.values())))
    wrong = [row for row in rows.rows.values() if "error" in row or waits(row)]
    for row in wrong:
        print("wrong:", said(row))
    return 1 if wrong else status


def said(row: dict[str, Any]) -> str:
    """A row in a line."""
    kernel = f"{'fused' if row['fused'] else 'foreach'}{', compiled' * row['compiled']}"
    name = f"{row['task']}, {row['way']}, {kernel}"
    if "error" in row:
        return f"{name}: {row['error']}"
    reads = row["host_reads"], row["host_reads_torch"]
    return f"{name}: {row['ms']:.2f} ms, ratio {row['ratio'][1]:.3f}, host reads {reads}"


def waits(row: dict[str, Any]) -> bool:
    """Whether a step of ours reads on the host more often than one under torch's scaler."""
    reads = row["host_reads"]
    return reads is not None and BY_NAME[row["way"]].ours and reads > row["host_reads_torch"]


if __name__ == "__main__":
    raise SystemExit(main())
