"""The folder of one run: settings, one JSON line a step, a checkpoint, the result.

Every file is replaced whole, except ``steps.jsonl``, which only grows. A run that is killed at any
moment leaves a checkpoint and at least as many lines as that checkpoint counts; a resumed run drops
the lines beyond it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from gradscale.training.damage import damaged
from gradscale.training.settings import Settings
from gradscale.training.trial import Record

RESTART = "Delete it to train this run from its first step."
RESULT = {
    "loss",
    "metric",
    "lost",
    "lost_share",
    "skipped",
    "reasons",
    "final_scale",
    "ms_per_step",
    "emulated",
}


class RunFolder:
    """Where one run is kept.

    Args:
        path: made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run ended with; None while it has not."""
        path = self.path / "result.json"
        with damaged(path, "Delete it to evaluate the run again."):
            result = read_json(path)
            if result is not None:
                missing = RESULT - set(result)
                if missing:
                    raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            return result

    def write_settings(self, settings: Settings) -> None:
        """Write ``settings.json``."""
        write_json(self.path / "settings.json", settings.to_json())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``: from now on the run counts as finished."""
        write_json(self.path / "result.json", result)

    def save(self, state: dict[str, Any], records: list[Record]) -> None:
        """Append the steps since the last save, then replace the checkpoint.

        In this order, so that a checkpoint never counts a step whose line is missing.
        """
        with (self.path / "steps.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(asdict(record))) + "\n" for record in records)
            _flush(file)
        replace(self.path / "checkpoint.pt", lambda file: torch.save(state, file))

    def load(self, device: str) -> dict[str, Any] | None:
        """The last checkpoint, with ``steps.jsonl`` cut back to it; None if there is none."""
        checkpoint = self.path / "checkpoint.pt"
        state: dict[str, Any] | None = None
        step = 0
        if checkpoint.exists():
            with damaged(checkpoint, RESTART):
                state = torch.load(checkpoint, map_location=device, weights_only=True)
                step = int(state["step"])  # pyright: ignore[reportOptionalSubscript]
        self._cut(step)
        return state

    def _cut(self, count: int) -> None:
        steps = self.path / "steps.jsonl"
        if steps.exists():
            lines = steps.read_bytes().splitlines(keepends=True)
            kept = b"".join(lines[:count])
            replace(steps, lambda file: file.write(kept))


def plain(value: Any) -> Any:
    """`value` with non-finite floats as strings such as ``"nan"``: JSON has none.

    Example:
        >>> plain({"loss": math.nan, "scale": 2.0})
        {'loss': 'nan', 'scale': 2.0}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def read_json(path: Path) -> Any:
    """The file's content; None if it is missing.

    Raises:
        ValueError: if it is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None


def write_json(path: Path, value: Any) -> None:
    """Replace the file by `value`, indented."""
    text = json.dumps(plain(value), indent=2) + "\n"
    replace(path, lambda file: file.write(text.encode()))


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write beside `path`, force it to the disk, then rename: readers see a whole file."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        write(file)
        _flush(file)
    os.replace(beside, path)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
