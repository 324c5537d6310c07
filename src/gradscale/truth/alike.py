"""The same random numbers whatever the precision: dropout masks that two passes share.

On an accelerator, and inside of fused operations everywhere, which elements dropout keeps depends
on the dtype, although the seed is the same. Two passes that dropped different elements cannot be
compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradscale.truth.wider import NARROW

# For each function the place of its dropout probability among its arguments, and its keyword.
_INSIDE: dict[Callable[..., object], tuple[int, str]] = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    F.multi_head_attention_forward: (10, "dropout_p"),
    torch.lstm: (5, "dropout"),
    torch.gru: (5, "dropout"),
    torch.rnn_tanh: (5, "dropout"),
    torch.rnn_relu: (5, "dropout"),
}
_PACKED = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_ELEMENTS = (F.dropout, torch.dropout)
# In the order of their spatial dimensions, which `_channels_of` counts on.
_CHANNELS = (F.dropout1d, F.dropout2d, F.dropout3d)
_DRAWN = (torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.bernoulli)
_DRAWN_INTO = (Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_)


class alike(TorchFunctionMode):
    """Passes inside draw in float32, and so alike in every precision.

        dropout of elements or channels    its mask is drawn in float32
        random factories and fills         drawn in float32, then rounded
        dropout inside of attention, RNN   none: their kernels draw as they like

    Example:
        >>> x = torch.ones(1000)
        >>> state = torch.get_rng_state()
        >>> with alike():
        ...     half = F.dropout(x.half(), 0.5) != 0
        ...     torch.set_rng_state(state)
        ...     full = F.dropout(x, 0.5) != 0
        >>> torch.equal(half, full)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        del types
        kwargs = dict(kwargs or {})
        if func in _ELEMENTS or func in _CHANNELS:
            return _dropped(func, *args, **kwargs)
        if func in _INSIDE:
            return func(*_without_dropout(func, args, kwargs), **kwargs)
        if func in _DRAWN:
            return _drawn(func, args, kwargs)
        if func in _DRAWN_INTO and args[0].dtype in NARROW:
            single = torch.empty_like(args[0], dtype=torch.float32)
            return args[0].copy_(func(single, *args[1:], **kwargs))
        return func(*args, **kwargs)


def _dropped(
    func: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    train: bool = True,
) -> Tensor:
    if not (training and train) or p == 0:
        return input
    shape = input.shape if func in _ELEMENTS else _channels_of(func, input)
    # Drawn as torch does on a CPU, but never in half precision, which has too few numbers in
    # [0, 1): the same seed would keep other elements.
    kept = torch.rand(shape, device=input.device) >= p
    # p = 1 keeps nothing, and 0 / 2^-126 is 0 where 0 / 0 would be NaN.
    factor = (kept.to(torch.float32) / max(1 - p, 2.0**-126)).to(input.dtype)
    return input.mul_(factor) if inplace else input * factor


def _channels_of(func: Callable[..., Tensor], input: Tensor) -> tuple[int, ...]:
    spatial = _CHANNELS.index(func) + 1
    return (*input.shape[: input.dim() - spatial], *(1,) * spatial)


def _without_dropout(
    func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[object, ...]:
    place, keyword = _INSIDE[func]
    # A packed sequence hands over its batch sizes, too.
    place += func in _PACKED and isinstance(args[3], list | tuple)
    if keyword in kwargs:
        kwargs[keyword] = 0.0
    elif len(args) > place:
        return (*args[:place], 0.0, *args[place + 1 :])
    return args


def _drawn(
    func: Callable[..., Tensor], args: tuple[object, ...], kwargs: dict[str, object]
) -> Tensor:
    given = kwargs.get("dtype")
    source = next((a for a in args if isinstance(a, Tensor)), None)
    dtype = cast("torch.dtype | None", given or (None if source is None else source.dtype))
    if dtype not in NARROW:
        return func(*args, **kwargs)
    args = tuple(a.to(torch.float32) if isinstance(a, Tensor) else a for a in args)
    if given is not None:
        kwargs = {**kwargs, "dtype": torch.float32}
    return func(*args, **kwargs).to(dtype)
