"""Run on every rank: the counts of a captured pass, with moments behind them, are merged."""

from __future__ import annotations

import torch
import torch.distributed as dist

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_rows import AMAX, WIDTH
from gradscale.captured.traced_counts import CountedPass


def merged(rank):
    """Rows and moments after the merge, of ranks whose rows are multiples of each other."""
    graph = BackwardGraph.of(torch.ones(2, requires_grad=True).sum())
    rows = torch.arange(2 * (WIDTH + 2)).view(2, -1) * (rank + 1)
    rows[:, WIDTH:] = torch.full((2, 2), 0.5 + rank, dtype=torch.float64).view(torch.int64)
    counted = CountedPass(graph, (0,) * len(graph), torch.ones(()), None, rows)
    counted.reduce([dist.group.WORLD])
    expected = 3 * torch.arange(2 * (WIDTH + 2)).view(2, -1)[:, :WIDTH]
    expected[:, AMAX] = expected[:, AMAX] // 3 * 2
    return torch.equal(counted._rows, expected), counted._sums.tolist()
