"""A function of a batch, recorded once as a CUDA graph and replayed on static tensors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch

from gradscale.captured.static_batch import StaticBatch
from gradscale.captured.step_result import Captured, StepResult


class CudaGraph:
    """One training step as a graph: copying the batch and launching it is all the host does.

    Args:
        function: the step; called once, while it is recorded and nothing runs.
        batch: of the shapes of all batches to come.
        stream: on which the step was warmed up. The nodes that accumulate gradients belong to the
            stream they first ran on, so the graph is recorded on the same one.
    """

    def __init__(
        self, function: Captured, batch: Sequence[object], stream: torch.cuda.Stream
    ) -> None:
        self._batch = StaticBatch(batch, stream.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._result = function(self._batch.tensors)

    def __call__(self, batch: Sequence[object]) -> StepResult:
        """Runs the recorded step on `batch`; all but the loss is overwritten by the next call."""
        self._batch.fill_(batch)
        self._graph.replay()
        # The next replay writes into the graph's own tensors, and callers keep losses.
        return self._result._replace(loss=self._result.loss.clone())


@contextmanager
def on_side_stream(stream: torch.cuda.Stream) -> Generator[None, None, None]:
    """Runs what is within on `stream`, after what was queued before and before what comes after."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
