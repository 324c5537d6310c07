"""Gradients of a captured pass that are zero throughout: which of them were flushed whole."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from gradscale.emulation.direction_formats import carrier
from gradscale.formats import FloatFormat
from gradscale.truth.gradients import Gradients
from gradscale.truth.rows_of import Pair, counts_of
from gradscale.watching.flushed_whole import Passed, flushed_whole, is_near


def vanished_gradients(stored: Gradients, format: FloatFormat) -> set[Hashable]:
    """The `id` of every captured tensor that must have been flushed whole; see `flushed_whole`.

    Args:
        stored: one pass; its modules are in the order in which the pass came to them.
        format: what products read their gradient in.
    """
    outputs = [
        Passed(id(held), output.module, _near(held, output in stored.products, format))
        for output, held in stored.modules.items()
    ]
    parameters = [
        Passed(id(held), stored.owners.get(name, ""), True if bool(held.any()) else None)
        for name, held in stored.parameters.items()
    ]
    return flushed_whole(outputs, parameters)


def _near(held: Tensor, product: bool, format: FloatFormat) -> bool | None:
    # As it is read: what a product rounds to zero is gone, although it is stored.
    pair = Pair(held, product=product)
    if not bool(pair.read(format).any()):
        return None
    counts = counts_of(held, 1.0)
    return is_near(counts.lowest + len(counts.octaves), format if product else carrier(format))
