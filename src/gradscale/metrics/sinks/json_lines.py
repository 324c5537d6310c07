"""Metrics as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from gradscale.metrics.metrics import Metrics


class JsonLines:
    """Appends one object a step; each line reaches the operating system before the next step.

    For a file that reports and replays can be made of, use `gradscale.Recorder`.

    Args:
        path: the file; its folder must exist.

    Example:
        >>> import gradscale, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> sink = JsonLines(path)
        >>> sink(gradscale.Metrics(step=7, scale=1024.0))
        >>> sink.close()
        >>> json.loads(path.read_text())["scale"]
        1024.0
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, metrics: Metrics) -> None:
        """Appends a step."""
        self._file.write(json.dumps(metrics.to_dict()) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
