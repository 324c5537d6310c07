"""Examines a checkpoint or a run, whoever wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from gradscale.doctor.checkpoint_files import parts_of
from gradscale.doctor.checks import CHECKS
from gradscale.doctor.code_settings import compare_settings, wanted_settings
from gradscale.doctor.diagnosis import Diagnosis, worst_first
from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.floats_beside import bad_floats
from gradscale.doctor.inert.reading import read_file
from gradscale.doctor.rank_agreement import across_ranks
from gradscale.doctor.recorded_run import examine_run, is_run
from gradscale.doctor.run_arguments import count_in, read_run_arguments
from gradscale.doctor.saved_state import examined
from gradscale.doctor.side_files import json_beside, not_read
from gradscale.doctor.state_search import FoundState, search
from gradscale.entries import shown
from gradscale.policies import Policy

Progress = Callable[[int, int, str], object]


def examine(
    path: str | Path,
    against: Policy | str | Mapping[str, object] | None = None,
    *,
    progress: Progress = lambda done, total, what: None,
) -> Diagnosis:
    """Says what the scaler state in a file means and what is wrong with it.

    Reads checkpoints of gradscale, torch, DeepSpeed, Megatron, fairseq, apex, Keras, Paddle and
    flax wherever they keep the state, recordings, and folders of `gradscale train` and `compare`;
    of `gradscale inspect`, which has no scaler, it repeats the words.
    Pickled objects are read as names and plain data: nothing that the file holds is run, and no
    tensor is made. The bytes of floats beside a scaler are looked through for infinities and NaN.

    Args:
        path: a checkpoint, a recording, JSON with a state, or a folder of any of these.
        against: the settings that your code passes: a policy, the name of a preset, or text such as
            ``"growth_interval=500,hysteresis=2"``; what differs is a finding.
        progress: told how many of how many files are done, and which is next.

    Returns:
        The scalers that were found, what their states mean, and the findings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of these, damaged, or holds no scaler's state.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> scaler = torch.amp.GradScaler("cpu")
        >>> torch.save({"scaler": scaler.state_dict() | {"scale": 0.0}}, file)
        >>> examine(file).problems[0].what
        'The scale is 0.'
    """
    root = Path(path)
    wanted = None if against is None else wanted_settings(against)
    parts = parts_of(root)
    patients: list[Patient] = []
    findings: list[Finding] = []
    refused: list[str] = []
    for done, part in enumerate(parts):
        name = "" if part == root else str(part.relative_to(root))
        progress(done, len(parts), name or root.name)
        try:
            some, more = _examine_part(part, name)
        except ValueError as error:
            # Among many files some are no checkpoints: they are named, and the others examined.
            # A recording says by its name that it is one, so that a broken one is an error.
            if part == root or is_run(part):
                raise
            refused.append(f"{name}: {error}")
            continue
        patients += some
        findings += more
    if not patients and not findings:
        raise ValueError(_nothing(root, parts, refused))
    findings += [not_read(why) for why in refused]
    seen, ranks = across_ranks(patients)
    for patient in seen:
        said = [finding for check in CHECKS for finding in check(patient)]
        said += [] if wanted is None else compare_settings(patient, wanted)
        findings += [dataclasses.replace(finding, where=patient.where) for finding in said]
    return Diagnosis(str(root), tuple(seen), worst_first([*ranks, *findings]))


def _examine_part(part: Path, name: str) -> tuple[list[Patient], list[Finding]]:
    if is_run(part):
        return examine_run(part, name)
    try:
        tree = read_file(part)
    except ValueError as error:
        raise ValueError(f"`{part}` is not a checkpoint that can be read: {error}.") from None
    found, arrays = search(tree)
    beside = bad_floats(arrays, name)
    # In a folder, files without a scaler are the rule: weights beside the optimizer's, say.
    if not (found or name or any(finding.problem for finding in beside)):
        raise ValueError(_no_state(part, tree))
    # The Trainer of Hugging Face counts its steps in a file beside its scaler.
    trainer = part.with_name("trainer_state.json")
    held, unread = json_beside(trainer) if part.name == "scaler.pt" else ({}, [])
    steps = count_in(held, "global_step")
    patients = [_patient(tree, state, steps, name) for state in found if state.system]
    disabled = [_disabled(state, name) for state in found if not state.system]
    return patients, [*(unread if patients else disabled), *beside]


def _patient(tree: object, found: FoundState, steps: int | None, name: str) -> Patient:
    beside = read_run_arguments(tree, found.system)
    if beside.steps is None:
        beside = dataclasses.replace(beside, steps=steps)
    return examined(found._replace(where=_place(name, found.where)), beside)


def _place(name: str, where: str) -> str:
    return f"{name} {where}".strip()


def _disabled(found: FoundState, name: str) -> Finding:
    return Finding(
        "note", "disabled", "The scaler was disabled: it saved an empty state.",
        f"{found.where} is empty.",
        "Nothing in bfloat16 or float32. In float16, build the scaler with enabled=True.",
        _place(name, found.where),
    )  # fmt: skip


def _no_state(path: Path, tree: object) -> str:
    keys = ", ".join(map(shown, tree))[:200] if isinstance(tree, dict) else None
    has = "" if keys is None else f" It has the keys {keys}."
    return (
        f"`{path}` holds no scaler's state.{has} Save `scaler.state_dict()` into it; a run in "
        "bfloat16 or float32 has none and needs none."
    )


def _nothing(root: Path, parts: list[Path], refused: list[str]) -> str:
    said = f" Not read: {'; '.join(refused)[:300]}" if refused else ""
    return f"`{root}`: none of {len(parts)} files holds a scaler's state.{said}"
