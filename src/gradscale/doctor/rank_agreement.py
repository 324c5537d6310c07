"""One checkpoint, many ranks: their scalers must be the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gradscale.doctor.checkpoint_files import without_rank
from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import scale_words


def across_ranks(patients: Sequence[Patient]) -> tuple[list[Patient], list[Finding]]:
    """One patient for all ranks that agree, and a finding where they do not.

    Args:
        patients: of all files.

    Example:
        >>> ranks = [Patient("megatron", f"mp_rank_0{i}/model.pt", 8.0) for i in range(2)]
        >>> [(patient.where, patient.files) for patient in across_ranks(ranks)[0]]
        [('mp_rank_*/model.pt', 2)]
    """
    # By the place with its rank left out: each rank has a file, or a folder, of its own.
    together: dict[str, list[Patient]] = {}
    for patient in patients:
        together.setdefault(without_rank(patient.where), []).append(patient)
    seen: list[Patient] = []
    findings: list[Finding] = []
    for where, ranks in together.items():
        if len(ranks) == 1:
            seen += ranks
        elif all(_stands(rank) == _stands(ranks[0]) for rank in ranks):
            seen.append(dataclasses.replace(ranks[0], where=where, files=len(ranks)))
        else:
            seen += ranks
            findings.append(_disagreement(where, ranks))
    return seen, findings


def _stands(patient: Patient) -> tuple[object, ...]:
    # As text, so that a scale of NaN equals itself.
    return str(patient.scale), patient.good_steps, patient.hysteresis_left


def _disagreement(where: str, ranks: Sequence[Patient]) -> Finding:
    scales = sorted({rank.scale for rank in ranks})
    differ = ", ".join(scale_words(value) for value in scales[:4])
    said = f"scales {differ}" if len(scales) > 1 else "the same scale, other counters"
    return Finding(
        "error", "ranks-differ", "The ranks do not have the same scaler.",
        f"{len(ranks)} ranks, {said}: each skipped or grew on its own.",
        "Reduce the overflow flag over all ranks: `gradscale.GradScaler(process_group=…)`, or "
        "torch's ShardedGradScaler. Resume from a checkpoint where they agree.",
        where,
    )  # fmt: skip
