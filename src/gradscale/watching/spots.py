"""Which tensors of a backward graph a report has rows for, and what those are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measure_places import CountedPlace, format_name, is_reduced, multiplies
from gradscale.backward.names import ParameterName, module_places
from gradscale.backward.topology import CAST
from gradscale.emulation.direction_formats import DirectionFormats
from gradscale.watching.chains import Chain, arrives_reduced, is_moving
from gradscale.watching.rows import RowKind

_WIDE = "fp32"
# Which output of a product is a sum and no product: the gradient of its bias.
_ADDEND = {
    "AddmmBackward0": 0,
    "AddmvBackward0": 0,
    "BaddbmmBackward0": 0,
    "ConvolutionBackward0": 2,
    "LinearBackward0": 2,
}


class RowSpot(NamedTuple):
    """What arrives at one node, as a part of a row.

    Attributes:
        name: of the row.
        kind: of the row.
        place: what to count; its format is the one in which the values came about.
        rounded: the format that they are rounded to next; None if they stay as they are.
        sources: the nodes that made what arrives.
        leaf: the leaf whose gradient it is; -1 for all but parameters.
    """

    name: str
    kind: RowKind
    place: CountedPlace
    rounded: str | None = None
    sources: tuple[int, ...] = ()
    leaf: int = -1

    @property
    def narrow(self) -> bool:
        """Whether something may be lost here."""
        return self.rounded is not None or self.place.format != _WIDE


def spots_of(
    graph: BackwardGraph,
    model: nn.Module,
    names: Mapping[int, ParameterName],
    precision: DirectionFormats | None,
) -> list[RowSpot]:
    """A spot for each tensor that has a row; each tensor has one.

    - A *parameter*: its gradient where it has the fewest bits on the way to the leaf.
    - A *module* with parameters: what arrives where it uses them, its output's gradient; and what
      arrives at products between modules, as in attention: they come ``after`` the module below.
    - A *cast* from float32 to fewer bits: what arrives there, before anything is lost.

    Args:
        graph: of the pass.
        model: whose rows are wanted.
        names: of its parameters, by `id`.
        precision: how products round, if they are emulated.

    Returns:
        In the order of the nodes; empty if no parameter of the model takes part.
    """
    finder = _Finder(graph, precision)
    chains: dict[ParameterName, Chain] = {}
    for leaf, parameter in graph.parameters().items():
        if parameter is not None and id(parameter) in names:
            chains[names[id(parameter)]] = Chain.of(graph, leaf)
    if not chains:
        return []
    root = type(model).__name__
    spots = [spot for name, chain in chains.items() for spot in finder.parameter(name.name, chain)]
    # On the way to a leaf there is the parameter's row already: no cast there has another.
    taken = {node for chain in chains.values() for node in chain.nodes}
    heads = _heads(graph, chains, root)
    spots += [finder.module(node, name) for node, name in heads.items()]
    spots += finder.between(module_places(graph, model), taken | set(heads))
    # Once each: tied parameters have chains of their own that end in the same node.
    found = {(spot.place.node, spot.name): spot for spot in spots}
    return sorted(found.values(), key=lambda spot: (spot.place.node, spot.name))


def _heads(
    graph: BackwardGraph, chains: Mapping[ParameterName, Chain], root: str
) -> dict[int, str]:
    """Where parameters are used: the module that owns all that are used there."""
    owners: dict[int, list[list[str]]] = {}
    # Several where a function takes parameters of two modules, as weight and norm: what they share.
    for name, chain in chains.items():
        for head in chain.heads:
            owners.setdefault(head, []).append(name.name.split(".")[:-1])
    heads = {head: ".".join(_shared(paths)) or root for head, paths in owners.items()}
    return {head: name for head, name in heads.items() if not _passes_on(graph, head, heads)}


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """How all these lists begin."""
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _passes_on(graph: BackwardGraph, head: int, heads: Mapping[int, str]) -> bool:
    """Whether a sum, as of a bias, hands the same gradient on to another head of its module."""
    if not graph.names[head].startswith("AddBackward"):
        return False
    ahead = [head]
    while ahead:
        for number in graph.edges_from(ahead.pop()):
            target = graph.edges[number].target
            if heads.get(target) == heads[head]:
                return True
            if is_moving(graph.names[target]):
                ahead.append(target)
    return False


@dataclass(frozen=True)
class _Finder:
    graph: BackwardGraph
    precision: DirectionFormats | None

    def parameter(self, name: str, chain: Chain) -> Iterator[RowSpot]:
        for node in chain.narrowest(self.graph):
            for place in chain.exact(self.graph, node):
                rounded = self._format(node) if place != node else None
                stored = self._made_in(place)
                yield self._spot(name, "parameter", place, stored, rounded, chain.leaf)

    def module(self, node: int, name: str) -> RowSpot:
        return self._spot(name, "module", node, self._format(node), self._read_in(node))

    def between(self, places: tuple[object, ...], taken: set[int]) -> Iterator[RowSpot]:
        """The casts to fewer bits, and products without parameters."""
        for node, place in enumerate(places):
            if place is None or node in taken:
                continue
            module = getattr(place, "module", "")
            if self.graph.names[node] == CAST and not arrives_reduced(self.graph, node):
                narrow = self._cast_to(node)
                if narrow is not None:
                    yield self._spot(f"cast after {module}", "cast", node, _WIDE, narrow)
            elif multiplies(self.graph.names[node]):
                yield self._spot(
                    f"after {module}", "module", node, self._format(node), self._read_in(node)
                )

    def _spot(
        self,
        name: str,
        kind: RowKind,
        node: int,
        stored: str,
        rounded: str | None,
        leaf: int = -1,
    ) -> RowSpot:
        sources = {self.graph.edges[number].source for number in self.graph.edges_into(node)}
        place = CountedPlace(node, "arrived", -1, -1, stored, self._device(node))
        return RowSpot(name, kind, place, rounded, tuple(sorted(sources)), leaf)

    def _read_in(self, node: int) -> str | None:
        """The format to which an emulated product rounds its gradient, if it is a narrower one."""
        # Emulation rounds what products read, and leaves what arrives in its carrier.
        if self.precision is None or not multiplies(self.graph.names[node]):
            return None
        name = self.precision.backward.name
        return None if name == self._format(node) else name

    def _made_in(self, node: int) -> str:
        """The format in which a parameter's gradient came about, whatever carries it."""
        stored = self._format(node)
        # float32 may only carry it: emulated products round in float32, and casts inside compiled
        # code are not seen. What came in fewer bits is told by its dtype.
        ahead = [node] if stored == _WIDE else []
        while ahead:
            for number in self.graph.edges_into(ahead.pop()):
                maker, output = self.graph.edges[number].source, self.graph.edges[number].output
                name = self.graph.names[maker]
                product = multiplies(name) and output != _ADDEND.get(name)
                if self.precision is not None and product:
                    return self.precision.backward_result.name
                if name.startswith("CompiledFunction") and arrives_reduced(self.graph, maker):
                    return self._format(maker)  # compiled under autocast: the cast is inside
                if is_moving(name) and name != CAST:
                    ahead.append(maker)
        return stored

    def _cast_to(self, node: int) -> str | None:
        edges = (self.graph.edges[number] for number in self.graph.edges_from(node))
        dtypes = (self.graph.arrives[edge.target][edge.input].dtype for edge in edges)
        return next((format_name(d) for d in dtypes if d is not None and is_reduced(d)), None)

    def _format(self, node: int) -> str:
        dtypes = (arrival.dtype for arrival in self.graph.arrives[node])
        return next((format_name(d) for d in dtypes if d is not None and is_reduced(d)), _WIDE)

    def _device(self, node: int) -> torch.device:
        devices = (arrival.device for arrival in self.graph.arrives[node])
        return next((device for device in devices if device is not None), torch.device("cpu"))
