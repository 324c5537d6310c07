"""What autograd would call the node whose backward pass was traced."""

from __future__ import annotations

from torch import fx

from gradscale.compiled.linearity import operator_name

SUM = "AddBackward0"
"""A sum of gradients, and a gradient that goes several ways: what an addition passes on."""

CAST = "ToCopyBackward0"

_EAGER = {
    "_native_batch_norm_legit": "native_batch_norm",
    "_native_batch_norm_legit_functional": "native_batch_norm",
    "_batch_norm_with_update_functional": "native_batch_norm",
    "nll_loss_forward": "nll_loss",
    "nll_loss2d_forward": "nll_loss2d",
    "convert_element_type": "_to_copy",
}
"""Operators that tracing puts in the place of the one whose node eager code has."""


def traced_names(graph: fx.Graph) -> dict[int, str]:
    """By sequence number the names of the autograd nodes of a joint graph.

    A forward operator is traced before the backward operators that share its number.
    """
    names: dict[int, str] = {}
    for node in graph.nodes:
        number = node.meta.get("seq_nr")
        if number is not None and node.op == "call_function":
            names.setdefault(number, name_of(node))
    return names


def name_of(node: fx.Node) -> str:
    """A name for the autograd node that this operator is, or is the backward pass of.

    What a decomposition left of an operator is called after the operator.
    """
    original = node.meta.get("original_aten")
    schema = getattr(original, "_schema", None)
    name = operator_name(node) if schema is None else schema.name.partition("::")[2]
    if not name:
        name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    for ending in ("_backward_data", "_backward"):
        name = name.removesuffix(ending)
    return _camel(_EAGER.get(name, name)) + "Backward0"


def is_cast(node: fx.Node) -> bool:
    """Whether the program itself converts here, not a decomposition of something else."""
    return name_of(node) == CAST and operator_name(node) in ("_to_copy", "convert_element_type")


def _camel(name: str) -> str:
    words = [word for word in name.split("_") if word]
    joined = "".join(word[0].upper() + word[1:] for word in words)
    return "".join(
        letter.upper() if place and joined[place - 1].isdigit() else letter
        for place, letter in enumerate(joined)
    )
