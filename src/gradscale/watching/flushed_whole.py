"""Gradients that are zero throughout: which of them were flushed as a whole.

A histogram says nothing of a tensor of zeros. But a backward pass goes from place to place: where
what came before lay close to the lower end of its format, or had vanished itself, zeros are a loss;
where it was large, as behind a layer that begins with zero weights, they are true.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave
from gradscale.watching.sights import Sight

NEAR = 12
"""A product of a gradient that lies wholly within so many octaves of the end may vanish whole.

Such a product is a sum of products with weights and activations, most of them well below 1: 2^-6
each is usual, and two of them are 12 octaves.
"""


class Passed(NamedTuple):
    """A gradient, in the order in which the backward pass came to it.

    Attributes:
        key: to tell it by.
        module: whose output's it is, or whose parameter's; None for neither.
        near: whether all of it lies near the lower end of its format; None if it is all zeros.
    """

    key: Hashable
    module: str | None
    near: bool | None


def flushed_whole(outputs: Iterable[Passed], parameters: Iterable[Passed]) -> set[Hashable]:
    """The keys of those that must have been flushed whole: an estimate.

    Args:
        outputs: what arrived at outputs and casts, in backward order.
        parameters: of parameters; the zeros of one are a loss where those of its module are.

    Example:
        >>> tiny, zeros = Passed("1", "1", True), Passed("0", "0", None)
        >>> weight = Passed("0.weight", "0", None)
        >>> sorted(flushed_whole([tiny, zeros], [weight])), flushed_whole([zeros], [weight])
        (['0', '0.weight'], set())
    """
    gone: set[Hashable] = set()
    weak: dict[str, bool] = {}
    before = False  # nothing precedes the loss: where zeros come first, they are true
    for passed in outputs:
        if passed.near is not None:
            before = passed.near
        elif before:
            gone.add(passed.key)
        # A module that is used twice has to be near the end both times: its gradients are added.
        if passed.module is not None:
            weak[passed.module] = weak.get(passed.module, True) and before
    # Parameters last: what arrives at them follows from the outputs of their module.
    empty = (passed for passed in parameters if passed.near is None)
    return gone | {passed.key for passed in empty if weak.get(passed.module or "", False)}


def is_near(amax_octave: int, format: FloatFormat) -> bool:
    """Whether what ends below this octave, as stored, may vanish whole in the next product."""
    return amax_octave <= flush_octave(format) + NEAR


def vanished_sights(sights: Iterable[Sight]) -> set[Hashable]:
    """The keys of the sights of gradients that must have been flushed whole.

    Args:
        sights: in backward order.
    """
    outputs: list[Passed] = []
    parameters: list[Passed] = []
    for sight in sights:
        if sight.kind == "parameter":
            parameters.append(Passed(sight.key, sight.name.rpartition(".")[0], _near(sight)))
        else:  # a cast is nobody's output
            module = sight.name if sight.kind == "module" else None
            outputs.append(Passed(sight.key, module, _near(sight)))
    return flushed_whole(outputs, parameters)


def _near(sight: Sight) -> bool | None:
    """None if nothing but zeros was left by a format that could have flushed them."""
    parts = sight.parts.items()
    if all(counts.zero == counts.numel and part.native != "fp32" for part, counts in parts):
        return None
    return all(
        is_near(counts.lowest + len(counts.octaves) + part.exponent, FloatFormat.of(part.native))
        for part, counts in parts
        if counts.octaves
    )
