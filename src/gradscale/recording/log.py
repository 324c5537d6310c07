"""The file of a recording: new or continued, thinned, one line a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.files.json_text import json_line
from gradscale.files.unwritable import writing
from gradscale.histogram import MIN_OCTAVE
from gradscale.recording.appending import Appending, Line
from gradscale.recording.budget import Budget
from gradscale.recording.facts import Facts
from gradscale.recording.header import header
from gradscale.recording.pending import Pending
from gradscale.recording.schema import FILE_NAME, MOST_CULPRITS
from gradscale.recording.sketch import Sketch
from gradscale.recording.table import (
    RowTable,
    first_nonfinite,
    nine_digits,
    octave_lists,
    plan_of,
    seen,
)
from gradscale.watching.rows import Row


class Log:
    """Turns steps into lines.

    Args:
        path: the file, or a folder for it.
        size: bytes after 100,000 steps.
        step: where to go on; None for a new file.

    Raises:
        FileExistsError: if there is a recording already, and `step` is None.
        Locked: if somebody writes it.
        Unwritable: if it cannot be written.
        ValueError: if `step` is negative, or the file is no recording.
    """

    def __init__(self, path: Path, size: int, step: int | None) -> None:
        if path.is_dir() or not (path.suffix or path.exists()):
            path = path / FILE_NAME
        if step is not None and step < 0:
            raise ValueError(f"`Recorder(step={step})` must be 0 or more: the next step's index.")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._table = RowTable()
        self._budget = Budget(size)
        self._begun = self._drawn = self._plans = False
        self._plan: dict[str, object] | None = None
        self._file = Appending(path)
        if not self._file.size:
            return
        try:
            if step is None:
                raise FileExistsError(
                    f"`Recorder({str(path)!r})`: there is a recording already. Go on with it by "
                    "`step=`, the index of the next step; or choose another path."
                )
            self._file.cut(step, self._know)
        except BaseException:
            self._file.close()  # its lock would keep others out for as long as this object lives
            raise

    def _know(self, line: Line, size: int) -> None:
        self._begun = True
        if line["kind"] == "rows":
            self._table.know(line)
        elif line["kind"] == "structure":
            self._drawn = True
        elif line["kind"] == "step":
            # Written where it changes, so that the last one is in force.
            self._plan = line.get("plan", self._plan)
            self._account(line, size)

    def begin(
        self,
        scaler: TorchScaler | None,
        format: str,
        measure_every: int | None,
        note: Mapping[str, object],
    ) -> None:
        """Writes the first line, unless the file is continued."""
        self._plans = getattr(scaler, "layerwise", None) is not None
        if not self._begun:
            self._file.write(header(scaler, format, measure_every, note))

    def draw(self, sketch: Sketch | None) -> bool:
        """Writes the network, once there are rows to put into it; whether it is written."""
        ids = self._table.named()
        if sketch is None or not ids:
            return False
        if not self._drawn:
            self._file.write(sketch.line(ids))
        return True

    def write(self, pending: Pending) -> None:
        """Writes a step."""
        facts, loss = pending.facts or Facts(), pending.read_loss()
        # torch does not say why it skipped; a loss that is not finite does.
        if facts.guessed and facts.skipped and loss is not None and not math.isfinite(loss):
            facts = facts._replace(reason="nonfinite_loss")
        line = _line(pending.step, facts, loss)
        if pending.rows:
            self._measure(line, pending.step, pending.rows, facts.scale)
        self._account(line, self._file.write(line))

    def _measure(
        self, line: dict[str, object], step: int, rows: Sequence[Row], scale: float
    ) -> None:
        # Whatever the budget: it is short, and what one looks for.
        first = first_nonfinite(rows)
        if first is not None:
            line["first_nonfinite"] = first
        if not self._budget.affords_seen(step):
            return
        # In front of the step that needs it, so that a file that ends anywhere can be read.
        fresh = self._table.introduce(rows)
        if fresh is not None:
            self._file.write(fresh)
        line["seen"] = seen(rows, self._table)
        plan = plan_of(rows, self._table, scale) if self._plans else None
        if plan != self._plan:  # most measurements find the plan that is written already
            self._plan = line["plan"] = plan
        if self._budget.affords_octaves(step):
            line["octaves"] = octave_lists(rows, self._table)

    def _account(self, line: Mapping[str, object], size: int) -> None:
        budget = self._budget
        # Written out a second time to be measured: only on measuring steps.
        histograms = len(json_line(line["octaves"])) if "octaves" in line else 0
        lists = sum(len(json_line(line[name])) for name in ("seen", "plan") if name in line)
        budget.octaves += histograms
        budget.seen += lists
        budget.ordinary += size - histograms - lists
        budget.lines += 1

    def force(self) -> None:
        """Brings what is written to the disk."""
        self._file.force()

    def end(self, steps: int, error: BaseException | None) -> None:
        """Writes the last line and closes the file."""
        stopped = {} if error is None else {"stopped": type(error).__name__}
        self._file.write({"kind": "end", "steps": steps, **stopped})
        self._file.close()

    def close(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def _line(step: int, facts: Facts, loss: float | None) -> dict[str, object]:
    line: dict[str, object] = {"kind": "step", "step": step, "scale": facts.scale}
    line |= {"skipped": facts.skipped, "reason": facts.reason}
    if loss is not None:
        line["loss"] = nine_digits(loss)
    if facts.amax is not None:
        line["amax"] = nine_digits(facts.amax)
    if facts.exponents is not None:
        line["exponents"] = _octaves(facts.exponents.tolist())
    # Where it does not follow from the rest: most lines of a long run are short.
    if facts.overflow != (facts.skipped and facts.reason == "overflow"):
        line["overflow"] = facts.overflow
    if not facts.asked:
        line["asked"] = False
    line["groups"] = facts.groups
    if facts.optimizers:
        line["optimizers"] = facts.optimizers
    if facts.dropped:
        line |= {"dropped": facts.dropped, "micro_batches": facts.micro_batches}
    if facts.culprits:
        line["culprits"] = facts.culprits[:MOST_CULPRITS]
        if len(facts.culprits) > MOST_CULPRITS:
            line["culprits_left_out"] = len(facts.culprits) - MOST_CULPRITS
    return line


def _octaves(counts: list[int]) -> list[int | list[int]]:
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return [0, []]
    first, last = filled[0], filled[-1]
    return [MIN_OCTAVE + first, counts[first : last + 1]]
