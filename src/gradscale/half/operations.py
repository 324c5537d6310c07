"""What a half-precision model computes in float32 wherever it stands: softmax, losses, reductions.

A model does not end at its logits: many compute their own loss. The operations are those of CUDA
autocast's float32 list, which nobody who trains under autocast has to think about, and means and
variances, whose results autocast rounds. Where their float32 results meet half-precision operands
in a product, they are rounded for it, as autocast does; a product of float32 alone stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

from gradscale.emulation import cuda_lists

Function = Callable[..., object]
Args = tuple[object, ...]
Kwargs = Mapping[str, object]


def _base(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _functions(names: Iterable[str]) -> frozenset[Function]:
    """All that torch offers by these names: functions, methods, those of `torch.nn.functional`."""
    places = (torch, Tensor, nn.functional, torch.special, torch.linalg)
    return frozenset(
        function
        for name in names
        for place in places
        if callable(function := getattr(place, name, None))
    )


# Interpolation is left out: it averages a handful of neighbours, and its results are large.
_LISTED = {name for name in _base(cuda_lists.FLOAT32) if "upsample" not in name}
FLOAT32 = _functions(
    (
        *_LISTED, "__pow__", "__rpow__", "cross_entropy", "gaussian_nll_loss", "ctc_loss",
        "binary_cross_entropy", "multilabel_soft_margin_loss", "triplet_margin_with_distance_loss",
        "normalize", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "matrix_norm",
    )
)  # fmt: skip
"""Half-precision operands are cast to float32."""

FLOAT32_RESULT = _functions(
    (*_base(cuda_lists.FLOAT32_RESULT), "softmin", "mean", "nansum", "nanmean")
)
"""Given ``dtype=torch.float32``, which spares the copy."""

PRODUCTS = _functions(
    (
        *_base(cuda_lists.LOWER_PRECISION), "__matmul__", "__rmatmul__", "bilinear", "dot", "vdot",
        "inner", "tensordot", "multi_dot", "conv_transpose2d", "conv_transpose3d", "grid_sample",
        "multi_head_attention_forward", "lerp",
    )
)  # fmt: skip
"""Operands must have one dtype: half precision, unless a float32 weight is among them."""

WRITES = _functions(
    (
        "__setitem__", "index_put_", "index_put", "index_add_", "index_add", "index_copy_",
        "index_copy", "scatter_", "scatter", "scatter_add_", "scatter_add", "scatter_reduce_",
        "scatter_reduce", "masked_scatter_", "masked_scatter",
    )
)  # fmt: skip
"""What is written must have the dtype of what it is written to."""


class Float32Where(TorchFunctionMode):
    """While it is entered, the operations above are computed as said above.

    Args:
        format: the half-precision format; tensors of others are left alone.

    Example:
        >>> logits = torch.ones(2, 2, dtype=torch.float16)
        >>> with Float32Where(torch.float16):
        ...     logits.softmax(-1).dtype, (logits.softmax(-1) @ logits).dtype
        (torch.float32, torch.float16)
    """

    def __init__(self, format: torch.dtype) -> None:
        super().__init__()
        self.format = format

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> object:
        """Calls `func`, with other dtypes where it is listed."""
        given = {} if kwargs is None else kwargs
        prepare = _PREPARED.get(func)
        if prepare is not None:
            args, given = prepare(self, args, given)
        return func(*args, **given)

    def float32_result(self, args: Args, given: Kwargs) -> tuple[Args, Kwargs]:
        """For what reduces half precision, where nobody has said what the result should be."""
        first = args[0] if args else given.get("input")
        asked = given.get("out") is not None or given.get("dtype") is not None
        half = isinstance(first, Tensor) and first.dtype == self.format
        if not half or asked or any(isinstance(each, torch.dtype) for each in args):
            return args, given
        return args, {**given, "dtype": torch.float32}

    def float32(self, args: Args, given: Kwargs) -> tuple[Args, Kwargs]:
        """For what reads float32, unless it writes into something of the caller's."""
        if given.get("out") is not None:
            return args, given
        return self._cast(self.format, torch.float32, args, given)

    def one_dtype(self, args: Args, given: Kwargs) -> tuple[Args, Kwargs]:
        """For products, whose operands must agree."""
        operands = list(_tensors((args, given)))
        dtypes = {each.dtype for each in operands}
        if self.format not in dtypes or torch.float32 not in dtypes:
            return args, given
        kept = any(isinstance(each, nn.Parameter) and _wide(each) for each in operands)
        if kept:  # it stays in float32 because somebody wanted that
            return self._cast(self.format, torch.float32, args, given)
        return self._cast(torch.float32, self.format, args, given)

    def as_written(self, args: Args, given: Kwargs) -> tuple[Args, Kwargs]:
        """For what is written into a tensor, whose dtype it must have."""
        target = cast(Tensor, args[0]).dtype
        if target not in (self.format, torch.float32):
            return args, given
        other = torch.float32 if target == self.format else self.format
        return self._cast(other, target, args, given)

    def _cast(
        self, source: torch.dtype, target: torch.dtype, args: Args, given: Kwargs
    ) -> tuple[Args, Kwargs]:
        def one(tensor: Tensor) -> Tensor:
            return tensor.to(target) if tensor.dtype == source else tensor

        return tree_map_only(Tensor, one, (args, given))


def _tensors(value: object) -> Iterator[Tensor]:
    return (each for each in tree_iter(value) if isinstance(each, Tensor))


def _wide(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32


_PREPARED: dict[Function, Callable[[Float32Where, Args, Kwargs], tuple[Args, Kwargs]]] = {
    **dict.fromkeys(WRITES, Float32Where.as_written),
    **dict.fromkeys(PRODUCTS, Float32Where.one_dtype),
    **dict.fromkeys(FLOAT32, Float32Where.float32),
    **dict.fromkeys(FLOAT32_RESULT, Float32Where.float32_result),
}
