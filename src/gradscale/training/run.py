"""One run from its first step, or from its last checkpoint, to its result."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from gradscale.files.json_text import write_json
from gradscale.metrics.lost_count import LostCount
from gradscale.recipes import Data
from gradscale.training.damage import damaged
from gradscale.training.folder import RESTART, RunFolder, RunResult, only_writer
from gradscale.training.precision import is_emulated
from gradscale.training.recorded import recorded
from gradscale.training.settings import Settings
from gradscale.training.trial import StepRecord, Trial

SAVE_EVERY_SECONDS = 5.0
"""What a killed run may lose."""


class Interrupted(Exception):
    """The run was asked to stop; it saved itself first."""


def run(
    settings: Settings,
    data: Data,
    folder: RunFolder,
    *,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    on_resume: Callable[[int], None] = lambda steps: None,
    stop: Callable[[], bool] = lambda: False,
    save_every: int | None = None,
    record: bool = False,
) -> RunResult:
    """Train, saving on the way, and return the result, which is also written to the folder.

    Args:
        settings: what the run depends on.
        data: from `load_data`.
        folder: where the run is kept; a run found there is continued, a finished one only read.
        on_step: called after every step.
        on_resume: called once with the steps found there, if there are any.
        stop: asked after every step; True saves the run and raises.
        save_every: steps between two checkpoints; None saves every few seconds.
        record: whether to record it beside the checkpoint; a run that did so goes on with it.

    Raises:
        Interrupted: if `stop` said so.
        Locked: if another process trains in this folder.
        Unwritable: if the disk is full; the run can be continued from its last checkpoint.
        DamagedRun: if a file of the run cannot be continued from.
    """
    finished = folder.result
    if finished is not None:
        on_resume(settings.steps)
        return finished
    with only_writer(folder.path):
        write_json(folder.path / "settings.json", settings.to_json())
        _make_deterministic(settings)
        trial = Trial(settings, data)
        state = folder.load(settings.device)
        if state is not None:
            with damaged(folder.path / "checkpoint.pt", RESTART):
                trial.load_state_dict(state)
            on_resume(trial.step)
        with recorded(trial, folder.path, wanted=record):
            _train(trial, folder, on_step, stop, save_every)
        result = _result(trial)
        write_json(folder.path / "result.json", result)  # from now on it counts as finished
        return result


def _make_deterministic(settings: Settings) -> None:
    """Fix what would let two equal runs differ. A few CUDA kernels still add in any order."""
    # The order in which threads add decides the last bit.
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Read when cuBLAS starts: without a fixed workspace its sums depend on the stream.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _train(
    trial: Trial,
    folder: RunFolder,
    on_step: Callable[[StepRecord], None],
    stop: Callable[[], bool],
    save_every: int | None,
) -> None:
    unsaved: list[StepRecord] = []
    saved_at = time.monotonic()
    while not trial.done:
        unsaved.append(trial.advance())
        on_step(unsaved[-1])
        stopping = stop()
        # By time, because a step may take a millisecond or a minute.
        late = time.monotonic() - saved_at > SAVE_EVERY_SECONDS
        due = late if save_every is None else trial.step % save_every == 0
        if due or stopping or trial.done:
            if trial.recorder is not None:
                trial.recorder.flush()  # a checkpoint never counts a step whose line is missing
            folder.save(trial.state_dict(), unsaved)
            unsaved, saved_at = [], time.monotonic()
        if stopping:
            raise Interrupted


def _result(trial: Trial) -> RunResult:
    settings = trial.settings
    loss, metric = trial.evaluate()
    return {
        "loss": loss,
        "metric": metric,
        "lost": {kind: lost.lost_share for kind, lost in trial.lost.items()},
        "lost_share": sum(trial.lost.values(), start=LostCount()).lost_share,
        "skipped": sum(trial.skips.values()),
        "reasons": dict(sorted(trial.skips.items())),
        "final_scale": 1.0 if trial.scaler is None else trial.scaler.get_scale(),
        "ms_per_step": 1000 * statistics.median(trial.seconds) if trial.seconds else None,
        "emulated": is_emulated(settings.format, settings.device, settings.emulate),
    }
