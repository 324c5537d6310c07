"""A planner that leaves some modules at the loss scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import cast

from gradscale.plans.decision import Decision
from gradscale.plans.planner import Planner
from gradscale.plans.planner_given import planner_given
from gradscale.plans.situation import Situation


@dataclass(frozen=True)
class Excluding:
    """Another planner, except that the nodes of some modules stay at the loss scale.

    Args:
        planner: decides for the other nodes.
        modules: names as in `model.named_modules()`; a name includes everything below it.

    Raises:
        TypeError: if the one is nothing that decides plans, or the others are no names.
        ValueError: from `decide`, if a module has no node in the graph.
    """

    planner: Planner
    modules: Collection[str]

    def __post_init__(self) -> None:
        planner = planner_given(self.planner, "Excluding(planner={})")
        object.__setattr__(self, "planner", planner)
        given = cast(object, self.modules)
        if isinstance(given, str):
            raise TypeError(
                f"`Excluding(modules={given!r})` must be names, not one string. Pass "
                f"`modules=[{given!r}]`."
            )
        names = tuple(cast("Iterable[object]", given)) if isinstance(given, Iterable) else (given,)
        if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"`Excluding(modules={given!r})` must be names of modules, such as `['head']`; "
                "`model.named_modules()` lists them."
            )
        object.__setattr__(self, "modules", names)

    @property
    def moments(self) -> bool:
        """Whether the other planner needs moments."""
        return self.planner.moments

    @property
    def sampled(self) -> bool:
        """Whether samples will do for the other planner."""
        return getattr(self.planner, "sampled", False)

    @property
    def products(self) -> bool:
        """Whether the other planner needs every product counted."""
        return self.planner.products

    def decide(self, situation: Situation) -> Decision:
        """The other planner's decision with the nodes of the modules pinned.

        Raises:
            ValueError: if a module has no node in the graph.
        """
        names = situation.names
        pinned: set[int] = set()
        for module in self.modules:
            nodes = [node for node, name in names.items() if _within(name, module)]
            if not nodes:
                known = ", ".join(sorted({name.split(".")[0] for name in names.values()}))
                raise ValueError(
                    f"`Excluding(modules={list(self.modules)})`: no node of this graph belongs to "
                    f"{module!r}. The modules with nodes are below: {known or 'none'}."
                )
            pinned.update(nodes)
        return self.planner.decide(situation.pinning(pinned))


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
