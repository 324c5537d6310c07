"""Layer-wise plans: how many scales, and what was left at one."""

from __future__ import annotations

from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import counted


def check_plan(patient: Patient) -> Iterator[Finding]:
    """What the saved plans of `GradScaler(layerwise=…)` say."""
    plan = patient.plan
    if plan is None:
        return
    # One or the other: a plan that was never made has one scale because it was never made.
    if plan.frozen:
        yield Finding(
            "warning", "frozen-plan", "Part of the training is not scaled by layer.",
            f"{len(plan.frozen)} of {counted(plan.graphs, 'graph')} stay at one scale: "
            f"{'; '.join(sorted(set(plan.frozen)))}.",
            "docs/layerwise.md says what each reason means and how to lift it.",
        )  # fmt: skip
    elif plan.scales == 1:
        yield Finding(
            "note", "one-scale-is-enough", "The layer-wise plan needs one scale only.",
            f"The plan of {counted(plan.graphs, 'graph')} has one group.",
            "Nothing: such a plan costs nothing but its measurements.",
        )  # fmt: skip
