"""What `Recorder(…)` was called with, checked before a file is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

from gradscale.argument_checks import check_switch, check_whole
from gradscale.watching.watch import Watch


def check_watch(watch: object, scaler: object) -> None:
    """Refuses what is no watch, or the watch of another scaler.

    Raises:
        TypeError: if it is no watch.
        ValueError: if it divides by another scale.
    """
    if watch is None:
        return
    # By what is used of it.
    if not (hasattr(watch, "scaler") and hasattr(watch, "on_measured")):
        raise TypeError(
            f"`Recorder(watch={watch!r})` must be what `gradscale.watch(model, scaler)` returns."
        )
    its = cast(Watch, watch).scaler
    if its is not scaler:
        raise ValueError(
            "`Recorder(path, scaler, watch)`: the watch divides its gradients by the scale of "
            f"{'no scaler' if its is None else 'another one'}. Make it with "
            "`watch(model, scaler)`."
        )


def check_recording(
    path: object, amax: object, exponents: object, step: object, note: object, size: object
) -> None:
    """Refuses what would be found out late, or never.

    Raises:
        TypeError: if one is of the wrong kind.
        ValueError: if `step` or `size` is no whole number, or out of range.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`Recorder({path!r})`: a path comes first, of a file or a folder.")
    check_switch("Recorder", "amax", amax)
    check_switch("Recorder", "exponents", exponents)
    if step is not None:
        check_whole("Recorder", "step", step, 0, "It is the next step's index.")
    if note is not None and not isinstance(note, Mapping):
        raise TypeError(f"`Recorder(note={note!r})` must be a dictionary that JSON can hold.")
    check_whole("Recorder", "size", size, 1, "It is bytes after 100,000 steps.")
