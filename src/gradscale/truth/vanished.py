"""Gradients that are zero throughout: which of them must have been flushed whole."""

from __future__ import annotations

from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave
from gradscale.truth.gradients import Gradients
from gradscale.truth.rows_of import Pair, carrier, counts_of

NEAR = 12
"""A product of a gradient that lies wholly within so many octaves of the end may vanish whole."""


def vanished(stored: Gradients, format: FloatFormat) -> set[int]:
    """The `id` of every captured tensor that must have been flushed whole.

    A histogram says nothing of a tensor that holds zeros only. But backward passes go from module
    to module: where what arrived before was close to the lower end of the format, or had vanished
    itself, a tensor of zeros was flushed; where it was large, as behind a layer that begins with
    zero weights, the zeros are true.

    Args:
        stored: one pass; its modules are in the order in which the pass came to them.
        format: what products read their gradient in.
    """
    gone: set[int] = set()
    weak: dict[str, bool] = {}
    previous = False
    for output, held in stored.modules.items():
        pair = Pair(held, product=output in stored.products)
        if not bool(pair.read(format).any()):
            if previous:
                gone.add(id(held))
        else:
            previous = _is_near(pair, format)
        weak[output.module] = weak.get(output.module, True) and previous
    for name, held in stored.parameters.items():
        if weak.get(stored.owners.get(name, ""), False) and not bool(held.any()):
            gone.add(id(held))
    return gone


def _is_near(pair: Pair, format: FloatFormat) -> bool:
    counts = counts_of(pair.held, 1.0)
    read_in = format if pair.product else carrier(format)
    return counts.lowest + len(counts.octaves) <= flush_octave(read_in) + NEAR
