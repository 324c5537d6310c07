"""Gradients that are zero throughout: which of them were flushed as a whole.

A histogram says nothing of a tensor of zeros. But a backward pass goes from place to place: where
what came before lay close to the lower end of its format, or had vanished itself, zeros are a loss;
where it was large, as behind a layer that begins with zero weights, they are true.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradscale.formats import FloatFormat
from gradscale.plans.window import flush_octave
from gradscale.watching.sights import Sight

NEAR = 12
"""A product of a gradient that lies wholly within so many octaves of the end may vanish whole."""


def vanished(sights: Iterable[Sight]) -> set[tuple[str, str]]:
    """The keys of those that must have been flushed whole: an estimate.

    Args:
        sights: of gradients, in backward order.
    """
    gone: set[tuple[str, str]] = set()
    weak: dict[str, bool] = {}
    parameters: list[Sight] = []
    previous = False
    for sight in sights:
        if sight.kind == "parameter":
            parameters.append(sight)
        elif _is_empty(sight):
            if previous:
                gone.add(sight.key)
        else:
            previous = _is_near(sight)
        if sight.kind == "module":
            weak[sight.name] = previous
    for sight in parameters:
        if _is_empty(sight) and weak.get(sight.name.rpartition(".")[0], False):
            gone.add(sight.key)
    return gone


def _is_empty(sight: Sight) -> bool:
    """Whether nothing but zeros was left by a format that could have flushed them."""
    return all(
        counts.zero == counts.numel and part.native != "fp32"
        for part, counts in sight.parts.items()
    )


def _is_near(sight: Sight) -> bool:
    return all(
        counts.lowest + len(counts.octaves) + part.exponent
        <= flush_octave(FloatFormat.of(part.native)) + NEAR
        for part, counts in sight.parts.items()
        if counts.octaves
    )
