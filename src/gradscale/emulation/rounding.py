"""What the products of one block are rounded to: by direction, and by where operands came from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import DirectionFormats, as_format, takes_part
from gradscale.emulation.passes import autocast_depth, in_autograd_node, in_backward
from gradscale.emulation.provenance import Provenance, Role, format_in_role
from gradscale.formats import FloatFormat


@dataclass(frozen=True)
class ProductFormats:
    """The formats of one product's two operands and of its result."""

    first: FloatFormat
    second: FloatFormat
    result: FloatFormat

    def dtype_for(self, tensor: Tensor) -> torch.dtype:
        """What to multiply in: float32, or the tensor's own dtype where that does the same.

        A GPU's kernel accumulates in float32 and rounds the result to the dtype, so that it is the
        real thing if the operands' formats fit into the dtype. CPU kernels are too slow for that.
        """
        own = as_format(tensor.dtype)
        real = tensor.device.type != "cpu" and self.result == own
        fits = real and self.first.fits_into(own) and self.second.fits_into(own)
        return tensor.dtype if fits else torch.float32


class Rounding:
    """Asked of every product of a block: which formats, if any.

    Attributes:
        precision: the formats of both directions.
        silent: how many contexts want the products inside to run as they are.
    """

    def __init__(self, precision: DirectionFormats) -> None:
        self.precision = precision
        self.silent = 0
        self._provenance = Provenance()
        self._exact_seen = False
        self._autocast_seen = False

    @contextmanager
    def silenced(self) -> Generator[None]:
        """Products inside run as they are."""
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1

    def formats(self, a: Tensor, b: Tensor) -> ProductFormats | None:
        """The formats of the product of `a` and `b` here and now; None leaves it alone."""
        if not in_backward():
            return self._forward_formats(a, b)
        precision = self.precision
        # Alike in both directions, and no float32 product that a backward one might belong to:
        # which operand is which makes no difference, and need not be found out.
        if not (precision.directions_differ or self._exact_seen):
            return ProductFormats(precision.forward, precision.forward, precision.forward_result)
        if not precision.directions_differ:
            exact = "exact" in (self._provenance.role(a), self._provenance.role(b))
            roles: tuple[Role, Role] = ("exact", "exact") if exact else ("saved", "gradient")
        else:
            roles = self._provenance.roles(a, b)
        self._remember_for_double_backward(roles, a, b)
        return self._product_formats(*roles)

    def backward_formats(self, grad: Tensor, *saved: Tensor) -> ProductFormats | None:
        """The formats of a backward operation that names its gradient, then the others."""
        if self._exact_seen and "exact" in map(self._provenance.role, saved):
            return None
        if torch.is_grad_enabled():
            self._remember_for_double_backward(
                ("gradient", *("saved" for _ in saved)), grad, *saved
            )
        return self._product_formats("gradient", "saved")

    def keeps_float32(self, *tensors: Tensor) -> bool:
        """Whether float32 operands were chosen: they met autocast and are float32 nevertheless.

        A disabled autocast context alone is no choice: checkpointing enters some, and so do
        training loops with a switch. Autocast must have lowered a product before.
        """
        if autocast_depth() == 0:
            return False
        single = all(tensor.dtype == torch.float32 for tensor in tensors)
        self._autocast_seen = self._autocast_seen or not single
        return single and self._autocast_seen

    def note_made(self, result: object, *, aliases: bool) -> None:
        """An operation returned `result`; only asked for where the directions differ.

        Args:
            result: a tensor, several in a tuple or a list, or anything else.
            aliases: whether it is an argument or a view of one, and so nothing new.
        """
        if not in_autograd_node():
            self._provenance.backward_ended()
        elif not aliases:
            by_backward = in_backward()
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor) and takes_part(tensor):
                    self._provenance.created(tensor, by_backward=by_backward)

    def _forward_formats(self, a: Tensor, b: Tensor) -> ProductFormats | None:
        exact = self.keeps_float32(a, b)
        self._exact_seen |= exact
        if exact or self._exact_seen or self.precision.directions_differ:
            for tensor in (a, b):
                self._provenance.remember(tensor, "exact" if exact else "saved")
        if exact:
            return None
        precision = self.precision
        return ProductFormats(precision.forward, precision.forward, precision.forward_result)

    def _product_formats(self, first: Role, second: Role) -> ProductFormats | None:
        precision = self.precision
        a = format_in_role(first, precision.forward, precision.backward)
        b = format_in_role(second, precision.forward, precision.backward)
        if a is None or b is None:
            return None
        return ProductFormats(a, b, precision.backward_result)

    def _remember_for_double_backward(self, roles: tuple[Role, ...], *operands: Tensor) -> None:
        # With `create_graph` the graph of the gradients saves these operands: a second backward
        # pass meets them again, and must round them as this one did.
        if torch.is_grad_enabled() and self.precision.directions_differ:
            for tensor, role in zip(operands, roles, strict=True):
                self._provenance.remember(tensor, role)
