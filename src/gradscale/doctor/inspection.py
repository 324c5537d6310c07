"""A recording that `gradscale inspect` wrote: no run of a scaler, but looks at one format."""

from __future__ import annotations

from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import counted
from gradscale.entries import Entries
from gradscale.recording import Recording


def inspected(recording: Recording, where: str) -> Finding | None:
    """What the inspection itself said; None for any other recording.

    Its steps are moments of a float32 training, each at the best single scale of that moment. No
    scaler went from one to the next, so that nothing may be made of how they differ.

    Args:
        recording: of a run, or of one format of an inspection.
        where: what to call it.
    """
    note = Entries(recording.header.note, "note")
    try:
        target, lines = note.text("inspect"), note.entries("advice").texts("lines")
    except (TypeError, ValueError):
        return None  # a note is the user's own: this one is of something else
    looks = counted(len(recording.steps), "look")
    return Finding(
        "note", "inspected", lines[0] if lines else "It was inspected.",
        f"{looks} at `{target}`, each at the best single scale of its moment; no scaler ran.",
        " ".join(lines[1:]) or "Choose another format, or stay with float32.", where,
    )  # fmt: skip
