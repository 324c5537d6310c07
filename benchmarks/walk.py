"""What a walk of the autograd graph costs, by number of nodes: the first time and every step.

Milliseconds of this thread's own time, the least of several runs. `backward` is the pass over the
same graph of tiny tensors, so nearly all of it is the engine's own walk: no real step is shorter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gradscale.backward import ScalePlan, Walk, rescale, walk
from gradscale.backward.structure import structure_of
from gradscale.backward.topology import TOPOLOGIES


def recurrence(steps: int) -> Tensor:
    w = torch.ones(2, requires_grad=True)
    h = w
    for _ in range(steps):
        h = (h * w).tanh()
    return h.sum()


def transformer_shaped(blocks: int) -> Tensor:
    """Layers with a residual stream and ten parameters each: about 27 nodes a block."""
    x = torch.ones(2, 4, requires_grad=True)
    for _ in range(blocks):
        p = [torch.ones(4, 4, requires_grad=True) for _ in range(10)]
        h = (x @ p[0] + p[1][0]).softmax(-1) @ p[2]
        x = x + (h @ p[3] + p[4][0]) * p[5][:2]
        x = x + ((x @ p[6] + p[7][0]).relu() @ p[8] + p[9][0])
    return x.sum()


def best_ms(run: Callable[[], object], repeats: int, before: Callable[[], None]) -> float:
    times: list[float] = []
    for _ in range(repeats):
        before()
        start = time.thread_time()
        result = run()
        times.append(time.thread_time() - start)
        del result
    return min(times) * 1e3


def forget() -> None:
    TOPOLOGIES.clear()
    structure_of.cache_clear()


def stretch(walked: Walk) -> ScalePlan:
    """Two groups: the quarter nearest the loss above the loss scale, the rest at it."""
    quarter = len(walked.graph) // 4
    exponents = tuple(8 if node < quarter else 0 for node in range(len(walked.graph)))
    return ScalePlan(exponents, walked.graph.signature).pinning(walked.graph)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':12} {'nodes':>7} {'first ms':>9} {'step ms':>8} {'us/node':>8} "
        f"{'backward ms':>12} {'attach ms':>10} {'hooked edges':>13}"
    )
    for name, build, per in (
        ("recurrence", recurrence, 2),
        ("transformer", transformer_shaped, 27),
    ):
        for wanted in options.nodes:
            loss = build(max(1, wanted // per))
            first = best_ms(lambda loss=loss: walk(loss), options.repeats, forget)
            step = best_ms(lambda loss=loss: walk(loss), options.repeats, lambda: None)
            walked = walk(loss)
            plan = stretch(walked)
            start = time.thread_time()
            handle = rescale(walked, plan)
            attach = (time.thread_time() - start) * 1e3
            edges = handle.edges
            handle.remove()
            backward = best_ms(lambda loss=loss: loss.backward(retain_graph=True), 3, lambda: None)
            nodes = len(walked.graph)
            each = step * 1e3 / nodes
            print(
                f"{name:12} {nodes:7} {first:9.2f} {step:8.2f} {each:8.2f} {backward:12.2f} "
                f"{attach:10.2f} {edges:13}"
            )


if __name__ == "__main__":
    main()
