"""From the graphs that torch traced to a `CompiledPart`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from gradscale.compiled.autograd_names import SUM, name_of
from gradscale.compiled.gradients_of import TracedGradients, tensor_of
from gradscale.compiled.part import OUTSIDE, Arriving, Closed, CompiledPart, Crossing, Entry, Inner
from gradscale.compiled.regions import LEAVES, Region, is_sum, outputs_of, regions_of


def read_part(
    backward: fx.Graph, forward: fx.Graph, names: Mapping[int, str], arguments: list[int]
) -> CompiledPart | Closed:
    """What a plan needs to know of a compiled backward pass.

    Args:
        backward: as it will be compiled.
        forward: of the same program.
        names: of autograd nodes, by sequence number.
        arguments: for each argument of the program how many tensors come before it; -1 for one
            that is no tensor.
    """
    gradients = TracedGradients(backward)
    devices = {tensor.device for node in gradients.held if (tensor := tensor_of(node)) is not None}
    if not gradients.held:
        return Closed("it passes no gradient on")
    if len(devices) > 1:
        # The factors are one tensor, on one device.
        return Closed("its gradients are on several devices")
    reader = _Reader(gradients, regions_of(gradients, backward), names)
    reader.read(backward, arguments)
    entries = reader.entries(forward)
    if entries is None:
        return Closed("torch does not say which gradient enters where")
    return CompiledPart(
        nodes=tuple(reader.inner(region) for region in reader.order),
        crossings=tuple(sorted(reader.crossings, key=lambda crossing: crossing.source)),
        entries=entries,
        arguments=sum(place >= 0 for place in arguments),
        device=devices.pop(),
    )


class _Reader:
    """Numbers the regions, and finds the gradients that cross from one to another."""

    def __init__(
        self,
        gradients: TracedGradients,
        regions: Mapping[fx.Node, Region],
        names: Mapping[int, str],
    ) -> None:
        self._gradients = gradients
        self._regions = regions
        self._names = names
        self._members: dict[Region, list[fx.Node]] = {}
        for node, region in regions.items():
            if not _leaves(region):
                self._members.setdefault(region, []).append(node)
        self.order = {region: number for number, region in enumerate(self._members)}
        self._arriving: dict[Region, dict[fx.Node, int]] = {region: {} for region in self.order}
        self._outside: set[Region] = set()
        self.crossings: list[Crossing] = []

    def read(self, backward: fx.Graph, arguments: list[int]) -> None:
        """Finds all crossings, in the order in which their gradients are made."""
        outputs = outputs_of(backward)
        for node in self._gradients.held:
            own = self._regions[node]
            by_region: dict[Region, list[str]] = {}
            for reader in self._gradients.readers[node]:
                if self._regions[reader] == own:
                    continue
                if tensor_of(node) is None:  # several tensors at once: nothing could multiply them
                    self._outside |= {own, self._regions[reader]}
                    continue
                by_region.setdefault(self._regions[reader], []).append(reader.name)
            for place, value in enumerate(outputs):
                if value is node and own != (LEAVES, place):
                    by_region.setdefault((LEAVES, place), []).append("output")
            for region, readers in by_region.items():
                self._cross(node, region, tuple(readers), arguments)

    def _cross(
        self, node: fx.Node, region: Region, readers: tuple[str, ...], arguments: list[int]
    ) -> None:
        source = self._regions[node]
        if not _leaves(region):
            slot = self._slot(region, self._sum_of(node, region))
            inner = self.order[region]
            self.crossings.append(Crossing(self.order[source], inner, slot, node.name, readers, -1))
            return
        place = region[1]  # type: ignore[index]
        tensor = arguments[place] if place < len(arguments) else -1
        if tensor < 0:  # not the gradient of an argument: nobody could undo an exponent there
            self._outside.add(source)
            return
        at = place if readers == ("output",) else -1
        self.crossings.append(Crossing(self.order[source], OUTSIDE, tensor, node.name, readers, at))

    def _sum_of(self, node: fx.Node, region: Region) -> fx.Node:
        """The sum in which a gradient arrives at a region; itself if nothing is added to it."""
        following = [r for r in self._gradients.readers[node] if self._regions[r] == region]
        if len(following) == 1 and is_sum(following[0], self._gradients):
            return self._sum_of(following[0], region)
        return node

    def _slot(self, region: Region, value: fx.Node) -> int:
        known = self._arriving[region]
        return known.setdefault(value, len(known))

    def entries(self, forward: fx.Graph) -> dict[int, Entry] | None:
        """By output of the forward pass, where its gradient enters; None if torch does not say."""
        entering = list(self._gradients.entering)
        outputs = _entered(entering, forward)
        if outputs is None:
            return None
        found: dict[int, Entry] = {}
        for node, output in zip(entering, outputs, strict=True):
            region = self._regions[node]
            slot = self._slot(region, self._sum_of(node, region))
            found[output] = Entry(self.order[region], slot)
        return found

    def inner(self, region: Region) -> Inner:
        """A region as an autograd node; call it once all crossings and entries are known."""
        members = self._members[region]
        pinned = not self._gradients.nonlinear.isdisjoint(members) or region in self._outside
        arrives = tuple(_arriving(value) for value in self._arriving[region])
        return Inner(self._name(region, members), pinned, arrives)

    def _name(self, region: Region, members: list[fx.Node]) -> str:
        if region in self._names:
            return self._names[region]  # type: ignore[index]
        acting = [node for node in members if node.op != "placeholder"]
        acting = [node for node in acting if not is_sum(node, self._gradients)]
        named = [node for node in acting if "backward" in str(node.target)] or acting
        return name_of(named[0]) if named else SUM


def _leaves(region: Region) -> bool:
    return isinstance(region, tuple)


def _arriving(value: fx.Node) -> Arriving:
    tensor: Any = tensor_of(value)
    shape = tuple(size if isinstance(size, int) else 0 for size in tensor.shape)
    return Arriving(tensor.dtype, tensor.device, shape, value.name)


def _entered(entering: list[fx.Node], forward: fx.Graph) -> list[int] | None:
    """For each gradient that enters, whose it is: the number of the forward pass's output."""
    output = next(node for node in reversed(forward.nodes) if node.op == "output")
    described: list[Any] = list(output.meta.get("desc") or ())
    wanted: list[Any] = [getattr(node.meta.get("desc"), "output", None) for node in entering]
    if any(want is None or want not in described for want in wanted):
        return None
    return [described.index(want) for want in wanted]


def tensors_before(joint: fx.Graph) -> list[int]:
    """For each argument of a joint graph how many tensors precede it, -1 if it is none itself."""
    found: list[int] = []
    count = 0
    for node in joint.nodes:
        if node.op == "placeholder" and not node.name.startswith("tangents"):
            is_tensor = isinstance(node.meta.get("val"), torch.Tensor)
            found.append(count if is_tensor else -1)
            count += is_tensor
    return found
