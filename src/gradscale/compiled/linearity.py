"""Which operators of a traced backward pass are linear in the gradients that they receive.

torch wrote every autograd node to be linear in what arrives, but a traced graph shows single
operators, a user's among them. What is not listed here counts as not linear, and stays at the loss
scale.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import cast

from torch import fx
from torch._ops import OpOverload

_FIRST = """
    _conj _fft_c2c _fft_c2r _fft_r2c _neg_view _reshape_alias _to_copy _unsafe_index
    _unsafe_view alias as_strided broadcast_in_dim chunk clone conj_physical contiguous
    convert_element_type cumsum detach diag_embed diagonal expand flatten flip gather imag index
    index_select lift_fresh mean movedim narrow neg permute pixel_shuffle pixel_unshuffle real
    repeat repeat_interleave reshape resolve_conj resolve_neg roll select slice split
    split_with_sizes squeeze sum sum_to_size t take_along_dim tile to trace transpose tril triu
    unbind unfold unsqueeze view view_as_complex view_as_real view_of
"""

_TERMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_FIRST.split(), ("",)),
    "_unsafe_index_put": ("self", "values"),
    "_unsafe_masked_index": ("self", "fill"),
    "_unsafe_masked_index_put_accumulate": ("self", "values"),
    "add": ("self", "other"),
    "as_strided_scatter": ("self", "src"),
    "cat": ("tensors",),
    "constant_pad_nd": ("self", "value"),
    "copy": ("src",),
    "diagonal_scatter": ("self", "src"),
    "div": ("self",),
    "index_add": ("self", "source"),
    "index_copy": ("self", "source"),
    "index_put": ("self", "values"),
    "lerp": ("self", "end"),
    "linalg_solve_triangular": ("B",),
    "masked_fill": ("self", "value"),
    "masked_scatter": ("self", "source"),
    "rsub": ("self", "other"),
    "scatter": ("self", "src", "value"),
    "scatter_add": ("self", "src"),
    "select_scatter": ("self", "src"),
    "slice_scatter": ("self", "src"),
    "stack": ("tensors",),
    "sub": ("self", "other"),
    "where": ("self", "other"),
}
"""Operators that add up these arguments, or place them beside each other; "" is the first."""

_FACTORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "addbmm": (("self",), ("batch1", "batch2")),
    "addcmul": (("self",), ("tensor1", "tensor2")),
    "addmm": (("self",), ("mat1", "mat2")),
    "addmv": (("self",), ("mat", "vec")),
    "baddbmm": (("self",), ("batch1", "batch2")),
    "bmm": ((), ("self", "mat2")),
    "convolution": (("bias",), ("input", "weight")),
    "dot": ((), ("self", "tensor")),
    "linear": (("bias",), ("input", "weight")),
    "matmul": ((), ("self", "other")),
    "mm": ((), ("self", "mat2")),
    "mul": ((), ("self", "other")),
    "mv": ((), ("self", "vec")),
    "outer": ((), ("self", "vec2")),
}
"""Operators that add terms to a product: one of its factors may be a gradient."""

_SHAPE_ONLY = """
    empty_like empty_permuted full_like new_empty new_empty_strided new_full new_ones new_zeros
    ones_like rand_like randn_like sym_numel sym_size sym_storage_offset sym_stride zeros_like
"""
SHAPE_ONLY = frozenset(_SHAPE_ONLY.split())
"""Operators that ask a tensor for its shape and dtype, not for its values."""

_ZERO = {"empty", "empty_like", "new_empty", "new_empty_strided", "new_zeros", "zeros"} | {
    "zeros_like", "empty_strided", "empty_permuted"
}  # fmt: skip
_FILLED = {"full", "full_like", "new_full", "scalar_tensor"}
_SAME = {"alias", "clone", "convert_element_type", "detach", "expand", "permute", "view"} | {
    "_to_copy", "_unsafe_view", "reshape", "squeeze", "t", "transpose", "unsqueeze"
}  # fmt: skip


def operator_name(node: fx.Node) -> str:
    """What torch calls the operator of a node, without namespace and overload; "" of a stranger.

    Only operators of torch itself have a name here: what another library registers under the same
    one may do anything.
    """
    target = node.target
    if isinstance(target, OpOverload) and target.namespace in ("aten", "prims"):
        return target._schema.name.partition("::")[2]
    return ""


def is_linear(node: fx.Node, gradients: Collection[fx.Node]) -> bool:
    """Whether `2**k` times these inputs gives `2**k` times the output, whatever the other inputs.

    Args:
        node: an operator of a traced graph, with at least one of `gradients` among its inputs.
        gradients: the nodes that hold gradients.
    """
    if node.target is operator.getitem:
        return True
    name = operator_name(node)
    given = _arguments(node) if name else {}
    if "_backward" in name:
        # Torch wrote these to be linear in what it calls a gradient.
        terms, factors = tuple(key for key in given if key.startswith("grad")), ()
        given = {key: _nodes_only(value) for key, value in given.items()}
    elif name in _FACTORS:
        terms, factors = _FACTORS[name]
    elif name in _TERMS:
        terms, factors = _TERMS[name], ()
    else:
        return False
    return _adds_up(given, terms, factors, gradients)


def _adds_up(
    given: Mapping[str, object],
    terms: tuple[str, ...],
    factors: tuple[str, ...],
    gradients: Collection[fx.Node],
) -> bool:
    """Whether every term is a gradient or zero, the product included, and nothing else is one."""
    if terms == ("",):
        terms = tuple(given)[:1]
    inside = {key for key, value in given.items() if any(n in gradients for n in _nodes(value))}
    # `copy` writes over `self`, so what was there need not be zero.
    overwritten = {"self"} if "src" in terms and "self" not in terms else set[str]()
    if not inside <= {*terms, *factors, *overwritten}:
        return False
    if factors and len(inside.intersection(factors)) != 1:
        return False
    parts = [part for key in terms if key in given for part in _parts(given[key])]
    return all(part in gradients if isinstance(part, fx.Node) and not is_zero(part)
               else is_zero(part) for part in parts)  # fmt: skip


def is_zero(value: object) -> bool:
    """Whether an argument is nothing, the number 0, or a tensor of zeros that the graph makes.

    Memory that is about to be overwritten counts as zero.
    """
    if not isinstance(value, fx.Node):
        return value is None or (isinstance(value, int | float) and value == 0)
    name = operator_name(value)
    if name in _SAME:
        return is_zero(value.args[0])
    if name in _FILLED:
        given = _arguments(value)
        return given.get("fill_value", given.get("s")) == 0
    return name in _ZERO


def _arguments(node: fx.Node) -> dict[str, object]:
    """The arguments of an operator by their names, in the order of its schema."""
    names = [argument.name for argument in cast(OpOverload, node.target)._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _parts(value: object) -> list[object]:
    return list(cast(Sequence[object], value)) if isinstance(value, list | tuple) else [value]


def _nodes(value: object) -> Iterator[fx.Node]:
    return (part for part in _parts(value) if isinstance(part, fx.Node))


def _nodes_only(value: object) -> list[object]:
    """Masks and sizes of a backward operator are no terms, whatever they are called."""
    return list(_nodes(value))
