"""Which operand of a backward product is the gradient, told by where each came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gradscale.formats import FloatFormat

Role = Literal["saved", "gradient", "exact"]


@dataclass(frozen=True)
class _Known:
    storage: StorageWeakRef
    role: Role


class Provenance:
    """Remembers operands of earlier products, and what the running backward pass has made.

    A backward product multiplies the incoming gradient by an operand of the forward product, or a
    view of it, so the operand whose storage is *not* remembered is the gradient. Where neither is
    (the forward pass ran outside, or saved tensors were packed), the gradient is the one that the
    backward pass itself created. Storages are held weakly: nothing lives longer than it would.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._sweep_at = 1024
        self._created: set[int] = set()

    def remember(self, tensor: Tensor, role: Role) -> None:
        """`tensor`, or any view of it, was an operand in this role."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._known.get(key)
        if known is None or known.role != role:
            self._known[key] = _Known(StorageWeakRef(storage), role)
        if len(self._known) >= self._sweep_at:
            self._sweep()

    def created(self, tensor: Tensor, *, by_backward: bool) -> None:
        """`tensor` is new: made by the backward pass itself, or by a forward pass recomputed in it.

        Every new tensor is told, since it may live where an earlier one has died.
        """
        key = tensor.untyped_storage()._cdata
        (self._created.add if by_backward else self._created.discard)(key)

    def backward_ended(self) -> None:
        """Forget what the last backward pass made."""
        self._created.clear()

    def role(self, tensor: Tensor) -> Role | None:
        """The role in which `tensor` was an operand before, if any."""
        known = self._known.get(tensor.untyped_storage()._cdata)
        return None if known is None else known.role

    def roles(self, a: Tensor, b: Tensor) -> tuple[Role, Role]:
        """The roles of the operands of a backward product.

        Raises:
            RuntimeError: if nothing tells them apart.
        """
        known = self.role(a), self.role(b)
        if known[0] is not None and known[1] is not None:
            if known != ("saved", "saved"):
                return known[0], known[1]
        elif known[0] is not None:
            return known[0], _beside(known[0])
        elif known[1] is not None:
            return _beside(known[1]), known[1]
        else:
            made = [tensor.untyped_storage()._cdata in self._created for tensor in (a, b)]
            if made == [True, False]:
                return "gradient", "saved"
            if made == [False, True]:
                return "saved", "gradient"
            if all(made) and a.untyped_storage()._cdata == b.untyped_storage()._cdata:
                return "gradient", "gradient"
        raise RuntimeError(
            "`emulate` with different forward and backward formats cannot tell which operand of a "
            f"backward product ({tuple(a.shape)} by {tuple(b.shape)}) is the gradient. Run the "
            "forward pass inside `emulate` too, and wrap products that are no part of the gradient "
            'in `emulate(forward="fp32", backward="fp32")`.'
        )

    def _sweep(self) -> None:
        self._known = {k: v for k, v in self._known.items() if not v.storage.expired()}
        # A sweep looks at every entry: the next one comes when there are twice as many.
        self._sweep_at = 1024 + 2 * len(self._known)


def _beside(role: Role) -> Role:
    """The role of an unknown operand, given the other's: exact products stay so backward."""
    return "exact" if role == "exact" else "gradient"


def format_in_role(role: Role, forward: FloatFormat, backward: FloatFormat) -> FloatFormat | None:
    """The format that an operand of this role is rounded to; None leaves it alone."""
    return {"saved": forward, "gradient": backward, "exact": None}[role]
