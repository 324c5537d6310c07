"""Metrics as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from gradscale.metrics.metrics import Metrics


class JsonLines:
    """Appends one object a step; the file is open only while it is written.

    For a file that reports and replays can be made of, use `gradscale.Recorder`.

    Args:
        path: the file; its folder must exist.

    Example:
        >>> import gradscale, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> JsonLines(path)(gradscale.metrics.Metrics(step=7, scale=1024.0))
        >>> json.loads(path.read_text())["scale"]
        1024.0
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.open("a").close()  # what is wrong with it shows now, not in the middle of a run

    def __call__(self, metrics: Metrics) -> None:
        """Appends a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics.to_dict()) + "\n")
