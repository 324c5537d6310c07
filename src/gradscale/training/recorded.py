"""A run that records itself: its recording lies beside its checkpoint, and is resumed with it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gradscale.recording import Recorder
from gradscale.recording.schema import FILE_NAME
from gradscale.scaler import GradScaler
from gradscale.training.trial import Trial
from gradscale.watching import watch

MEASUREMENTS = 50
"""About how many measuring steps a short run gets."""


@contextmanager
def recorded(trial: Trial, folder: Path, *, wanted: bool) -> Generator[None]:
    """Records the steps that are taken inside, if that is wanted or was begun before.

    Args:
        trial: at the step where it goes on.
        folder: of the run; gets a ``recording.jsonl``.
        wanted: whether to begin a recording where there is none.
    """
    path = folder / FILE_NAME
    # One that was begun goes on, asked for or not: with a gap it would be of no use.
    if not wanted and not path.exists():
        yield
        return
    settings = trial.settings
    ours = isinstance(trial.scaler, GradScaler)
    # At most as far apart as a watch's own default; short runs get `MEASUREMENTS`.
    every = max(1, min(100, settings.steps // MEASUREMENTS))
    with (
        watch(trial.model, trial.scaler, every=every) as watching,
        Recorder(
            path,
            trial.scaler,
            watching,
            amax=ours,
            exponents=ours,
            format=settings.format,
            step=trial.step,
            note=settings.to_json(),
        ) as recorder,
    ):
        # Before the first step: or the watch would measure other steps than without the stop.
        if trial.watched is not None:
            watching.load_state_dict(trial.watched)
        trial.recorder, trial.watching = recorder, watching
        try:
            yield
        finally:
            trial.recorder = trial.watching = None
