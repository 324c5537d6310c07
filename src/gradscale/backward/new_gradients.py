"""Which gradients a node has just made, so that nothing else can hold their memory."""

from __future__ import annotations

import torch

from gradscale.backward.multiply import REDUCED
from gradscale.backward.structure import Structure
from gradscale.backward.topology import CAST, Edge

_MAKING = {
    "CudnnBatchNormBackward0",
    "MiopenBatchNormBackward0",
    "MulBackward0",
    "NativeBatchNormBackward0",
    "NativeGroupNormBackward0",
    "NativeLayerNormBackward0",
}
"""The nodes of which torch computes every gradient into memory of its own. Many others do, too;
these lead to many small leaves, or are many, and there asking costs more than multiplying."""


def is_new(structure: Structure, edge: Edge) -> bool:
    """Whether the gradient on an edge lies in new memory, and may be multiplied where it is.

    That is so until somebody's hook has seen it. `is_unshared` asks the gradient itself instead,
    which tells of every node but takes longer than to multiply a small one.

    Args:
        structure: of the graph.
        edge: one of its edges.

    Example:
        >>> from gradscale.backward import BackwardGraph
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph = BackwardGraph.of((w.bfloat16() * 2).sum())
        >>> [graph.names[edge.source] for edge in graph.edges if is_new(graph.structure, edge)]
        ['MulBackward0', 'ToCopyBackward0']
    """
    name, arrival = structure.names[edge.source], structure.arrival(edge)
    if arrival.device is None or not _in_one_kernel(arrival.dtype, arrival.device.type):
        return False
    arrives = structure.arrives[edge.source][:1]
    casts = name == CAST and any(before.dtype is not arrival.dtype for before in arrives)
    return casts or name in _MAKING


def _in_one_kernel(dtype: torch.dtype | None, device: str) -> bool:
    """Whether `mul_` by a float32 scalar is exact; see `multiply_gradient`."""
    return dtype is torch.float32 or (device == "cpu" and dtype in REDUCED)
