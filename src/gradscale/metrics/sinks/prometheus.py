"""Metrics as a file for Prometheus' textfile collector."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from gradscale.metrics.metrics import Metrics

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_GAUGES = {
    "step": "The step that these values speak of.",
    "loss_scale": "The loss scale of that step.",
    "consecutive_skips": "Optimizer steps skipped since the last one taken.",
    "scale_groups": "How many loss scales the network uses.",
    "gradient_amax": "The largest finite magnitude of the unscaled gradients.",
    "lost_share": "Lost gradients as a share of the non-zero ones, when last measured.",
}


class Prometheus:
    """Keeps a file in Prometheus' text format, replaced whole, so that no reader sees half of it.

    Point node_exporter at its folder: ``--collector.textfile.directory``.

    Args:
        path: ends in ``.prom``; its folder must exist.
        labels: put on every value, such as ``{"job": "pretrain", "rank": "0"}``.

    Raises:
        ValueError: if the path does not end in ``.prom``, or a label has no valid name.
        FileNotFoundError: if there is no such folder.

    Example:
        >>> import gradscale, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gradscale.prom"
        >>> Prometheus(path)(gradscale.metrics.Metrics(step=7, scale=1024.0))
        >>> [line for line in path.read_text().splitlines() if line.startswith("gradscale_loss")]
        ['gradscale_loss_scale 1024.0']
    """

    def __init__(self, path: str | Path, labels: Mapping[str, str] | None = None) -> None:
        self.path, self.labels = Path(path), dict(labels or {})
        if self.path.suffix != ".prom":
            raise ValueError(
                f"`Prometheus({str(path)!r})` must end in `.prom`: the textfile collector reads "
                "no other files."
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"`Prometheus({str(path)!r})`: there is no folder `{self.path.parent}`. Make it, "
                "and pass it to node_exporter as `--collector.textfile.directory`."
            )
        for name in self.labels:
            if not _LABEL.fullmatch(name) or name.startswith("__") or name == "reason":
                raise ValueError(
                    f"`Prometheus(labels={{{name!r}: …}})` must be a name of letters, digits and "
                    "underscores, not starting with a digit or `__`, and not `reason`, which is "
                    "taken."
                )

    def __call__(self, metrics: Metrics) -> None:
        """Replaces the file."""
        text = "\n".join(self._lines(metrics)) + "\n"
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        beside.write_text(text, encoding="utf-8")
        # From the same folder, so that it is a rename; the collector takes no name without `.prom`.
        os.replace(beside, self.path)

    def _lines(self, metrics: Metrics) -> Iterator[str]:
        values = (
            metrics.step,
            metrics.scale,
            metrics.consecutive,
            metrics.groups,
            metrics.amax,
            None if metrics.lost is None else metrics.lost.lost_share,
        )
        for (name, meaning), value in zip(_GAUGES.items(), values, strict=True):
            if value is not None:
                yield from _head(name, "gauge", meaning)
                yield self._line(name, float(value))
        yield from _head("steps_total", "counter", "Optimizer steps asked for.")
        yield self._line("steps_total", float(metrics.steps))
        yield from _head("skipped_steps_total", "counter", "Optimizer steps not taken, by reason.")
        # A counter that is there before the first skip: of one that appears with it no rate is
        # known.
        for reason, count in sorted(metrics.reasons.items()) or [("overflow", 0)]:
            yield self._line("skipped_steps_total", float(count), reason=reason)

    def _line(self, name: str, value: float, **labels: str) -> str:
        both = {**self.labels, **labels}
        inside = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in both.items())
        return f"gradscale_{name}{f'{{{inside}}}' if inside else ''} {_number(value)}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP gradscale_{name} {meaning}"
    yield f"# TYPE gradscale_{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else "+Inf" if value > 0 else "-Inf"
