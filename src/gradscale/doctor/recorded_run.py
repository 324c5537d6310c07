"""A recorded run as a patient: its steps, and the state that its last checkpoint holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gradscale.doctor.examined_scaler import Patient, Skips
from gradscale.doctor.finding import Finding
from gradscale.doctor.inert.reading import read_file
from gradscale.doctor.run_arguments import RunArguments
from gradscale.doctor.run_course import Course, course_of
from gradscale.doctor.saved_state import examined, settings_in
from gradscale.doctor.side_files import json_beside
from gradscale.doctor.state_search import find_states
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


def examine_run(path: Path, where: str) -> tuple[Patient, list[Finding]]:
    """The scaler of a run, and what only a run can say.

    Args:
        path: a recording, or a folder with one.
        where: what to call it.

    Raises:
        ValueError: if a file of it is damaged.
        OSError: if it cannot be read.
    """
    recording = read(path)
    course = course_of(recording.steps)
    folder = path if path.is_dir() else path.parent
    settings, unread = json_beside(folder / "settings.json")
    unscaled = settings.get("policy") == "none"
    patient = _saved(folder, path) or _recorded(recording, course, unscaled=unscaled)
    changes: dict[str, object] = {"where": where, "course": course}
    if course is not None:
        reasons = {**course.reasons}
        if course.unexplained and reasons:
            reasons["unknown"] = course.unexplained
        consecutive = course.final.length if course.final else 0
        changes["skips"] = Skips(course.steps, course.skipped, consecutive, reasons)
        changes["steps"] = course.last + 1  # counted from 0, and from before a resume
        changes["never_overflowed"] = _never(patient, course)
    return dataclasses.replace(patient, **changes), [*unread, *_notes(recording, where)]


def _never(patient: Patient, course: Course) -> bool | None:
    if patient.system == "none" or course.first != 0:
        return None
    return not course.skipped and not course.backoffs


def _notes(recording: Recording, where: str) -> list[Finding]:
    if recording.path.name != STEPS and recording.end is None:
        torn = " Its last line is torn and was left out." if recording.torn else ""
        return [
            Finding(
                "note", "not-closed", "The recording was not closed.",
                f"It has no last line: the run was killed, or it still runs.{torn}",
                "Nothing: what it holds can be used. `Recorder(path, …, step=n)` goes on with it.",
                where,
            )
        ]  # fmt: skip
    return []


def _saved(folder: Path, path: Path) -> Patient | None:
    """What the checkpoint of a `gradscale train` folder holds."""
    checkpoint = folder / CHECKPOINT
    if not path.is_dir() or not checkpoint.exists():
        return None
    try:
        tree = read_file(checkpoint)
    except ValueError as error:
        raise ValueError(f"`{checkpoint}` cannot be read: {error}.") from None
    found = [state for state in find_states(tree) if state.system]
    scalers = [state for state in found if state.where.startswith('["scaler"]')]
    return examined(scalers[0], RunArguments()) if scalers else None


def _recorded(recording: Recording, course: Course | None, *, unscaled: bool) -> Patient:
    """What the recording itself says of its scaler."""
    policy = recording.header.policy
    if course is None or (policy is None and (unscaled or not _scales(course))):
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


def _scales(course: Course) -> bool:
    """Whether a run that does not name its policy has a loss scale that is not 1 or NaN."""
    return any(scale != 1 for scale in course.scales if scale > 0)
