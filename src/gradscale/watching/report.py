"""`WatchReport`: the rows of one or several measuring steps, worst first."""

from __future__ import annotations

import fnmatch
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import overload

from gradscale.files.json_text import JsonObject
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.metrics.lost_count import LostBetween, count_lost, lost_between
from gradscale.watching.rows import Method, Row, RowKind
from gradscale.watching.table import WIDTH, table


@dataclass(frozen=True)
class WatchReport(Sequence[Row]):
    """What a format loses of a model's gradients: one row per parameter, module and cast.

    A sequence of rows, worst first: first what is not finite or does not fit, then by how much is
    lost, which weighs many elements more than few, then by how far the exponent is from the window.
    Rows that are zero up to rounding come last.

    Attributes:
        in_order: the same rows in backward order, activations in forward order.
        steps: the numbers of the steps that measured, of those that are counted here.
        format: the format all rows were judged for; None for each in its own.
        scaled: whether there was a scaler; without one the loss scale is taken to be 1.
        alone: whether ranks ran different graphs, so that these are the counts of this rank only.
        first_nonfinite: the first row in backward order that was not finite, in the latest step
            that had one; None if all was finite.
        first_nonfinite_forward: the first activation in forward order, likewise.
        functions: what the backward functions that torch did not write do to their gradient, each
            probed once; one that is not linear depends on the scale.

    Example:
        >>> import torch, gradscale
        >>> model = torch.nn.Linear(4, 1)
        >>> with gradscale.watch(model) as watch:
        ...     (model(torch.ones(2, 4)).sum() * 2.0**-30).backward()
        >>> report = watch.report(format="fp16")
        >>> [(row.name, row.lost_share) for row in report.of(kind="parameter")]
        [('weight', 1.0), ('bias', 1.0)]
        >>> report.lost_share, report.worst(1)[0].needs
        (1.0, 5)
    """

    in_order: tuple[Row, ...] = ()
    steps: tuple[int, ...] = ()
    format: str | None = None
    scaled: bool = False
    alone: bool = False
    first_nonfinite: Row | None = None
    first_nonfinite_forward: Row | None = None
    functions: tuple[FunctionVerdict, ...] = ()

    @cached_property
    def _sorted(self) -> tuple[Row, ...]:
        return tuple(sorted(self.in_order, key=_badness))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self._sorted[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self.in_order)

    def worst(self, count: int) -> tuple[Row, ...]:
        """The first `count` rows that are not set apart as zero up to rounding."""
        return tuple(row for row in self if not row.negligible)[:count]

    def of(self, kind: RowKind | None = None, name: str | None = None) -> WatchReport:
        """Only some of the rows.

        Args:
            kind: ``"parameter"``, ``"module"``, ``"cast"`` or ``"activation"``.
            name: a row's or a module's name, which includes everything below it, or a pattern such
                as ``"layers.*.bias"``.
        """
        rows = (row for row in self.in_order if kind is None or row.kind == kind)
        return replace(self, in_order=tuple(row for row in rows if _matches(row, name)))

    @property
    def lost_share(self) -> float:
        """The share of all non-zero gradient elements that is lost; of rows that may lose any.

        Without activations, rows in float32 and rows that are zero up to rounding.
        """
        return count_lost(self.in_order).lost_share or 0.0

    @property
    def lost_between(self) -> LostBetween:
        """The shares between which the truth of the same gradients lies: how far to trust it.

        What half precision has flushed is a zero, and which zeros are true nobody can see in one
        pass: `least` takes all of them for true ones, `most` takes none.
        """
        return lost_between(self.in_order)

    def with_truth(self, flushed: Mapping[str, int], method: Method) -> WatchReport:
        """The same report with better founded numbers of lost elements.

        Args:
            flushed: by a row's name.
            method: where they come from.
        """
        return self._changed(
            lambda row: row.with_truth(flushed[row.name], method) if row.name in flushed else row
        )

    def _changed(self, change: Callable[[Row], Row]) -> WatchReport:
        first, forward = self.first_nonfinite, self.first_nonfinite_forward
        return replace(
            self,
            in_order=tuple(map(change, self.in_order)),
            first_nonfinite=first and change(first),
            first_nonfinite_forward=forward and change(forward),
        )

    def to_dict(self) -> JsonObject:
        """Plain numbers, strings and lists, for JSON."""
        first, forward = self.first_nonfinite, self.first_nonfinite_forward
        return {
            "steps": list(self.steps),
            "format": self.format,
            "scaled": self.scaled,
            "alone": self.alone,
            "lost_share": self.lost_share,
            "lost_between": list(self.lost_between),
            "first_nonfinite": first and first.name,
            "first_nonfinite_forward": forward and forward.name,
            "functions": [asdict(verdict) for verdict in self.functions],
            "rows": [row.to_dict() for row in self],
        }

    def table(self, rows: int = 20) -> str:
        """The worst rows as a table of at most 100 columns, and what it is made of."""
        return table(tuple(self), rows, self.steps, self._notes())

    def _notes(self) -> Iterator[str]:
        if not self.scaled:
            yield "No scaler was given, so the loss scale is taken to be 1."
        if self.alone:
            yield "Ranks ran different graphs: these are the counts of this rank only."
        if self.first_nonfinite is not None:
            yield f"First gradient that was not finite: {self.first_nonfinite.name}."
        if self.first_nonfinite_forward is not None:
            yield f"First output that was not finite: {self.first_nonfinite_forward.name}."
        for function in self.functions:
            if function.kind != "linear":
                yield from textwrap.wrap(str(function), WIDTH)

    def __str__(self) -> str:
        return self.table()


def _badness(row: Row) -> tuple[bool | float, ...]:
    """What to sort by.

    Lost elements weigh by the root of their share: a share alone would put tiny tensors first, a
    number alone the largest ones, of which little is lost.
    """
    lost = row.flushed * row.lost_share**0.5
    distance = abs(row.needs - row.exponent)
    broken = not (row.counts.nonfinite > 0), not row.overflows
    return row.negligible, *broken, -lost, row.format == "fp32", -distance


def _matches(row: Row, name: str | None) -> bool:
    if name is None:
        return True
    if any(letter in name for letter in "*?["):
        return fnmatch.fnmatchcase(row.name, name)
    # As `table` and the docs show names: `layers.0` means its cast and its output, too.
    bare = row.name.removeprefix("cast ").removeprefix("after ").removesuffix(" (output)")
    return name in (row.name, bare) or bare.startswith(name + ".")
