"""What a file says of the plans, read whole and checked before any of it is taken over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple, cast

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Counts, Kind, Measurements, PlaceRecord
from gradscale.backward.plan import LARGEST_EXPONENT, ScalePlan
from gradscale.entries import MOST, Entries
from gradscale.formats import FloatFormat
from gradscale.layerwise.measuring_cost import MOST as MOST_STEPS
from gradscale.layerwise.outliers import Outliers
from gradscale.plans.tail import FARTHEST, LostStep

_KINDS = ("arrived", "produced", "weight")
_FARTHEST = 2**12  # octaves: float64 has 2,098 of them
_LARGEST_INT32 = 2**31 - 1


class SavedTrack(NamedTuple):
    """One structure as it was saved; see `Track`."""

    plan: ScalePlan
    frozen: str | None
    anchor: int
    overflows: int
    history: tuple[Measurements, ...]
    outliers: Outliers = Outliers()
    lost: LostStep | None = None
    lost_at: int = 0
    slot: int = 0

    def fits(self, graph: BackwardGraph) -> bool:
        """Whether all that it speaks of is in `graph`."""
        places = {(edge.source, edge.target) for edge in graph.edges}
        places |= {(node, -1) for node in range(len(graph))}
        records = (record for measured in self.history for record in measured.records)
        known = all((record.node, record.target) in places for record in records)
        lost = self.lost
        if lost is not None:
            known &= len(lost.exponents) == len(graph)
            known &= all(node < len(graph) for node in lost.origins)
            known &= set(graph.leaves).issuperset(lost.leaves)
        return known and len(self.plan.exponents) == len(graph)

    def as_dict(self) -> dict[str, object]:
        """What was saved."""
        history = [measurements.as_dict() for measurements in self.history]
        lost = None if self.lost is None else lost_as_dict(self.lost)
        learned = {"outliers": self.outliers._asdict(), "lost": lost}
        return {**self._asdict(), "plan": self.plan.to_dict(), "history": history, **learned}


class SavedPlans(NamedTuple):
    """All that `Layerwise.state_dict` says.

    Attributes:
        steps: how many steps have ended.
        again: whether the next one measures, whatever the calendar says.
        cost: what a measuring step costs, in steps.
        since: the step behind the last overflow.
        hiding: whether the model hides parameters from the graph.
        lowered: the exponent that an overflow asks for; None if none does.
        tracks: by signature.
        linear: by signature, the nodes of users' functions that were seen to be linear.
    """

    steps: int
    again: bool
    cost: int
    since: int
    hiding: bool
    lowered: int | None
    tracks: Mapping[str, SavedTrack]
    linear: Mapping[str, tuple[int, ...]]


def read_plans(held: Entries) -> SavedPlans:
    """Reads what `Layerwise.state_dict` gave.

    Args:
        held: the dictionary.

    Raises:
        ValueError: if an entry is absent, or out of range.
        TypeError: if one is of another kind.

    Example:
        >>> saved = {"steps": 3, "again": False, "hiding": False, "lowered": None, "tracks": {}}
        >>> read_plans(Entries(saved)).steps
        3
    """
    tracks, linear = saved_tracks(held), held.within("linear")
    return SavedPlans(
        steps=held.count("steps", most=_LARGEST_INT32),
        again=held.flag("again"),
        cost=held.count("cost", 1, MOST_STEPS) if held.has("cost") else 1,
        since=held.count("since", most=held.count("steps")) if held.has("since") else 0,
        hiding=held.flag("hiding"),
        # The scale that it leads to is a normal float32.
        lowered=held.optional(lambda key: held.count(key, -126, 127), "lowered"),
        tracks={name: _track(tracks.entries(name), name) for name in tracks.held},
        linear={name: linear.counts(name) for name in linear.held},
    )


def saved_tracks(held: Entries) -> Entries:
    """The tracks by signature, of a text of JSON or of a dictionary.

    Args:
        held: what `Layerwise.state_dict` gave.

    Raises:
        ValueError: if the text is no JSON, or there is none.
        TypeError: if it is of no dictionary.

    Example:
        >>> saved_tracks(Entries({"tracks": '{"a": {}}'})).held
        {'a': {}}
    """
    if not isinstance(held.held.get("tracks"), str):
        return held.entries("tracks")
    name = f"{held.name}['tracks']"
    try:
        return Entries(json.loads(held.text("tracks")), name)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"`{name}` is no JSON: {error}.") from None


def _track(held: Entries, signature: str) -> SavedTrack:
    plan = held.entries("plan")
    exponents = plan.counts("exponents", -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return SavedTrack(
        plan=ScalePlan(exponents, plan.choice("signature", (signature,))),
        frozen=held.optional(held.text, "frozen"),
        anchor=held.count("anchor", -_FARTHEST, _FARTHEST),
        overflows=held.count("overflows", most=_LARGEST_INT32),
        history=tuple(read_measurements(part, signature) for part in held.each("history")),
        # A file of before they were remembered has neither.
        outliers=_outliers(held.within("outliers")),
        lost=_lost(held.entries("lost")) if held.has("lost") else None,
        lost_at=held.count("lost_at", most=_LARGEST_INT32) if held.has("lost_at") else 0,
        slot=held.count("slot", most=_LARGEST_INT32) if held.has("slot") else 0,
    )


def _outliers(held: Entries) -> Outliers:
    if not held.held:
        return Outliers()
    return Outliers(
        reach=held.count("reach", most=FARTHEST),
        times=held.count("times", most=_LARGEST_INT32),
        step=held.count("step", most=_LARGEST_INT32),
    )


def _lost(held: Entries) -> LostStep:
    return LostStep(
        exponents=held.counts("exponents", -_FARTHEST, _FARTHEST),
        origins=held.counts("origins"),
        leaves=held.counts("leaves"),
    )


def lost_as_dict(lost: LostStep) -> dict[str, list[int]]:
    """Plain lists, for a checkpoint."""
    return {name: list(entries) for name, entries in lost._asdict().items()}


def read_measurements(held: Entries, signature: str) -> Measurements:
    """The inverse of `Measurements.as_dict`.

    Args:
        held: the dictionary.
        signature: of the graph that they must be of.

    Example:
        >>> record = PlaceRecord(0, "arrived", -1, "fp16", 16, Counts(1.0, octaves=(2,)))
        >>> measurements = Measurements("a", (record,))
        >>> read_measurements(Entries(measurements.as_dict()), "a") == measurements
        True
    """
    records = tuple(map(_record, held.each("records")))
    return Measurements(held.choice("signature", (signature,)), records)


def _record(held: Entries) -> PlaceRecord:
    kind = held.choice("kind", _KINDS)
    # Only a product goes somewhere.
    ends = (0, MOST) if kind == "produced" else (-1, -1)
    format = held.text("format")
    FloatFormat.of(format)
    return PlaceRecord(
        node=held.count("node"),
        kind=cast(Kind, kind),
        target=held.count("target", *ends),
        format=format,
        exponent=held.count("exponent", -_FARTHEST, _FARTHEST),
        counts=_counts(held.entries("counts")),
        fan=held.count("fan"),
    )


def _counts(held: Entries) -> Counts:
    moments = held.list("moments") if held.has("moments") else None
    if moments is not None:
        sums = Entries(dict(zip(("x", "x2", "ln", "ln2"), moments, strict=False)), "moments")
        moments = (sums.number("x"), sums.number("x2"), sums.number("ln"), sums.number("ln2"))
    octaves = held.counts("octaves")
    if len(octaves) > _FARTHEST:
        raise ValueError(f"`{held.name}['octaves']` has {len(octaves):,} octaves; no format has.")
    return Counts(
        amax=held.number("amax", 0.0, 2.0**1023),
        zero=held.count("zero"),
        nonfinite=held.count("nonfinite"),
        lowest=held.count("lowest", -_FARTHEST, _FARTHEST),
        octaves=octaves,
        moments=moments,
    )
