"""A line of a recording as a value: what JSON cannot say is put back, what is missing is None.

Every entry is checked here for its kind and its range, so that whoever reads the value need not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace

from gradscale.entries import Entries
from gradscale.metrics.lost_count import METHODS
from gradscale.recording.schema import (
    VERSION,
    FirstNonfinite,
    Header,
    Octaves,
    Plan,
    PlanGroup,
    RecordedNetwork,
    RowInfo,
    Seen,
    Step,
)

_LETTERS = {method[0]: method for method in METHODS}  # as `table.seen` abbreviates them
_WORDS = ("nan", "inf", "-inf")  # for which JSON has no number
_LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127
# Nine digits of it may round above it, and half an ulp leads back.
_MOST = _LARGEST_FLOAT32 * (1 + 2.0**-25)

FARTHEST = 2**12
"""Octaves from 1 that an exponent may be: float64 has 2,098 of them, and a plan adds its own."""

LAST_STEP = 2**32 - 1
"""A page keeps the steps as 32 bits."""

MOST_BINS = 2**12
"""Of a histogram, likewise."""


def header_of(line: Entries) -> Header:
    """The first line of a recording.

    Raises:
        ValueError: if a later gradscale wrote it.
    """
    version = line.count("version")
    # A line that means something else is worse than none.
    if version > VERSION:
        raise ValueError(
            f"it is version {version}, and this gradscale reads up to {VERSION}. Upgrade it"
        )
    texts = ("gradscale", "torch", "started", "scaler", "layerwise")
    return Header(
        version=version,
        format=line.text("format") if line.has("format") else Header.format,
        policy=_policy(line.entries("policy")) if line.has("policy") else None,
        state=_with_floats(line.entries("state").held) if line.has("state") else None,
        measure_every=line.optional(line.count, "measure_every"),
        note=line.within("note").held,
        **{name: line.optional(line.text, name) for name in texts},
    )


def _policy(held: Entries) -> dict[str, object]:
    if held.has("config"):
        held.entries("config")  # must be a dictionary; which settings it has is the policy's matter
    return _with_floats({**held.held, "name": held.text("name")})


def row_infos(line: Entries) -> tuple[RowInfo, ...]:
    """A line that introduces rows."""
    return tuple(
        RowInfo(
            row.count("id"),
            row.text("name"),
            row.text("row_kind"),
            row.text("format"),
            row.count("numel"),
            row.count("order"),
        )
        for row in line.each("rows")
    )


def recorded_network(line: Entries) -> RecordedNetwork:
    """A line with the network."""
    nodes, rows = line.texts("nodes"), line.entries("rows")
    edges = Entries(dict(enumerate(line.list("edges"))), "edges")
    ends = [edges.counts(edge, most=len(nodes) - 1) for edge in edges.held]
    return RecordedNetwork(
        nodes=nodes,
        edges=tuple((source, target) for source, target in ends),
        rows={_number_of(node): rows.count(node) for node in rows.held},
    )


def step_of(line: Entries) -> Step:
    """A line about a step: of a recording, or of the ``steps.jsonl`` of `gradscale train`."""
    skipped, reason = line.flag("skipped"), line.optional(line.text, "reason")
    overflowed = skipped and reason == "overflow"
    step = Step(
        step=line.count("step", most=LAST_STEP),
        scale=_scale(line),
        skipped=skipped,
        reason=reason,
        loss=_float(line, "loss"),
        amax=_single(line),
        overflow=line.flag("overflow") if line.has("overflow") else overflowed,
        asked=line.flag("asked") if line.has("asked") else True,
        groups=line.optional(line.count, "groups"),
    )
    # Most steps of a long run have none of these, and nine lookups would take as long as all above.
    return step if line.held.keys().isdisjoint(_RARE) else replace(step, **_rare(line))


def _rare(line: Entries) -> dict[str, object]:
    """What a step has if it was skipped, or measured."""
    has, rows = line.has, line.within("octaves")
    return {
        "exponents": _octaves(line, "exponents") if has("exponents") else None,
        "optimizers": tuple(map(bool, line.list("optimizers"))) if has("optimizers") else (),
        "dropped": line.optional(line.count, "dropped") or 0,
        "micro_batches": line.optional(line.count, "micro_batches") or 0,
        "culprits": line.texts("culprits") if has("culprits") else (),
        "culprits_left_out": line.optional(line.count, "culprits_left_out") or 0,
        "first_nonfinite": _first_nonfinite(line) if has("first_nonfinite") else None,
        "seen": _seen(line.entries("seen")) if has("seen") else None,
        "octaves": {_number_of(row): _octaves(rows, row) for row in rows.held},
        "plan": _plan(line.entries("plan")) if has("plan") else None,
    }


_RARE = frozenset(
    {"exponents", "optimizers", "dropped", "culprits", "culprits_left_out", "first_nonfinite"}
    | {"seen", "octaves", "plan"}
)


def _float(line: Entries, key: str) -> float | None:
    """A float, whether JSON had a number for it or not; None where there is none."""
    value = line.held.get(key)
    if value is None:
        return None
    return float(value) if value in _WORDS else line.number(key)


def _scale(line: Entries) -> float:
    value = _float(line, "scale")
    if value is None or value < 0 or (math.isfinite(value) and value > _MOST):
        return line.number("scale", least=0.0, most=_MOST)
    return value


def _single(line: Entries) -> float | None:
    """The float32 whose nine digits were written: a policy must see the same bits again."""
    value = _float(line, "amax")
    if value is None or not math.isfinite(value):
        return value
    # A text of nine digits may round above float32, and packing would raise.
    value = line.number("amax", least=0.0, most=_MOST)
    return struct.unpack("<f", struct.pack("<f", min(value, _LARGEST_FLOAT32)))[0]


def _first_nonfinite(line: Entries) -> FirstNonfinite:
    held = line.entries("first_nonfinite")
    return FirstNonfinite(held.optional(held.text, "backward"), held.optional(held.text, "forward"))


def _octaves(line: Entries, key: str) -> Octaves:
    lowest, counts = line.list(key)
    held = Entries({"lowest": lowest, "counts": counts}, key)
    if len(held.list("counts")) > MOST_BINS:
        raise ValueError(
            f"{key} has {len(counts):,} octaves; no format has more than {MOST_BINS:,}"
        )
    return Octaves(held.count("lowest", -FARTHEST, FARTHEST), held.counts("counts"))


def _number_of(key: str) -> int:
    """A number that is a key, which JSON writes as a text."""
    if not (key.isdecimal() and len(key) < 16):
        raise ValueError(f"the key {key!r:.60} is no number")
    return int(key)


def _seen(held: Entries) -> Seen:
    method = held.choice("method", METHODS)
    ids = held.counts("id")
    letters = held.text("methods") if held.has("methods") else method[0] * len(ids)
    lists = {name: held.counts(name, -FARTHEST, FARTHEST) for name in ("exponent", "lo", "hi")}
    lists |= {name: held.counts(name) for name in ("flushed", "nonzero", "zero", "nonfinite")}
    amax = held.list("amax")
    if not all(v is None or (type(v) in (int, float) and abs(v) <= FARTHEST) for v in amax):
        raise ValueError(f"amax holds what is no number between -{FARTHEST:,} and {FARTHEST:,}")
    if any(len(column) != len(ids) for column in (*lists.values(), amax, letters)):
        raise ValueError(f"its lists differ in length from the {len(ids)} of id")
    return Seen(
        lost_share=None if held.held.get("lost") is None else held.number("lost", 0.0, 1.0),
        method=method,
        id=ids,
        amax=tuple(amax),
        methods=tuple(_LETTERS[letter] for letter in letters),
        negligible=frozenset(held.counts("negligible") if held.has("negligible") else ()),
        least=held.optional(held.count, "least"),
        most=held.optional(held.count, "most"),
        **lists,
    )


def _plan(held: Entries) -> Plan:
    groups = [
        PlanGroup(group.count("exponent", -FARTHEST, FARTHEST), group.counts("rows"))
        for group in held.each("groups")
    ]
    return Plan(held.count("log2_scale", -FARTHEST, FARTHEST), tuple(groups))


def _with_floats(held: Mapping[str, object]) -> dict[str, object]:
    """`held` with the floats that were written as strings."""
    return {name: _float_or(part) for name, part in held.items()}


def _float_or(value: object) -> object:
    if isinstance(value, str) and value in _WORDS:
        return float(value)
    if isinstance(value, Mapping):
        return _with_floats(value)
    return [_float_or(part) for part in value] if isinstance(value, list) else value
