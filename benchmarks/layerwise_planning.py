"""What walking, measuring and planning cost by the number of nodes; tensors of two elements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gradscale.backward import ScalePlan, rescale, walk
from gradscale.backward.measure import measure
from gradscale.plans import Situation, Windows
from pairs import without_collection
from walk import forget

FALLS = 60


def recurrence(nodes: int) -> Tensor:
    """A float16 recurrence of about `nodes` nodes whose gradient falls by 2^-60 on the way."""
    w = torch.full((2,), 1.0, dtype=torch.float16, requires_grad=True)
    h = factor = w * 1.0
    every = max(1, nodes // FALLS)
    for step in range(nodes):
        h = h * factor
        if step % every == 0:
            h = (h - h.detach()) * 0.5 + h.detach()
    return h.float().sum()


def ms(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return (time.thread_time() - start) * 1e3


def best(run: Callable[[], object], repeats: int = 3) -> float:
    return min(ms(run) for _ in range(repeats))


def planning_rows(sizes: Sequence[int], repeats: int = 3) -> list[dict[str, float | int]]:
    """One row for each number of nodes: of each time the best, undisturbed by the collector."""
    rows: list[dict[str, float | int]] = []
    for size in sizes:
        with without_collection():
            taken = [_row(size) for _ in range(repeats)]
        rows.append({key: min(row[key] for row in taken) for key in taken[0]})
    return rows


def _row(size: int) -> dict[str, float | int]:
    loss = recurrence(size)
    forget()
    first = ms(lambda: walk(loss))
    again = best(lambda: walk(loss))
    backward = best(partial(loss.backward, retain_graph=True))
    walked = walk(loss)
    uniform = ScalePlan.uniform(walked.graph)
    measure(walked, uniform.exponents, 2.0**15).remove()  # as after the first measurement
    hooked = time.thread_time()
    measuring = measure(walked, uniform.exponents, 2.0**15, sampled=True)
    hook = (time.thread_time() - hooked) * 1e3
    measured = ms(partial((loss * 2.0**15).backward, retain_graph=True))
    measured += ms(measuring.fetch)  # counts what still waits
    fetched = time.thread_time()
    found = measuring.result()
    fetch = (time.thread_time() - fetched) * 1e3
    situation = Situation(walked.graph, found, uniform, 15)
    decision = Windows().decide(situation)
    plan = best(lambda: Windows().decide(situation))
    start = time.thread_time()
    handle = rescale(walked, decision.plan)
    attach = (time.thread_time() - start) * 1e3
    handle.remove()
    return {
        "nodes": len(walked.graph), "first walk": first, "walk": again, "backward": backward,
        "hook": hook, "measured backward": measured, "fetch": fetch, "plan": plan,
        "attach": attach, "scales": len(decision.scales), "hooked edges": handle.edges,
    }  # fmt: skip
