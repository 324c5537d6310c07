"""A line of a recording as a value: what JSON cannot say is put back, what is missing is None."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

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

_LETTERS = {method[0]: method for method in METHODS}
_LISTS = ("id", "flushed", "nonzero", "zero", "nonfinite", "amax", "exponent", "lo", "hi")


def header_of(line: Mapping[str, Any]) -> Header:
    """The first line of a recording.

    Raises:
        ValueError: if a later gradscale wrote it.
    """
    version = line["version"]
    if version > VERSION:
        raise ValueError(
            f"it is version {version}, and this gradscale reads up to {VERSION}. Upgrade it"
        )
    known = {name: line[name] for name in Header.__dataclass_fields__ if name in line}
    known |= {name: _floats(known.get(name)) for name in ("policy", "state")}
    return Header(**known)


def row_infos(line: Mapping[str, Any]) -> tuple[RowInfo, ...]:
    """A line that introduces rows."""
    return tuple(
        RowInfo(r["id"], r["name"], r["row_kind"], r["format"], r["numel"], r["order"])
        for r in line["rows"]
    )


def structure_of(line: Mapping[str, Any]) -> RecordedNetwork:
    """A line with the network."""
    return RecordedNetwork(
        nodes=tuple(line["nodes"]),
        edges=tuple((u, v) for u, v in line["edges"]),
        rows={int(node): row for node, row in line["rows"].items()},
    )


def step_of(line: Mapping[str, Any]) -> Step:
    """A line about a step: of a recording, or of the ``steps.jsonl`` of `gradscale train`."""
    skipped, reason = bool(line["skipped"]), line.get("reason")
    first, seen = line.get("first_nonfinite"), line.get("seen")
    plan, exponents = line.get("plan"), line.get("exponents")
    return Step(
        step=line["step"],
        scale=number(line["scale"]),
        skipped=skipped,
        reason=reason,
        loss=_optional(line.get("loss")),
        amax=_single(line.get("amax")),
        exponents=None if exponents is None else _octaves(exponents),
        overflow=line.get("overflow", skipped and reason == "overflow"),
        asked=line.get("asked", True),
        groups=line.get("groups"),
        optimizers=tuple(line.get("optimizers", ())),
        culprits=tuple(line.get("culprits", ())),
        culprits_left_out=line.get("culprits_left_out", 0),
        first_nonfinite=None if first is None else FirstNonfinite(**first),
        seen=None if seen is None else _seen(seen),
        octaves={int(row): _octaves(it) for row, it in line.get("octaves", {}).items()},
        plan=None if plan is None else _plan(plan),
    )


def number(value: Any) -> float:
    """A float, whether JSON had a number for it or not.

    Example:
        >>> number(2), number("inf")
        (2.0, inf)
    """
    return float(value)


def _floats(value: Any) -> Any:
    """`value` with the floats that were written as strings."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _floats(part) for name, part in value.items()}
    return [_floats(part) for part in value] if isinstance(value, list) else value


def _optional(value: Any) -> float | None:
    return None if value is None else number(value)


def _single(value: Any) -> float | None:
    """The float32 whose nine digits were written: a policy must see the same bits again."""
    if value is None:
        return None
    read = number(value)
    return struct.unpack("<f", struct.pack("<f", read))[0] if math.isfinite(read) else read


def _octaves(value: Iterable[Any]) -> Octaves:
    lowest, counts = value
    return Octaves(lowest, tuple(counts))


def _seen(value: Mapping[str, Any]) -> Seen:
    lists: dict[str, Any] = {name: tuple(value[name]) for name in _LISTS}
    letters = value.get("methods", value["method"][0] * len(lists["id"]))
    return Seen(
        lost_share=_optional(value["lost"]),
        method=value["method"],
        methods=tuple(_LETTERS[letter] for letter in letters),
        negligible=frozenset(value.get("negligible", ())),
        **lists,
    )


def _plan(value: Mapping[str, Any]) -> Plan:
    groups = (PlanGroup(group["exponent"], tuple(group["rows"])) for group in value["groups"])
    return Plan(value["log2_scale"], tuple(groups))
