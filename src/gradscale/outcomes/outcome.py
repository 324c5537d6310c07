"""What became of a step: taken or skipped, and why; on the device until somebody reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import ref

import torch
from torch import Tensor

from gradscale.gradients.master_weights import trained_by
from gradscale.outcomes.counters import Counters
from gradscale.outcomes.evidence import Blame, Evidence
from gradscale.outcomes.triage import (
    REASONS,
    UNNAMED,
    Culprit,
    Reason,
    all_finite,
    find_culprits,
    find_reason,
)
from gradscale.policies.policy import Observation
from gradscale.ranks import Ranks, agreed_index, distributed, groups_of


class OptimizerOutcome:
    """What became of one optimizer's step.

    The flag stays on the device. Reading `skipped`, `reason`, `culprits` or `scale` waits for it,
    unless the scaler had to read it anyway (an unfused optimizer).

    Attributes:
        observation: what the policy was shown; None before `update()`.
        micro_batches: how many were given to `accumulate_`; 0 without it.
        dropped_micro_batches: how many were left out, on the device until `dropped` reads it; None
            if none may be.
        unrepresentable: whether a gradient was finite at this scale, but not when divided by it: it
            exceeds its own dtype, and no scale helps.
        blames_scale: whether the host found the scale at fault; the policy sees only such steps.
        suspected: whether it is an overflow with a loss that was not finite, and may be so because
            it depends on the scale.
        in_a_row: how many steps of this optimizer in a row were skipped by now; 0 if it stepped.
        counted: the scaler's counters with this outcome; None before it has reached the host.
        agreed: whether all ranks give the same reason.
        blame: what the device, or all ranks together, found to blame; None if nobody asked them.
        settled: whether reading this outcome is free.
    """

    observation: Observation | None = None
    unrepresentable = False
    micro_batches = 0
    dropped_micro_batches: Tensor | None = None
    blames_scale = False
    suspected = False
    in_a_row = 0
    agreed = False
    counted: Counters | None = None
    blame: Blame | None = None
    settled = False
    _skipped = False
    _reason: Reason | None = None
    _culprits: tuple[Culprit, ...] = ()

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        found_inf: Sequence[Tensor],
        scale: Tensor,
        evidence: Evidence,
    ) -> None:
        self._optimizer = ref(optimizer)
        self._found_inf = found_inf
        self._scale: Tensor | float = scale
        self._evidence: Evidence | None = evidence  # until nobody will ask it any more

    def settle(self, skipped: bool, scale: float, process_group: Ranks | None) -> None:
        """Records what the host has read. Of a skipped step, finds out why: a collective."""
        self.settled, self._skipped, self._scale = True, skipped, scale
        if not skipped:
            self._evidence = None
            return
        optimizer = self._optimizer()
        if optimizer is None:
            return
        self._explain()
        self.agreed = True
        groups = groups_of(optimizer, process_group)
        if groups:
            # The reason first, then whether it is in doubt: whoever doubts it must not be alone.
            code = 2 * REASONS.index(self._reason or "overflow") + self.suspected
            code = agreed_index(code, groups, self._found_inf[0])
            self._reason = REASONS[code // 2]
            self.suspected = self._reason == "overflow" and bool(code % 2)
        # Data that only this rank saw must not spare the scale here alone: ranks would go apart.
        alone = not groups and distributed()
        self.blames_scale = not self.unrepresentable and (alone or self._reason == "overflow")

    def arrive(self, skipped: bool) -> None:
        """Records the flag alone, once it has reached the host by itself."""
        self.settled, self._skipped = True, skipped
        if not skipped:
            self._evidence = None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Whose step it was; None if it is gone."""
        return self._optimizer()

    @property
    def key(self) -> int:
        """Tells its optimizer from others, as long as that one lives."""
        return id(self._optimizer())

    @property
    def found_inf(self) -> Sequence[Tensor]:
        """The flags, one a device: above 0 if a gradient was not finite."""
        return self._found_inf

    @property
    def skipped(self) -> bool:
        """Whether the optimizer did not step."""
        if not self.settled:
            self.arrive(any(flag.item() for flag in self._found_inf))
        return self._skipped

    @property
    def dropped(self) -> int:
        """How many micro-batches were left out because they overflowed; see `accumulate_`."""
        return 0 if self.dropped_micro_batches is None else int(self.dropped_micro_batches)

    def left_at(self) -> Tensor:
        """What the gradients are multiplied by after the step: S if the device skipped it."""
        flag = self._found_inf[0]
        scale = self._scale
        if not isinstance(scale, Tensor):  # it has been read
            scale = torch.full((), scale, dtype=torch.float32, device=flag.device)
        return torch.where(flag > 0, scale, 1.0)

    @property
    def scale(self) -> float:
        """The loss scale of this step."""
        if isinstance(self._scale, Tensor):
            self._scale = float(self._scale)
        return self._scale

    @property
    def reason(self) -> Reason | None:
        """Why the step was skipped; None if it was not.

        Of a fused optimizer, read it before the next backward pass: afterwards the gradients that
        name the `culprits` are gone, and a parameter may have changed.
        """
        self._explain()
        return self._reason

    @property
    def culprits(self) -> tuple[Culprit, ...]:
        """The parameters whose gradients were not finite, with the number of elements."""
        self._explain()
        return self._culprits

    def _explain(self) -> None:
        evidence = self._evidence
        if evidence is None or not self.skipped:
            return
        optimizer = self._optimizer()
        parameters = trained_by(optimizer) if optimizer else []
        witnesses, others = evidence.of(parameters)
        left_over = evidence.left_over.get(id(optimizer))
        flags = [] if left_over is None else list(left_over.flags.values())
        self._reason = find_reason(
            parameters, witnesses, evidence.inputs, others=others, left_over=flags
        )
        self.suspected = self._reason == "overflow" and not all_finite(others)
        if self._reason == "overflow" and self.blame is not None:
            self._reason = self.blame.reason  # another rank's, whose losses this one does not hold
        if optimizer is not None:
            self._culprits = tuple(find_culprits(optimizer, evidence.names, evidence.learn))
        self._evidence = None

    def __repr__(self) -> str:
        if not self.settled:
            return "OptimizerOutcome(on the device)"
        parts = ["skipped", str(self.reason)] if self.skipped else ["taken"]
        parts.append(f"scale={self.scale:g}")
        if self.dropped:
            parts.append(f"{dropped_words(self.dropped, self.micro_batches)} dropped")
        shown = [str(culprit) for culprit in self.culprits[:3]]
        if shown:
            more = f" and {len(self.culprits) - 3} more" if len(self.culprits) > 3 else ""
            parts.append("; ".join(shown) + more)
        if any(map(UNNAMED.match, shown)):
            parts.append("named after `scaler.name_parameters(model)`")
        return f"OptimizerOutcome({', '.join(parts)})"


