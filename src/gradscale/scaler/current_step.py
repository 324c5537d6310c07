"""The step under way: its scale, records, evidence, outcome; what dies with `update()`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from weakref import ref

import torch
from torch import Tensor

from gradscale.callers import level_of_caller
from gradscale.gradients.left_over import LeftOver
from gradscale.gradients.pending import PendingGradients
from gradscale.gradients.step_gradients import StepGradients
from gradscale.optimizer_parameters import parameters_of
from gradscale.outcomes.evidence import Evidence
from gradscale.outcomes.outcome import StepOutcome
from gradscale.policies.policy import Need, Policy
from gradscale.ranks import Ranks, all_ranks
from gradscale.scaler.aftermath import KnownModels
from gradscale.scaler.bare_step import BareStepWatch
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.known_names import KnownNames
from gradscale.scaler.record import Records
from gradscale.scaler.settings import no_optimizer
from gradscale.scaler.storage import refuse_cast, warn_of_float16
from gradscale.torch_types import StateDict
from gradscale.undo.undo import Undo
from gradscale.untraced import untraced


class CurrentStep:
    """What is known of the step under way, and the few things that the next one begins with.

    Attributes:
        held: the scale that it is taken at.
        undo: where that is undone.
        records: of its optimizers.
        evidence: the losses and inputs that triage may look at.
        gradients: what its optimizers own.
        outcome: what became of it so far; the step before until an optimizer steps.
        closed: whether `outcome` is still that of the step before.
        backward_ran: whether a backward pass has filled gradients.
        in_between: whether `update` would lose something: sums, or a closure that runs.
        outputs: scaled losses and the losses themselves, while a closure is running.
        pending: the optimizers that were handled, and where each left its gradients.
        names: of parameters, by id, as the user has given them or as they were learnt.
        models: those that were named.
        process_group: the ranks that must decide alike.
        usual: how many micro-batches each optimizer's steps had, and in how many steps in a row.
        trains: each optimizer, and the dtype of its first parameter.
        bare: looks for optimizers that step past the scaler, until the first `update`.
        candidates: gradients that outlived a skip, until a backward pass finds them there.
        after_skip: whether the step before was skipped, or the host does not know.
        depends: whether losses are known to depend on the scale: 1, 0, or -1 if nothing is known;
            a tensor where only the device knows.
        also_needed: what is measured beside the needs of the policy.
    """

    evidence: Evidence
    gradients: StepGradients
    backward_ran = False
    in_between = False
    closed = True

    def __init__(self, held: HeldScale, undo: Undo, process_group: Ranks | None) -> None:
        self.held, self.undo = held, undo
        self.records = Records()
        self.pending = PendingGradients()
        self.outcome = StepOutcome()
        self.outputs: list[tuple[Tensor, Tensor]] | None = None
        self.names = KnownNames()
        self.models = KnownModels()
        # A process that never scales a loss registers no hook.
        self.bare: BareStepWatch | None = None
        self.usual: dict[int, tuple[int, int]] = {}
        self._warned_of_sums = False
        self.trains: dict[int, tuple[ref[torch.optim.Optimizer], torch.dtype]] = {}
        self.process_group = process_group
        self.also_needed: frozenset[Need] = frozenset()
        self.candidates: dict[int, LeftOver] = {}
        self.after_skip = False
        self.depends: Tensor | int = -1

    def begin(self) -> None:
        """Forgets the step that has ended; `outcome` stays until the next one has its own."""
        self.records.clear()
        if self.bare is not None:
            self.bare.end()
            self.bare = None
        if self.held.layerwise is not None:  # ranks that share a plan must share a fate
            self.process_group = self.process_group or all_ranks()
        self.evidence = Evidence(self.names, self.depends, self.names.learn)
        needs = self.held.policy.needs
        # In every step: a union would make a new set.
        needs = needs | self.also_needed if self.also_needed else needs
        self.gradients = StepGradients(needs, self.process_group)
        self.backward_ran = self.in_between = False
        self.closed = True

    def open(self) -> None:
        """An optimizer is about to step: from here on `outcome` is this step's."""
        if self.closed:
            self.outcome, self.closed = StepOutcome(), False

    def also_measure(self, needs: Iterable[Need]) -> None:
        """Has every step measure these too; from the next one on, if this one has begun."""
        self.also_needed |= frozenset(needs)
        self.follow()

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

    def follow(self) -> None:
        """Measures what the policy needs now; from the next step on, if this one has begun."""
        if not self.records:
            self.gradients.needs = self.held.policy.needs | self.also_needed

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer whose gradients this scaler handles; one look at the dtype it trains."""
        known = self.trains.get(id(optimizer))
        try:
            # Of the first alone: a cast takes all of a model, and this is asked in every step.
            first = optimizer.param_groups[0]["params"][0]
        except IndexError:  # it has no parameters
            return self.pending.note(optimizer)
        except AttributeError:
            raise no_optimizer(optimizer) from None
        if known is not None and known[0]() is optimizer:
            if known[1] is first.dtype:
                return
            refuse_cast(optimizer, known[1], first.dtype)
        else:
            warn_of_float16(optimizer)
        self.trains[id(optimizer)] = ref(optimizer), first.dtype
        self.pending.note(optimizer)

    def note_added(self, optimizer: torch.optim.Optimizer, added: int) -> None:
        """Warns once if a step has a few micro-batches more than those before it.

        So it is if an epoch ended in the middle of an accumulation: the sums it left join the
        first step of the next one.
        """
        usual, steps = self.usual.get(id(optimizer), (added, 0))
        if steps > 1 and usual < added < 2 * usual and not self._warned_of_sums:
            self._warned_of_sums = True
            warnings.warn(
                f"`step(optimizer)` on {added} micro-batches, after {usual} in each step before: "
                "if an epoch ended in between, sums were left over from it. Call "
                "`scaler.step(optimizer)` or `scaler.abandon()` at its end.",
                stacklevel=level_of_caller(),
            )
        self.usual[id(optimizer)] = (added, steps + 1 if added == usual else 1)

    def bring_along(self, scale: Tensor) -> None:
        """Before a loss is scaled: gradients that an earlier step has left are brought to S."""
        left = self.pending.bring_to(scale, self.after_skip)
        if left:
            self.candidates = left

    @untraced
    def note_backward(self, number: int, gradient: Tensor) -> None:
        """A hook: a backward pass fills gradients, or makes some that can be differentiated.

        Args:
            number: of the loss that it begins at.
            gradient: of that loss.
        """
        del gradient
        self.backward_ran = True
        if torch.is_grad_enabled():  # as the engine sets it for `create_graph`
            self.evidence.note_inner(number)
        if self.candidates:  # cleared meanwhile, they are no evidence
            there = {key: left for key, left in self.candidates.items() if left.still_there}
            self.evidence.left_over = {**self.evidence.left_over, **there}
            self.candidates = {}

    def parameters(self) -> Iterator[Tensor]:
        """Of the optimizers of this step."""
        for key in self.records:
            optimizer = self.pending.optimizer(key)
            if optimizer is not None:
                yield from parameters_of(optimizer)

    @property
    def so_far(self) -> StepOutcome:
        """Empty if no optimizer has stepped since the last `update`: nothing is counted twice."""
        return StepOutcome() if self.closed else self.outcome

    def __getstate__(self) -> dict[str, object]:
        return {
            name: getattr(self, name) for name in ("held", "undo", "process_group", "also_needed")
        }

    def __setstate__(self, state: StateDict) -> None:
        self.__init__(state["held"], state["undo"], state["process_group"])
        self.also_needed = state["also_needed"]
