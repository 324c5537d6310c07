"""A recorded run as a patient: its steps, and the state that its last checkpoint holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gradscale.doctor.examined_scaler import Patient, Skips
from gradscale.doctor.finding import Finding
from gradscale.doctor.inert.reading import read_file
from gradscale.doctor.inspection import inspected
from gradscale.doctor.run_arguments import RunArguments
from gradscale.doctor.run_course import Course, course_of
from gradscale.doctor.saved_state import examined, settings_in
from gradscale.doctor.side_files import json_beside
from gradscale.doctor.state_search import search
from gradscale.entries import Entries
from gradscale.recording import Recording, read
from gradscale.recording.schema import FILE_NAME

STEPS = "steps.jsonl"
CHECKPOINT = "checkpoint.pt"


def is_run(path: Path) -> bool:
    """Whether this is a recording, or a folder with one.

    Example:
        >>> is_run(Path("somewhere/steps.jsonl"))
        True
    """
    if path.is_dir():
        return (path / FILE_NAME).is_file() or (path / STEPS).is_file()
    return path.suffix == ".jsonl"


def examine_run(path: Path, where: str) -> tuple[list[Patient], list[Finding]]:
    """The scaler of a run, none if it is of `gradscale inspect`, and what only a run can say.

    Args:
        path: a recording, or a folder with one.
        where: what to call it.

    Raises:
        ValueError: if a file of it is damaged.
        OSError: if it cannot be read.
    """
    recording = read(path)
    said = inspected(recording, where)
    if said is not None:
        return [], [said]
    course = course_of(recording.steps)
    folder = path if path.is_dir() else path.parent
    settings, unread = json_beside(folder / "settings.json")
    unscaled = settings.get("policy") == "none"
    patient = _saved(folder, path) or _recorded(recording, course, unscaled=unscaled)
    changes: dict[str, object] = {"where": where, "course": course}
    if course is not None:
        reasons = {**course.reasons}
        # Where no step has a reason, the source does not say any.
        if course.unexplained and reasons:
            reasons["unknown"] = course.unexplained
        consecutive = course.final.length if course.final else 0
        changes["skips"] = Skips(course.steps, course.skipped, consecutive, reasons)
        changes["steps"] = course.last + 1  # counted from 0, and from before a resume
        # A recording that begins later says nothing of the steps before it.
        told = patient.system != "none" and course.first == 0
        changes["never_overflowed"] = not (course.skipped or course.backoffs) if told else None
    # `gradscale train` writes no last line into its own steps.
    unclosed = recording.path.name != STEPS and recording.end is None
    notes = [*unread, _not_closed(recording, where)] if unclosed else unread
    return [dataclasses.replace(patient, **changes)], notes


def _not_closed(recording: Recording, where: str) -> Finding:
    torn = " Its last line is torn and was left out." if recording.torn else ""
    return Finding(
        "note", "not-closed", "The recording was not closed.",
        f"It has no last line: the run was killed, or it still runs.{torn}",
        "Nothing: what it holds can be used. `Recorder(path, …, step=n)` goes on with it.", where,
    )  # fmt: skip


def _saved(folder: Path, path: Path) -> Patient | None:
    """What the checkpoint of a `gradscale train` folder holds."""
    checkpoint = folder / CHECKPOINT
    if not path.is_dir() or not checkpoint.exists():
        return None
    try:
        tree = read_file(checkpoint)
    except ValueError as error:
        raise ValueError(f"`{checkpoint}` cannot be read: {error}.") from None
    scalers = [s for s in search(tree).states if s.system and s.where.startswith('["scaler"]')]
    return examined(scalers[0], RunArguments()) if scalers else None


def _recorded(recording: Recording, course: Course | None, *, unscaled: bool) -> Patient:
    """What the recording itself says of its scaler."""
    policy = recording.header.policy
    # Some do not name their policy; what scales nothing has 1 throughout, or NaN.
    scaled = course is not None and any(scale != 1 for scale in course.scales if scale > 0)
    if course is None or (policy is None and (unscaled or not scaled)):
        return Patient("none", "", 1.0, dynamic=False)
    described = Entries(policy or {}, "policy")
    name = described.optional(described.text, "name")
    ours = recording.header.scaler == "gradscale.GradScaler"
    return Patient(
        system="torch" if policy is not None and not ours else "gradscale",
        where="",
        scale=course.scales[3],
        policy=name,
        dynamic=False if name == "Static" else None,
        settings=settings_in(described.within("config").held),
    )
