"""Recordings of runs that never were, as large as wanted, written as a recorder writes them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.histogram import MIN_OCTAVE, count_exponents
from gradscale.plans.window import flush_octave

SEEN = ("id", "flushed", "nonzero", "zero", "nonfinite", "amax", "exponent", "lo", "hi")


def from_tensors(
    path: Path, tensors: dict[str, Tensor], log2_scale: int = 16, format: str = "fp16"
) -> Path:
    """A recording of one step that saw these gradients before they were rounded."""
    half = FloatFormat.of(format)
    infos, seen, octaves = [], {name: [] for name in SEEN}, {}
    for row, (name, tensor) in enumerate(tensors.items()):
        infos.append({
            "id": row, "name": name, "row_kind": "parameter", "format": format,
            "numel": tensor.numel(), "order": row,
        })  # fmt: skip
        counts = count_exponents(tensor)
        used = counts.nonzero().flatten().tolist()
        first, last = (used[0], used[-1]) if used else (0, -1)
        octaves[str(row)] = [first + MIN_OCTAVE, counts[first : last + 1].tolist()]
        stored = tensor * 2.0**log2_scale
        amax = float(tensor.abs().max())
        values = {
            "id": row, "flushed": int(((half.round(stored) == 0) & (tensor != 0)).sum()),
            "nonzero": int((tensor != 0).sum()), "zero": int((tensor == 0).sum()),
            "nonfinite": 0, "amax": math.ceil(1000 * math.log2(amax)) / 1000 if amax else None,
            "exponent": log2_scale, "lo": -63, "hi": 63,
        }  # fmt: skip
        for field in SEEN:
            seen[field].append(values[field])
    lost = sum(seen["flushed"]) / max(1, sum(seen["nonzero"]))
    lines = [
        {"kind": "run", "version": 1, "format": format},
        {"kind": "rows", "rows": infos},
        {
            "kind": "step", "step": 0, "scale": 2.0**log2_scale, "skipped": False, "reason": None,
            "loss": 1.0, "seen": {"lost": lost, "method": "counted", **seen}, "octaves": octaves,
        },
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass
class MadeUp:
    """A deep network whose gradients shrink from the loss to the input, under a dynamic scale."""

    steps: int = 400
    rows: int = 24
    every: int = 20
    octaves_every: int = 100
    format: str = "fp16"
    skip_every: int = 90
    plan: bool = True
    structure: bool = True
    seed: int = 0
    shrink: float = 36.0
    numel: int = 4096
    log2_scale: int = 16

    def write(self, path: Path) -> Path:
        """Write the recording and return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for line in self._lines():
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        return path

    def _lines(self):
        self._random = np.random.default_rng(self.seed)
        yield {
            "kind": "run", "version": 1, "gradscale": "0.1.0", "torch": "2.13.0",
            "started": "2026-11-25T03:00:00Z", "format": self.format,
            "policy": {"name": "Dynamic", "config": {"growth_interval": 2000}},
            "layerwise": "Windows()" if self.plan else None,
            "measure_every": self.every, "note": {"seed": self.seed},
        }  # fmt: skip
        yield {"kind": "rows", "rows": [self._info(row) for row in range(self.rows)]}
        if self.structure:
            yield self._structure()
        scale = self.log2_scale
        for step in range(self.steps):
            skipped = self.skip_every and step % self.skip_every == self.skip_every - 1
            yield self._step(step, scale, bool(skipped))
            scale += -1 if skipped else (step % self.skip_every == 40) if self.skip_every else 0
        yield {"kind": "end", "steps": self.steps}

    def kind(self, row: int) -> str:
        return ("parameter", "module", "parameter", "cast", "activation")[row % 5]

    def name(self, row: int) -> str:
        layer = f"layers.{self.rows // 5 - row // 5}"
        names = {
            "module": f"{layer}.attention", "cast": f"cast after {layer}.mlp",
            "activation": f"{layer}.act (output)",
        }  # fmt: skip
        return names.get(self.kind(row), f"{layer}.{'qkv' if row % 5 else 'mlp'}.weight")

    def _info(self, row: int) -> dict[str, Any]:
        return {
            "id": row, "name": self.name(row), "row_kind": self.kind(row), "format": self.format,
            "numel": self.numel, "order": row,
        }  # fmt: skip

    def _structure(self) -> dict[str, Any]:
        parts = [row for row in range(self.rows) if self.kind(row) != "activation"]
        edges = [[i, i + 1] for i in range(len(parts) - 1)]
        edges += [[i, i + 4] for i in range(0, len(parts) - 4, 4)]
        rows = {str(i): row for i, row in enumerate(parts)}
        nodes = [self.name(row) for row in parts]
        return {"kind": "structure", "nodes": nodes, "edges": edges, "rows": rows}

    def _step(self, step: int, scale: int, skipped: bool) -> dict[str, Any]:
        loss = 2.3 * math.exp(-3 * step / self.steps) + float(self._random.gamma(2, 0.03))
        line: dict[str, Any] = {
            "kind": "step", "step": step, "scale": 2.0**scale, "skipped": skipped,
            "reason": "overflow" if skipped else None,
            "loss": round(loss, 4),
            "amax": round(float(2 ** self._random.normal(-2, 0.7)), 6),
            "groups": 3 if self.plan else 1,
        }  # fmt: skip
        if skipped:
            line["culprits"] = [self.name(0)]
            line["first_nonfinite"] = {"backward": self.name(0), "forward": None}
        if step % self.every == 0:
            line |= self._measured(step, scale)
        if self.plan and step % (10 * self.every) == 0:
            third = max(1, self.rows // 3)
            groups = [range(i, min(i + third, self.rows)) for i in range(0, self.rows, third)]
            line["plan"] = {
                "log2_scale": scale,
                "groups": [
                    {"exponent": scale + 4 * i, "rows": list(rows)} for i, rows in enumerate(groups)
                ],
            }
        return line

    def _measured(self, step: int, scale: int) -> dict[str, Any]:
        format = FloatFormat.of(self.format)
        rows = np.arange(self.rows)
        drift = 6.0 * step / max(1, self.steps)
        center = (
            -8.0 - self.shrink * rows / self.rows - drift + self._random.normal(0, 0.4, self.rows)
        )
        width = 24
        octave = np.arange(width)
        shape = np.exp(-0.5 * ((octave - 12) / 3.2) ** 2)
        shape = shape / shape.sum()
        counts = self._random.poisson(0.7 * self.numel * shape[None, :], (self.rows, width))
        lowest = np.floor(center).astype(int) - 12
        activation = np.array([self.kind(row) == "activation" for row in rows])
        third = max(1, self.rows // 3)
        offset = 4 * (rows // third) if self.plan else 0 * rows
        exponent = np.where(activation, 0, scale + offset)
        lowest = np.where(activation, -18, lowest)
        stored = lowest[:, None] + octave[None, :] + exponent[:, None]
        flushed = np.where(stored < flush_octave(format), counts, 0).sum(1)
        nonzero = counts.sum(1)
        top = np.array([octave[c > 0].max() if c.any() else 0 for c in counts])
        amax = lowest + top + 0.6
        lo = flush_octave(format) - lowest - 7
        hi = np.maximum(lo, np.floor(format.max_exponent - amax).astype(int) - 4)
        zero = np.maximum(0, self.numel - nonzero)
        seen = {
            "lost": float(flushed[~activation].sum() / nonzero[~activation].sum()),
            "method": "counted", "id": rows.tolist(), "flushed": flushed.tolist(),
            "nonzero": nonzero.tolist(), "zero": zero.tolist(), "nonfinite": [0] * self.rows,
            "amax": np.round(amax, 3).tolist(), "exponent": exponent.tolist(),
            "lo": lo.tolist(), "hi": hi.tolist(),
        }  # fmt: skip
        found: dict[str, Any] = {"seen": seen}
        if step % self.octaves_every == 0:
            found["octaves"] = {
                str(row): [int(lowest[row]), counts[row].tolist()] for row in rows.tolist()
            }
        return found
