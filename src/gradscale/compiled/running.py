"""How a compiled backward pass is called: with factors, and watched if somebody asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscale.compiled.part import CompiledPart
from gradscale.compiled.under_way import noted, running_node

Boxed = Callable[[list[object]], Sequence[object]]


def following_plans(part: CompiledPart, plain: Boxed, watched: Callable[[], Boxed]) -> Boxed:
    """What torch calls as the compiled backward pass.

    Args:
        part: of this pass.
        plain: the pass as it was compiled, with factors as its last input.
        watched: gives the form of it that shows what passes.

    Returns:
        A function that takes its arguments in a list, which it empties.
    """
    ones: list[Tensor] = []

    def run(arguments: list[object]) -> Sequence[object]:
        note = noted(running_node())
        factors = None if note is None else note.factors
        if factors is None:
            if not ones:
                ones.append(
                    torch.ones(len(part.crossings), dtype=torch.float32, device=part.device)
                )
            factors = ones[0]
        # The last input of the graph, where `multiply_crossings` has put its placeholder.
        arguments.append(factors)
        if note is not None and note.watched:
            return watched()(arguments)
        return plain(arguments)

    run._boxed_call = True  # pyright: ignore[reportFunctionMemberAccess]
    return run


def boxed(function: Callable[..., Sequence[object]]) -> Boxed:
    """A compiled function that takes a list, whichever way it is called itself."""
    if getattr(function, "_boxed_call", False):
        return function

    def run(arguments: list[object]) -> Sequence[object]:
        given, arguments[:] = tuple(arguments), []
        return function(*given)

    return run
