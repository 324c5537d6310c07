"""The exponents that a layer-wise scaler's plan gives to the nodes of one backward pass."""

from __future__ import annotations

from gradscale.backward.graph import Walk, walk
from gradscale.layerwise.layerwise import Layerwise


class PlanInForce:
    """Knows which nodes a plan may scale before the pass, and by how much after it.

    Args:
        layerwise: of the scaler.
        whole: the pass, walked from where it begins; the plan is for the part behind the entries.
    """

    def __init__(self, layerwise: Layerwise, whole: Walk) -> None:
        self._layerwise = layerwise
        self._partial = layerwise._entry.partial_passes
        # The scaler plans from the loss down; a pass may begin above it, at the loss times a scale.
        places = {node: number for number, node in enumerate(whole.nodes)}
        entries = [node for node in layerwise._entry.nodes() if node in places]
        self._places: list[int] = []
        self._signature = ""
        if entries:
            behind = walk(entries)
            self._places = [places[node] for node in behind.nodes]
            self._signature = behind.graph.signature

    @staticmethod
    def of(scaler: object, whole: Walk) -> PlanInForce | None:
        """That of a scaler; None if it has no plan to follow."""
        layerwise = getattr(scaler, "layerwise", None)
        if not isinstance(layerwise, Layerwise) or not layerwise.tracks.followed:
            return None
        return PlanInForce(layerwise, whole)

    def exponents(self, nodes: int) -> list[int]:
        """One for each of the pass's `nodes`, relative to the loss scale. Call it after the pass.

        Before the entries, and in passes that the scaler left plain, it is the loss scale alone.
        """
        found = [0] * nodes
        # A pass that the scaler gave up on, such as one over a part of the graph, ran at one scale.
        plain = self._layerwise._entry.partial_passes != self._partial
        if plain or self._signature not in self._layerwise.tracks:
            return found
        track = self._layerwise.tracks[self._signature]
        plan, _ = track.factors(track.graph)
        for place, exponent in zip(self._places, plan.exponents, strict=True):
            found[place] = exponent
        return found
