"""One exponent for every node of a backward graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.structure import Structure

# Two exponents then differ by at most 126, and every multiplier is a normal float32.
LARGEST_EXPONENT = 63


@dataclass(frozen=True)
class ScalePlan:
    """An integer exponent k for every node: its gradient is stored as `scale * 2^k` of the truth.

    Exponents are relative to the loss scale. Leaves are at 0, so that `.grad` looks as it does
    under plain loss scaling, and so are pinned nodes, whose gradients a user reads. Only the freed
    leaves of a half-precision model are not: each is divided by its own exponent.

    Args:
        exponents: per node in the graph's order, each in [-63, 63].
        signature: of the graph that it was made for.

    Example:
        >>> from gradscale.backward import BackwardGraph
        >>> w = torch.ones(3, requires_grad=True)
        >>> graph = BackwardGraph.of((w * 2).sum())
        >>> plan = ScalePlan.of(graph, {1: 5})
        >>> print(plan)
        2 groups: 2^0 for 2 nodes, 2^5 for 1 node
        >>> ScalePlan.from_dict(plan.to_dict()) == plan
        True
    """

    exponents: tuple[int, ...]
    signature: str

    def __post_init__(self) -> None:
        whole = tuple(map(int, self.exponents))
        if whole != tuple(self.exponents):
            node = next(n for n, k in enumerate(self.exponents) if k != whole[n])
            raise ValueError(
                f"`ScalePlan(exponents=…)` has {self.exponents[node]} at node {node}; an exponent "
                "must be a whole number. Round it."
            )
        object.__setattr__(self, "exponents", whole)
        for node, exponent in enumerate(self.exponents):
            if abs(exponent) > LARGEST_EXPONENT:
                raise ValueError(
                    f"`ScalePlan(exponents=…)` has {exponent} at node {node}; an exponent must lie "
                    f"within ±{LARGEST_EXPONENT} of the loss scale. To move all nodes, change the "
                    "loss scale."
                )

    @classmethod
    def uniform(cls, graph: BackwardGraph) -> ScalePlan:
        """Plain loss scaling: every node at the loss scale."""
        return cls((0,) * len(graph), graph.signature)

    @classmethod
    def of(cls, graph: BackwardGraph, exponents: Mapping[int, int] | Sequence[int]) -> ScalePlan:
        """A plan from exponents by node (others 0) or for all nodes in order, checked.

        Raises:
            ValueError: an exponent is missing, too large, or not 0 at a leaf or a pinned node.
        """
        if isinstance(exponents, Mapping):
            strangers = [node for node in exponents if not 0 <= node < len(graph)]
            if strangers:
                raise ValueError(
                    f"`ScalePlan.of(graph, exponents)` names node {strangers[0]}, but the graph "
                    f"has nodes 0 to {len(graph) - 1}."
                )
            exponents = [exponents.get(node, 0) for node in range(len(graph))]
        plan = cls(tuple(exponents), graph.signature)
        plan.check(graph)
        return plan

    @classmethod
    def random(
        cls,
        graph: BackwardGraph,
        generator: torch.Generator | None = None,
        low: int = -12,
        high: int = 12,
    ) -> ScalePlan:
        """Exponents drawn evenly from [low, high]; leaves and pinned nodes 0."""
        size = (len(graph),)
        drawn = torch.randint(low, high + 1, size, generator=generator, device="cpu")
        return cls(tuple(drawn.tolist()), graph.signature).pinning(graph)

    def check(self, graph: BackwardGraph) -> None:
        """Raises what is wrong with using this plan on `graph`.

        Raises:
            ValueError: it was made for another structure, or moves a leaf or a pinned node.
        """
        if self.signature != graph.signature or len(self.exponents) != len(graph):
            raise ValueError(
                f"this plan has {len(self.exponents)} exponents for a graph with signature "
                f"{self.signature[:8]!r}, but the graph has {len(graph)} nodes and signature "
                f"{graph.signature[:8]!r}. Make a plan for every structure: "
                "`ScalePlan.of(graph, …)`."
            )
        at = self.exponents.__getitem__
        # All zeros in nearly every step, and these are most of the nodes of many a graph.
        if not any(map(at, graph.leaves)) and not any(map(at, graph.held)):
            return
        leaves = [leaf for leaf in graph.leaves if leaf not in graph.freed]
        for kind, nodes in (("leaf", leaves), ("pinned node", sorted(graph.held))):
            for node in nodes:
                if self.exponents[node]:
                    raise ValueError(
                        f"this plan puts {kind} {node} ({graph.names[node]}) at exponent "
                        f"{self.exponents[node]}; it must be 0, because its gradient is read from "
                        "outside. `plan.pinning(graph)` sets such nodes to 0."
                    )

    def pinning(self, graph: BackwardGraph) -> ScalePlan:
        """This plan with the fixed nodes of `graph`, most leaves and pinned ones, at 0."""
        moved = [node for node in graph.fixed if self.exponents[node]]
        if not moved:
            return self
        exponents = list(self.exponents)
        for node in moved:
            exponents[node] = 0
        return replace(self, exponents=tuple(exponents))

    @cached_property
    def is_uniform(self) -> bool:
        """Whether every node is at the loss scale."""
        return not any(self.exponents)

    @property
    def groups(self) -> dict[int, tuple[int, ...]]:
        """For each exponent its nodes; the most common exponent first."""
        common = Counter(self.exponents).most_common()
        return {k: tuple(self._at(k)) for k, _ in sorted(common, key=lambda kc: (-kc[1], kc[0]))}

    def _at(self, exponent: int) -> Iterable[int]:
        return (node for node, k in enumerate(self.exponents) if k == exponent)

    def cuts(self, graph: BackwardGraph) -> tuple[int, ...]:
        """The numbers of the graph's edges whose ends differ."""
        return self.cuts_of(graph.structure)

    def cuts_of(self, structure: Structure) -> tuple[int, ...]:
        """The same of all graphs with this structure."""
        k = self.exponents
        return tuple(i for i, e in enumerate(structure.edges) if k[e.source] != k[e.target])

    def describe(self, log2_scale: int = 0) -> str:
        """The groups with absolute exponents under a loss scale of `2**log2_scale`."""
        parts = [
            f"2^{exponent + log2_scale} for {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
            for exponent, nodes in self.groups.items()
        ]
        return f"{len(parts)} group{'s' if len(parts) != 1 else ''}: {', '.join(parts)}"

    def __str__(self) -> str:
        return self.describe()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, by structural position: `torch.load(weights_only=True)`."""
        return {"exponents": list(self.exponents), "signature": self.signature}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScalePlan:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: a key is missing.
        """
        missing = {"exponents", "signature"} - state.keys()
        if missing:
            raise ValueError(f"`ScalePlan.from_dict(state)` needs {sorted(missing)} in the state.")
        return cls(tuple(state["exponents"]), str(state["signature"]))
