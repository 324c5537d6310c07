"""Views of gradients that torch computes once for several autograd nodes, given back to each."""

from __future__ import annotations

from torch import fx

from gradscale.compiled.gradients_of import TracedGradients
from gradscale.compiled.linearity import operator_name

_VIEWS = frozenset(
    "alias as_strided detach expand permute squeeze t transpose unsqueeze view".split()
)


def unshare_views(graph: fx.Graph) -> None:
    """Copies each view of a gradient that its own autograd node and others read, for the others.

    Where two nodes receive the same gradient and both transpose it, torch keeps one transpose. Read
    by the other, it would look like a gradient that the one sends to the other.

    Args:
        graph: a traced backward pass; changed in place, not in what it computes.
    """
    held = TracedGradients(graph).held
    # From the last view up: the copy of one reads the original of the one before, which is copied
    # in turn.
    for node in reversed(held):
        if operator_name(node) not in _VIEWS:
            continue
        own = node.meta.get("seq_nr")
        readers: dict[object, list[fx.Node]] = {}
        for reader in node.users:
            readers.setdefault(reader.meta.get("seq_nr"), []).append(reader)
        if own is None or own not in readers:
            continue
        for number, others in readers.items():
            if number not in (own, None):
                _copy_for(graph, node, number, others)


def _copy_for(graph: fx.Graph, node: fx.Node, number: object, readers: list[fx.Node]) -> None:
    with graph.inserting_before(node.next):
        copied = graph.node_copy(node, lambda argument: argument)
    copied.meta["seq_nr"] = number
    for reader in readers:
        reader.replace_input_with(node, copied)
