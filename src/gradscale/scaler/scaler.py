"""`GradScaler`: carries a policy, a plan and their state through a training step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from gradscale.gradients.flags import combined, inverse
from gradscale.gradients.pending import PendingGradients
from gradscale.gradients.step_gradients import StepGradients
from gradscale.outcomes.alarm import FloorAlarm
from gradscale.outcomes.ledger import Ledger
from gradscale.outcomes.outcome import Evidence, OptimizerOutcome, StepOutcome
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy, advance
from gradscale.ranks import all_ranks
from gradscale.scaler.eager import eager
from gradscale.scaler.settings import (
    TORCH_NUMBERS,
    build_layerwise,
    choose_policy,
    present_device,
    scale_to_set,
)
from gradscale.scaler.state import copy_state_
from gradscale.scaler.stepping import SteppingScaler


class GradScaler(SteppingScaler):
    """Drop-in for `torch.amp.GradScaler`: every policy, every optimizer, nothing silent.

        scaler.scale(loss).backward()   # gradients at S times their value
        scaler.unscale_(optimizer)      # optional, to clip: before it, norms are S times too large
        scaler.step(optimizer)          # divides, checks, steps or skips
        scaler.update()                 # the policy chooses the next S

    Where torch's scaler is right the results are the same bits. Where it differs: the quotient is
    checked too, bad data never lowers the scale, the scale is never zero, a skip is visible.

    Args:
        device: as in torch. Without CUDA, ``"cuda"`` falls back to the accelerator or CPU that is
            there, with a warning; torch switches scaling off.
        init_scale: as in torch; these four make up the default policy `Dynamic`.
        growth_factor: see `Dynamic`.
        backoff_factor: see `Dynamic`.
        growth_interval: see `Dynamic`.
        enabled: False makes every method a pass-through, as in torch.
        policy: who chooses the scale, instead of the four numbers.
        layerwise: True, or a planner: every part of the network gets its own scale.
        process_group: the ranks that must decide alike, as a group or a device mesh; all ranks if
            `layerwise`. Sharded parameters (DTensor) are recognized without it. Without it, with
            several ranks, bad data counts as overflow: who cannot ask must not differ.
        on_skip: called with the `OptimizerOutcome` of every skipped step; for fused optimizers on
            an accelerator one or more steps later, when the flag has reached the host.

    Raises:
        ValueError: if a number is out of range, or both numbers and a policy are given.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = GradScaler("cpu")
        >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.last_step.skipped, scaler.get_scale()
        (False, 65536.0)
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        policy: Policy | None = None,
        layerwise: Any = False,
        process_group: Any = None,
        on_skip: Callable[[OptimizerOutcome], object] | None = None,
    ) -> None:
        numbers = (init_scale, growth_factor, backoff_factor, growth_interval)
        self.policy = choose_policy(policy, enabled, dict(zip(TORCH_NUMBERS, numbers, strict=True)))
        device = present_device(device) if enabled else device
        super().__init__(device, enabled=False)
        self._enabled = enabled
        first = getattr(self.policy, "init_scale", None)
        self._init_scale = float(self.policy.init().scale if first is None else first)
        self._init_growth_tracker = 0
        self._scale = self._growth_tracker = self._state = self._loaded = None
        self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
        self.process_group = process_group
        self.last_step = StepOutcome()
        self._names = {}
        self._ledger = Ledger()
        if on_skip is not None:
            self.on_skip(on_skip)
        self._alarm = FloorAlarm()
        self._pending = PendingGradients()
        self._layerwise = build_layerwise(layerwise, process_group) if enabled else None
        self._begin_step()

    @eager
    def scale(self, outputs: Any, *, inputs: Any = None) -> Any:
        """Multiplies a loss, or a nesting of lists and tuples of them, by the scale.

        Half-precision losses are promoted to float32 first, where the product cannot overflow.
        Gradients left over from before the last `update` are brought to the current scale.

        Args:
            outputs: tensors of any shape.
            inputs: the batch, kept until the step ends, so that a bad one can be named
                (`nonfinite_input`).

        Returns:
            The same nesting, scaled; `outputs` itself if scaling is disabled.

        Raises:
            ValueError: if something in `outputs` is no tensor.
        """
        if not self._enabled:
            return outputs
        if inputs is not None:
            self._evidence.inputs.append(inputs)
        return self._scale_nested(outputs)

    def _scale_nested(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return self._scale_tensor(outputs)
        if isinstance(outputs, Iterable) and not isinstance(outputs, str | bytes | Mapping):
            scaled = map(self._scale_nested, cast("Iterable[Any]", outputs))
            if isinstance(outputs, list | tuple):
                return type(outputs)(scaled)  # pyright: ignore[reportUnknownVariableType]
            return scaled
        raise ValueError(
            f"`scale({type(outputs).__name__})`: outputs must be a Tensor or an iterable of "
            "Tensors. Pass the loss, or a list of losses."
        )

    def _scale_tensor(self, output: Tensor) -> Tensor:
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(output.device)
        scale = cast(Tensor, self._scale)
        if self._layerwise is not None:
            self._layerwise.begin_step(scale)
        self._pending.bring_to(scale)
        self._evidence.note_loss(output)
        if output.dim() and output.dtype in (torch.float16, torch.bfloat16):
            output = output.to(torch.float32)
        if self._layerwise is not None:
            output = self._layerwise.attach(output)
        return output * scale.to(device=output.device, non_blocking=True)

    @eager
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the optimizer's gradients by the scale, once a step; `step` does it otherwise.

        Raises:
            RuntimeError: if called twice in one step, or after `step`.
        """
        if not self._enabled:
            return
        scale, _ = self._check_scale_growth_tracker("unscale_")
        record = self._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.UNSCALED:
            raise RuntimeError(
                "`unscale_(optimizer)` has already been called on this optimizer since the last "
                "update(). Call it once, after the last backward()."
            )
        if record["stage"] is OptState.STEPPED:
            raise RuntimeError(
                "`unscale_(optimizer)` is being called after step(). Call it before, or call "
                "update() first to begin the next step."
            )
        found_inf = torch.zeros((), dtype=torch.float32, device=scale.device)
        record["found_inf_per_device"] = self._unscale_grads_(
            optimizer, inverse(scale), found_inf, True
        )
        record["stage"], record["divided"] = OptState.UNSCALED, True
        self._gradients.mark_divided(optimizer)
        if self._layerwise is not None:
            self._layerwise.after_unscale(optimizer)

    @eager
    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Divides and checks the gradients, then steps the optimizer unless one was not finite.

        Args:
            optimizer: any torch optimizer; one without gradients makes an ordinary step.
            args: passed on to `optimizer.step`.
            kwargs: passed on to `optimizer.step`.

        Returns:
            What `optimizer.step` returned; None if it was skipped. `last_step` tells them apart.

        Raises:
            RuntimeError: if given a closure, or called twice in one step.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or (args and any(callable(argument) for argument in args)):
            raise RuntimeError(
                "`step(optimizer, closure)`: closure use is not supported, it would run the "
                "backward pass unscaled. Run backward() before step(), and optimizers that need a "
                "closure (LBFGS) in float32 without a scaler."
            )
        self._check_scale_growth_tracker("step")
        if self._step_closed:
            self.last_step, self._step_closed = StepOutcome(), False
        record = self._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.STEPPED:
            raise RuntimeError("`step(optimizer)` has already been called since the last update().")
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if record["stage"] is OptState.READY and not (
            fused and not self._gradients.needs and not self._gradients.shared(optimizer)
        ):
            self.unscale_(optimizer)
        take = self._fused_opt_step if fused else self._maybe_opt_step
        result = take(optimizer, record, *args, **kwargs)
        record["stage"] = OptState.STEPPED
        return result

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
        scale, _ = self._check_scale_growth_tracker("update")
        if new_scale is not None:
            new = scale_to_set(new_scale)
            self._pending.leave(self._per_optimizer_states, scale)
            scale.copy_(new) if isinstance(new, Tensor) else scale.fill_(new)
        else:
            self._advance(scale)
        if self._ledger.add(self.last_step):
            self._sound_alarm()
        self._per_optimizer_states.clear()
        self._begin_step()
        self._step_closed = True

    def _advance(self, scale: Tensor) -> None:
        records = self._per_optimizer_states.values()
        flags = [flag for record in records for flag in record["found_inf_per_device"].values()]
        if not flags:
            raise AssertionError(
                "`update()`: no inf checks were recorded since the last one. Call "
                "`step(optimizer)` or `unscale_(optimizer)` first."
            )
        found_inf = combined(flags, scale.device)
        observation = self._gradients.observation(found_inf)
        untouched, ignore = self._triage(found_inf)
        self.last_step.show(observation)
        self._pending.leave(self._per_optimizer_states, scale)
        if self._layerwise is not None:
            self._layerwise.update(self.last_step)
        if untouched:
            return
        state = self._rebind()
        if isinstance(self.policy, Dynamic):
            self.policy.update_(state, observation, ignore)
        else:
            copy_state_(state, advance(self.policy, state, observation, ignore))

    def _triage(self, found_inf: Tensor) -> tuple[bool, Tensor | None]:
        """Whether the policy must not see this step: known to the host, or as a flag."""
        skipped = blamed = False
        for record in self._per_optimizer_states.values():
            outcome: OptimizerOutcome | None = record.get("outcome")
            if outcome is None or not outcome.settled:
                return False, self._evidence.bad_data(found_inf, self.process_group)
            skipped |= outcome.skipped
            blamed |= outcome.blames_scale
        self._evidence.release()
        return skipped and not blamed, None

    def _begin_step(self) -> None:
        if self._layerwise is not None:  # ranks that share a plan must share a fate
            self.process_group = self.process_group or all_ranks()
        self._evidence = Evidence(self._names)
        self._gradients = StepGradients(self.policy.needs, self.process_group)
        self._step_closed = False
