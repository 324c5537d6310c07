"""The folder of one run: settings, one JSON line a step, a checkpoint, the result.

Every file is replaced whole, except ``steps.jsonl``, which only grows. A run that is killed at any
moment leaves a checkpoint and at least as many lines as that checkpoint counts; a resumed run drops
the lines beyond it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, cast

import torch

from gradscale.files.json_text import json_value, read_json
from gradscale.files.regular import in_the_way, open_to_append
from gradscale.files.replacement import replace_file
from gradscale.files.unwritable import Unwritable, writing
from gradscale.files.writer_lock import WriterLock
from gradscale.training.damage import damaged
from gradscale.training.trial import StepRecord, TrialState

RESTART = "Delete it to train this run from its first step."


class RunResult(TypedDict):
    """What a run ended with, as ``result.json`` holds it: floats that JSON lacks are strings.

    Attributes:
        loss: on the test data.
        metric: the recipe's, on the test data.
        lost: the share of gradient elements flushed, by ``activations`` and ``parameters``; None
            where nothing was sampled.
        lost_share: of both together.
        skipped: how many steps were.
        reasons: how many of them for which reason.
        final_scale: 1 without a scaler.
        ms_per_step: the median; None if no step was timed.
        emulated: whether half precision was.
    """

    loss: float | str
    metric: float | str
    lost: dict[str, float | None]
    lost_share: float | None
    skipped: int
    reasons: dict[str, int]
    final_scale: float | str
    ms_per_step: float | None
    emulated: bool


@contextmanager
def only_writer(path: Path) -> Generator[None]:
    """Nobody else writes into the folder meanwhile; what a killed writer left half done goes.

    Raises:
        Locked: if somebody does.
    """
    # On the folder, not on a file of it: most are replaced, and a lock would go with them.
    lock = WriterLock.on_folder(
        path,
        f"`{path}` is being written by another run. Wait until it has ended, or stop it; two at "
        "once would mix their steps.",
    )
    try:
        for half in path.glob(".*.partial"):
            with writing(half):
                half.unlink()
        yield
    finally:
        if lock is not None:
            lock.release()


class RunFolder:
    """Where one run is kept.

    Args:
        path: made if it is missing.
        within: the folder that it must lie in, through whatever links.

    Raises:
        Unwritable: if it cannot be made, or a link leads out of `within`.
    """

    def __init__(self, path: Path, within: Path | None = None) -> None:
        self.path = path
        with writing(path):
            if within is not None and not path.resolve().is_relative_to(within.resolve()):
                raise Unwritable(path, f"a symbolic link leads out of `{within}`")
            path.mkdir(parents=True, exist_ok=True)

    @property
    def result(self) -> RunResult | None:
        """What the run ended with; None while it has not."""
        path = self.path / "result.json"
        with damaged(path, "Delete it to evaluate the run again."):
            result = cast("RunResult | None", read_json(path))
            if result is not None:
                missing = RunResult.__required_keys__ - set(result)
                if missing:
                    raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            return result

    def save(self, state: TrialState, records: list[StepRecord]) -> None:
        """Append the steps since the last save, then replace the checkpoint.

        In this order, so that a checkpoint never counts a step whose line is missing.

        Raises:
            Unwritable: if the disk is full; the last checkpoint, and its lines, are still there.
        """
        self._append(json.dumps(json_value(asdict(record))) + "\n" for record in records)
        # In memory first: torch hides what goes wrong while it writes.
        content = io.BytesIO()
        torch.save(state, content)
        replace_file(self.path / "checkpoint.pt", content.getvalue())

    def _append(self, lines: Iterable[str]) -> None:
        path = self.path / "steps.jsonl"
        with os.fdopen(open_to_append(path), "ab") as file, writing(path):
            before = file.tell()
            try:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # Half a line would be taken for the beginning of the next one.
                os.ftruncate(file.fileno(), before)
                raise

    def load(self, device: str) -> TrialState | None:
        """The last checkpoint, with ``steps.jsonl`` cut back to it; None if there is none."""
        checkpoint = self.path / "checkpoint.pt"
        state: TrialState | None = None
        step = 0
        if checkpoint.exists():
            with damaged(checkpoint, RESTART):
                # `torch.load` would wait for the other end of a pipe.
                obstacle = in_the_way(checkpoint.resolve())
                if obstacle:
                    raise ValueError(obstacle)
                loaded = torch.load(checkpoint, map_location=device, weights_only=True)
                state, step = cast(TrialState, loaded), int(loaded["step"])
        # Even without a checkpoint: lines that nobody counted go.
        self._cut(step)
        return state

    def _cut(self, count: int) -> None:
        path = self.path / "steps.jsonl"
        if not path.exists():
            return
        # Cut in place, as a full disk has no room for a copy.
        with os.fdopen(open_to_append(path), "ab") as file, path.open("rb") as lines:
            # No more lines than the checkpoint counts steps.
            kept = sum(len(line) for line, _ in zip(lines, range(count), strict=False))
            with writing(path):
                os.ftruncate(file.fileno(), kept)
