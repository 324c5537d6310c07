"""The weights that matrix products multiply gradients by, read off the nodes' saved tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_places import CountedPlace, format_name

_SAVED = {
    "AddmmBackward0": "mat2",
    "MmBackward0": "mat2",
    "BmmBackward0": "mat2",
    "BaddbmmBackward0": "batch2",
    "LinearBackward0": "weight",
    "ConvolutionBackward0": "weight",
}
_UNKNOWN = object()


class _Convolution(Protocol):
    """What a live node of a convolution says of it."""

    _saved_stride: Sequence[int]
    _saved_transposed: bool
    _saved_groups: int


class Weight(NamedTuple):
    """A saved weight, its row, and how many products one element of ``dX`` sums."""

    place: CountedPlace
    tensor: Tensor
    fan: int


def weights_of(graph: BackwardGraph, nodes: Sequence[object]) -> list[Weight]:
    """The weights of all matrix products that saved one as a plain tensor.

    A tensor behind a saved-tensor hook (checkpointing, offloading) is left alone: reading it would
    run the hook, which may repeat a forward pass. So is one that the node did not need.

    Args:
        graph: the plain graph.
        nodes: its live nodes.
    """
    weights: list[Weight] = []
    for index, name in enumerate(graph.names):
        if name not in _SAVED:
            continue
        tensor = _saved(nodes[index], _SAVED[name])
        if tensor is not None:
            device = tensor.device
            place = CountedPlace(index, "weight", -1, -1, format_name(tensor.dtype), device)
            weights.append(Weight(place, tensor, _fan(name, nodes[index], tensor)))
    return weights


def _saved(node: object, attribute: str) -> Tensor | None:
    raw = getattr(node, f"_raw_saved_{attribute}", None)
    # A torch that cannot say whether there is a hook might run one.
    if raw is None or getattr(raw, "unpack_hook", _UNKNOWN) is not None:
        return None
    try:
        tensor = getattr(node, f"_saved_{attribute}")
    except RuntimeError:  # freed by an earlier backward, or changed in place since
        return None
    return tensor if isinstance(tensor, Tensor) else None


def _fan(name: str, node: object, weight: Tensor) -> int:
    """The number of products summed into one element of the gradient with respect to the input.

    The published code counts every output channel and tap of a convolution; an element is reached
    only by those of its own group, and by one tap in `stride` along each axis.
    """
    if name == "LinearBackward0":
        return weight.shape[0]
    if name != "ConvolutionBackward0":
        return weight.shape[-1]
    saved, taps = cast(_Convolution, node), 1
    for size, stride in zip(weight.shape[2:], saved._saved_stride, strict=True):
        taps *= -(-size // stride)
    channels = weight.shape[1] if saved._saved_transposed else weight.shape[0]
    groups = 1 if saved._saved_transposed else saved._saved_groups
    return max(1, channels // groups) * taps
