"""The step under way: records, evidence, gradients, outcome; what dies with `update()`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gradscale.gradients.pending import PendingGradients
from gradscale.gradients.step_gradients import StepGradients
from gradscale.layerwise import Layerwise
from gradscale.outcomes.outcome import Evidence, StepOutcome
from gradscale.policies.policy import Need, Policy
from gradscale.ranks import all_ranks
from gradscale.scaler.record import Records


class CurrentStep:
    """What is known of the step under way, and the few things that the next one begins with.

    Attributes:
        records: of its optimizers.
        evidence: the losses and inputs that triage may look at.
        gradients: what its optimizers own.
        outcome: what became of it so far; the step before until an optimizer steps.
        closed: whether `outcome` is still that of the step before.
        backward_ran: whether a backward pass has filled gradients.
        in_between: whether `update` would lose something: sums, or a closure that runs.
        outputs: scaled losses and the losses themselves, while a closure is running.
        pending: the optimizers that were handled, and where each left its gradients.
        names: of parameters, by id, as the user has given them.
        process_group: the ranks that must decide alike.
        also_needed: what is measured beside the needs of the policy.
    """

    evidence: Evidence
    gradients: StepGradients
    backward_ran = False
    in_between = False
    closed = True

    def __init__(self, process_group: Any) -> None:
        self.records = Records()
        self.pending = PendingGradients()
        self.outcome = StepOutcome()
        self.outputs: list[tuple[Tensor, Tensor]] | None = None
        self.names: dict[int, str] = {}
        self.process_group = process_group
        self.also_needed: frozenset[Need] = frozenset()

    def begin(self, policy: Policy, layerwise: Layerwise | None) -> None:
        """Forgets the step that has ended; `outcome` stays until the next one has its own."""
        self.records.clear()
        if layerwise is not None:  # ranks that share a plan must share a fate
            self.process_group = self.process_group or all_ranks()
        self.evidence = Evidence(self.names)
        needs = policy.needs
        if self.also_needed:
            needs |= self.also_needed
        self.gradients = StepGradients(needs, self.process_group)
        self.backward_ran = self.in_between = False
        self.closed = True

    def open(self) -> None:
        """An optimizer is about to step: from here on `outcome` is this step's."""
        if self.closed:
            self.outcome, self.closed = StepOutcome(), False

    def also_measure(self, needs: Iterable[Need], policy: Policy) -> None:
        """Has every step measure these too; from the next one on, if this one has begun."""
        self.also_needed |= frozenset(needs)
        self.follow(policy)

    def check_follows(self, policy: Policy) -> None:
        """Refuses a policy that the step under way has not measured for.

        Raises:
            RuntimeError: if an optimizer has been handled without what the policy needs.
        """
        missing = policy.needs - self.gradients.needs
        if self.records and missing:
            raise RuntimeError(
                f"`load_state_dict` in the middle of a step: `{type(policy).__name__}` needs "
                f"{' and '.join(sorted(missing))}, which this step has not measured. Load before "
                "the first `unscale_` or `step`, or after `update()`."
            )

    def follow(self, policy: Policy) -> None:
        """Measures what this policy needs; from the next step on, if this one has begun."""
        if not self.records:
            self.gradients.needs = policy.needs | self.also_needed

    def note_backward(self, gradient: Tensor) -> None:
        """A hook: a backward pass fills gradients."""
        del gradient
        self.backward_ran = True

    @property
    def so_far(self) -> StepOutcome:
        """Empty if no optimizer has stepped since the last `update`: nothing is counted twice."""
        return StepOutcome() if self.closed else self.outcome

    def __getstate__(self) -> dict[str, Any]:
        return {"process_group": self.process_group, "also_needed": self.also_needed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["process_group"])
        self.also_needed = state["also_needed"]