def dropped_words(dropped: int, of: int) -> str:
    """How many micro-batches were left out of a step.

    Example:
        >>> dropped_words(1, 4), dropped_words(4, 4)
        ('1 of 4 micro-batches', 'all 4 micro-batches')
    """
    return f"{f'all {of}' if dropped == of else f'{dropped} of {of}'} micro-batches"


class StepOutcome:
    """What became of the step since the last `update()`, over all its optimizers.

    Example:
        >>> import gradscale
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = gradscale.GradScaler("cpu")
        >>> scaler.scale(model(torch.full((1, 2), torch.inf)).sum()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.last_step.skipped, scaler.last_step.reason
        (True, 'nonfinite_loss')
    """

    def __init__(self) -> None:
        self._outcomes: list[OptimizerOutcome] = []

    def add(self, outcome: OptimizerOutcome) -> None:
        """Another optimizer's outcome."""
        self._outcomes.append(outcome)

    def show(self, observation: Observation) -> None:
        """Notes what the policy is shown."""
        for outcome in self._outcomes:
            outcome.observation = observation

    def __iter__(self) -> Iterator[OptimizerOutcome]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, optimizer: object) -> bool:
        return any(outcome._optimizer() is optimizer for outcome in self._outcomes)

    def __getitem__(self, optimizer: torch.optim.Optimizer) -> OptimizerOutcome:
        for outcome in self._outcomes:
            if outcome._optimizer() is optimizer:
                return outcome
        raise KeyError(
            f"`last_step[{type(optimizer).__name__}]` took no part in this step. Call "
            "`scaler.step(optimizer)` first."
        )

    @property
    def skipped(self) -> bool:
        """Whether one of the optimizers did not step."""
        return any(outcome.skipped for outcome in self._outcomes)

    @property
    def reason(self) -> Reason | None:
        """Why: bad data before overflow, if the optimizers differ; None if nothing was skipped."""
        reasons = {outcome.reason for outcome in self._outcomes if outcome.skipped}
        order: tuple[Reason, ...] = (
            "nonfinite_parameter",
            "nonfinite_input",
            "nonfinite_loss",
            "nonfinite_gradient",
            "overflow",
        )
        return next((reason for reason in order if reason in reasons), None)

    @property
    def culprits(self) -> tuple[Culprit, ...]:
        """The parameters whose gradients were not finite, with the number of elements."""
        return tuple(culprit for outcome in self._outcomes for culprit in outcome.culprits)

    @property
    def dropped(self) -> int:
        """How many micro-batches were left out because they overflowed; see `accumulate_`."""
        return sum(outcome.dropped for outcome in self._outcomes)

    @property
    def scale(self) -> float:
        """The loss scale of this step; NaN before the first one."""
        return self._outcomes[0].scale if self._outcomes else float("nan")

    @property
    def observation(self) -> Observation | None:
        """What the policy was shown; None before `update()`."""
        return self._outcomes[0].observation if self._outcomes else None

    def __repr__(self) -> str:
        return f"StepOutcome({', '.join(map(repr, self._outcomes))})"
