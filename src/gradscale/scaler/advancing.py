"""How a step ends: the policy sees what happened, unless bad data was to blame."""

from __future__ import annotations

import math

from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.flags import combined
from gradscale.gradients.step_gradients import StepGradients
from gradscale.outcomes.outcome import Evidence, OptimizerOutcome, StepOutcome
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Observation, advance
from gradscale.ranks import all_ranks
from gradscale.scaler.eager import eager
from gradscale.scaler.known_scale import lowest_factor
from gradscale.scaler.scaling import ScalingScaler
from gradscale.scaler.settings import scale_to_set
from gradscale.scaler.state import copy_state_


class AdvancingScaler(ScalingScaler):
    """A scaler that moves on to the next step."""

    _in_between = False

    @eager
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Ends the step: the policy sees what happened and chooses the next scale.

        A step lost to bad data (a non-finite loss, parameter or input) leaves the policy untouched.

        Args:
            new_scale: sets the scale instead; a finite normal number above 0, or a tensor of one
                element, which is brought into that range if it is on an accelerator.

        Raises:
            AssertionError: if no optimizer stepped or was unscaled since the last `update`.
            ValueError: if `new_scale` is zero, negative, subnormal, infinite or NaN.
        """
        if not self._enabled:
            return
        scale = self._scale
        if scale is None:
            scale, _ = self._check_scale_growth_tracker("update")
        if self._in_between or new_scale is not None:
            self._refuse_in_between(new_scale)
        step = self._step_under_way
        if new_scale is not None:
            new = scale_to_set(new_scale)
            self._pending.leave(self._per_optimizer_states, scale)
            if isinstance(new, Tensor):
                scale.copy_(new)
            else:
                self._known.note(scale.fill_(new), new)
        else:
            self.last_step = step
            self._advance(scale)
        try:
            if self._ledger.add(step):
                self._sound_alarm()
        finally:  # a callback may raise: the step has ended all the same
            self._end_step()
        if self._meter is not None:
            self._meter_step()

    def abandon(self) -> None:
        """Gives up the step under way, which was begun by `unscale_`, clipping or `accumulate_`.

        For whoever catches an exception or drops a batch before `update()`. The optimizers that
        took part have their gradients cleared; what they have stepped already stays, and is
        counted. The scale stays as it is. A loop that just calls `optimizer.zero_grad()` and begins
        anew is understood without this call, unless it accumulates.

        Example:
            >>> import torch
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(1, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            >>> scaler.accumulate_(optimizer)
            >>> scaler.abandon()
            >>> scaler.counters.steps, model.weight.grad
            (0, None)
        """
        if not self._enabled:
            return
        for key in self._per_optimizer_states:
            optimizer = self._pending.optimizer(key)
            if optimizer is not None:
                optimizer.zero_grad()
        step = self._step_under_way
        try:
            if len(step):
                self._ledger.add(step)
        finally:
            self._end_step()

    @property
    def _step_under_way(self) -> StepOutcome:
        """Empty if no optimizer has stepped since the last `update`: nothing is counted twice."""
        return StepOutcome() if self._step_closed else self.last_step

    def _end_step(self) -> None:
        self._per_optimizer_states.clear()
        self._begin_step()
        self._step_closed = True

    def _refuse_in_between(self, new_scale: float | Tensor | None) -> None:
        """Refuses to change the scale while gradients at the present one are still added up."""
        began = False
        for record in self._per_optimizer_states.values():
            began |= record["stage"] is not OptState.READY
            if "evaluating" in record:
                raise RuntimeError(
                    "`update()` was called inside a closure, in the middle of a step: its "
                    "gradients are at the scale in force. Call it after "
                    "`step(optimizer, closure)`."
                )
            if "micro_batches" in record:
                raise RuntimeError(
                    "`update()` was called between `accumulate_(optimizer)` and "
                    "`step(optimizer)`: the sum of the micro-batches would be lost. Call `step` "
                    "first."
                )
        if new_scale is not None and self._backward_ran and not began:
            raise RuntimeError(
                f"`update(new_scale={new_scale})` in the middle of an accumulation: backward() has "
                "run since the last step, and gradients at two scales would be added. Call "
                "`step(optimizer)` first, or `unscale_(optimizer)` to keep or drop what is there."
            )

    def _advance(self, scale: Tensor) -> None:
        flags: list[Tensor] = []
        beyond: list[Tensor] = []  # flags of quotients that their dtype does not hold
        settled, skipped, blamed, dropped = True, False, False, False
        for record in self._per_optimizer_states.values():
            flags += record["found_inf_per_device"].values()
            if "overflowed" in record:  # of a step that was taken without some micro-batches
                flags.append(record["overflowed"])
                dropped = True
            outcome: OptimizerOutcome | None = record.get("outcome")
            if outcome is None or not outcome.settled:
                settled = False
                beyond += [record["beyond"]] if "beyond" in record else []
            elif outcome.skipped:
                skipped, blamed = True, blamed or outcome.blames_scale
        if not flags:
            raise AssertionError(
                "`update()`: no inf checks were recorded since the last one. Call "
                "`step(optimizer)` or `unscale_(optimizer)` first."
            )
        alone = len(flags) == 1 and flags[0].is_cpu and scale.is_cpu
        found_inf = flags[0] if alone else combined(flags, scale.device)
        # Whether bad data is to blame: known to the host, or as a flag.
        ignore = None
        if settled:
            self._evidence.release()
        else:
            scaling = self._evidence.blamed(found_inf, self.process_group)
            if scaling is not None:
                found_inf, ignore = scaling, found_inf > scaling
        if beyond:  # no scale helps; unless another gradient overflowed, the policy is not asked
            lost = combined(beyond, scale.device) > found_inf
            ignore = lost if ignore is None else ignore | lost
        observation = self._gradients.observation(found_inf)
        self.last_step.show(observation)
        self._pending.leave(self._per_optimizer_states, scale)
        if self._layerwise is not None:
            self._layerwise.update(self.last_step)
        if not (settled and skipped and not blamed):
            self._decide(scale, observation, ignore, settled and not (skipped or dropped))

    def _decide(
        self, scale: Tensor, observation: Observation, ignore: Tensor | None, clean: bool
    ) -> None:
        state, policy = self._rebind(), self.policy
        known = None if scale.is_cpu else self._known
        before = 0.0 if known is None else known.at_least(scale)
        if isinstance(policy, Dynamic):
            high = clean or before * policy.backoff_factor > 2 * policy.min_scale
            policy.update_(state, observation, ignore, high)
        else:
            copy_state_(state, advance(policy, state, observation, ignore))
        if known is not None:
            cap = getattr(policy, "max_scale", None)
            known.moved(scale, lowest_factor(policy, clean), math.inf if cap is None else cap)

    def _begin_step(self) -> None:
        if self._layerwise is not None:  # ranks that share a plan must share a fate
            self.process_group = self.process_group or all_ranks()
        self._evidence = Evidence(self._names)
        needs = self.policy.needs
        if self._also_needed:
            needs |= self._also_needed
        self._gradients = StepGradients(needs, self.process_group)
        self._step_closed = self._backward_ran = self._in_between = False
