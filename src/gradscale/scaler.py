"""`GradScaler`: carries a policy, a plan and their state through a training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.alarm import FloorAlarm
from gradscale.gradients import StepGradients
from gradscale.outcome import Counters, Evidence, Ledger, OptimizerOutcome, StepOutcome
from gradscale.pending import PendingGradients
from gradscale.policies.bits import MIN_SCALE as SMALLEST_SCALE
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy, advance
from gradscale.ranks import differing_ranks
from gradscale.schedule import step_if_taken
from gradscale.state import (
    VERSION,
    check_saved,
    describe,
    differences,
    dump_state,
    fill_state_,
    restored_policy,
)


class GradScaler(torch.amp.GradScaler):
    """Drop-in for `torch.amp.GradScaler`: every policy, every optimizer, nothing silent.

    One training step:

        scaler.scale(loss).backward()   # gradients at S times their value
        scaler.unscale_(optimizer)      # optional, to clip
        scaler.step(optimizer)          # divides, checks, steps or skips
        scaler.update()                 # the policy chooses the next S

    Where torch's scaler is right the results are the same bits. Where it differs, see
    `docs/skipped-steps.md`: the quotient is checked too, bad data never lowers the scale, the scale
    is never zero, a skipped step is visible in `last_step`.

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
        process_group: the ranks that must decide alike (data, sharded, tensor parallel). Sharded
            parameters (DTensor) are recognized without it.
        on_skip: called with the `OptimizerOutcome` of every skipped step; for fused optimizers
            one or more steps later, when the flag has reached the host.

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
        if policy is not None and numbers != (2.0**16, 2.0, 0.5, 2000):
            raise ValueError(
                f"`GradScaler(policy={policy!r})` takes no scale, factors or interval beside it. Put "
                "them into the policy."
            )
        self.policy: Policy = policy if policy is not None else Dynamic(*numbers)
        chosen = _present_device(device) if enabled else device
        super().__init__(
            chosen,
            init_scale,
            getattr(self.policy, "growth_factor", growth_factor),
            getattr(self.policy, "backoff_factor", backoff_factor),
            getattr(self.policy, "growth_interval", growth_interval),
            enabled,
        )
        if enabled and policy is not None:
            self._init_scale = float(policy.init().scale)
        self.process_group = process_group
        self.last_step = StepOutcome()
        self._state: Any = None
        self._loaded: dict[str, Any] | None = None
        self._names: dict[int, str] = {}
        self._ledger = Ledger([on_skip] if on_skip else [])
        self._alarm = FloorAlarm()
        self._pending = PendingGradients()
        self._begin_step()
        self._layerwise: Any = None
        if layerwise is not False and enabled:
            from gradscale.layerwise import Layerwise

            self._layerwise = Layerwise.of(layerwise, process_group)

    # --- scale -------------------------------------------------------------------------------

    def scale(self, outputs: Any, *, inputs: Any = None) -> Any:
        """Multiplies a loss, or a nesting of lists and tuples of them, by the scale.

        Half-precision losses are promoted to float32 first, where the product cannot overflow.

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
        self._open_step()
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
            f"`scale({type(outputs).__name__})`: outputs must be a Tensor or an iterable of Tensors."
        )

    def _scale_tensor(self, output: Tensor) -> Tensor:
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(output.device)
        if not self._step_scaled:
            self._step_scaled = True
            if self._layerwise is not None:
                self._layerwise.begin(self._scale)
            self._pending.bring_to(cast(Tensor, self._scale))
        self._evidence.losses.append(output.detach())
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.to(torch.float32)
        scaled = output * cast(Tensor, self._scale).to(device=output.device, non_blocking=True)
        return scaled if self._layerwise is None else self._layerwise.attach(scaled)

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        self._state = self.policy.init((), dev)
        self._scale = self._state.scale
        if self._loaded is not None:
            fill_state_(self._state, self._loaded)
            self._loaded = None
        else:
            cast(Tensor, self._scale).fill_(self._init_scale)
        tracker = getattr(self._state, "growth_tracker", None)
        if tracker is None:
            tracker = torch.full((), self._init_growth_tracker, dtype=torch.int32, device=dev)
        self._growth_tracker = tracker

    # --- unscale -----------------------------------------------------------------------------

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the optimizer's gradients by the scale, in place; call it before clipping.

        Optional: `step` does it otherwise. float16 and bfloat16 gradients are accepted. A parameter
        that another optimizer shares is divided once. No host read.

        Raises:
            RuntimeError: if called twice in one step, or after `step`.
        """
        if not self._enabled:
            return
        self._check_scale_growth_tracker("unscale_")
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
        scale = cast(Tensor, self._scale)
        wide = scale if scale.device.type == "mps" else scale.double()
        found_inf = torch.zeros((), dtype=torch.float32, device=scale.device)
        record["found_inf_per_device"] = self._unscale_grads_(
            optimizer, wide.reciprocal().float(), found_inf, True
        )
        record["stage"] = OptState.UNSCALED

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        self._pending.note(optimizer)
        with torch.no_grad():
            return self._gradients.divide_(optimizer, inv_scale, found_inf)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[torch.device, Tensor]:
        scale, _ = self._check_scale_growth_tracker("_check_inf_per_device")
        self._pending.note(optimizer)
        with torch.no_grad():
            flags = self._gradients.check(optimizer, scale)
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = flags
        return flags

    # --- step --------------------------------------------------------------------------------

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Divides and checks the gradients, then steps the optimizer unless one was not finite.

        Args:
            optimizer: any torch optimizer; an optimizer without gradients makes an ordinary step.
            args: passed on to `optimizer.step`.
            kwargs: passed on to `optimizer.step`.

        Returns:
            What `optimizer.step` returned; None if it was skipped. `last_step` tells them apart.

        Raises:
            RuntimeError: if given a closure, or called twice in one step.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or any(callable(argument) for argument in args):
            raise RuntimeError(
                "`step(optimizer, closure)`: closure use is not supported, it would run the backward "
                "pass unscaled. Run backward() before step(), and optimizers that need a closure "
                "(LBFGS) in float32 without a scaler."
            )
        self._check_scale_growth_tracker("step")
        self._open_step()
        record = self._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.STEPPED:
            raise RuntimeError("`step(optimizer)` has already been called since the last update().")
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if record["stage"] is OptState.READY and not (
            fused and not self._gradients.shares(optimizer)
        ):
            self.unscale_(optimizer)
        take = self._step_fused if fused else self._maybe_opt_step
        result = take(optimizer, record, *args, **kwargs)
        record["stage"] = OptState.STEPPED
        return result

    def _step_fused(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        divided = optimizer_state["stage"] is OptState.UNSCALED
        if not divided:
            self._check_inf_per_device(optimizer)
        scale = cast(Tensor, self._scale)
        flags = list(optimizer_state["found_inf_per_device"].values())
        found_inf = flags[0].to(scale.device, non_blocking=True)
        for flag in flags[1:]:
            found_inf = found_inf + flag.to(scale.device, non_blocking=True)
        own = getattr(optimizer, "grad_scale", None)
        snapshot = scale.clone()
        outcome = OptimizerOutcome(optimizer, [found_inf], snapshot, self._evidence)
        optimizer_state["outcome"] = outcome
        optimizer_state["divided"] = divided
        grad_scale = own if divided else snapshot if own is None else snapshot * own
        fused = cast(Any, optimizer)
        fused.grad_scale, fused.found_inf = grad_scale, found_inf
        try:
            return optimizer.step(*args, **kwargs)
        finally:
            del fused.grad_scale, fused.found_inf
            self.last_step.add(outcome)

    def _maybe_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        flags = list(optimizer_state["found_inf_per_device"].values())
        scale = cast(Tensor, self._scale)
        outcome = OptimizerOutcome(optimizer, flags, scale, self._evidence)
        optimizer_state["outcome"] = outcome
        optimizer_state["divided"] = True
        skipped, value = _read(flags, scale)
        if not skipped and value < 1:
            skipped = optimizer_state["unrepresentable"] = self._gradients.quotient_overflowed(
                optimizer, scale
            )
        outcome.settle(skipped, value)
        self.last_step.add(outcome)
        return None if skipped else optimizer.step(*args, **kwargs)

    # --- update ------------------------------------------------------------------------------

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Ends the step: the policy sees what happened and chooses the next scale.

        A step lost to bad data (a non-finite loss, parameter or input) leaves the policy untouched.

        Args:
            new_scale: sets the scale instead; a finite normal number above 0, or a tensor of one
                element, which is not checked.

        Raises:
            AssertionError: if no optimizer stepped or was unscaled since the last `update`.
            ValueError: if `new_scale` is zero, negative, subnormal, infinite or NaN.
        """
        if not self._enabled:
            return
        scale, _ = self._check_scale_growth_tracker("update")
        if new_scale is not None:
            self._set_scale(new_scale)
        else:
            self._advance(scale)
        self._settle_step()

    def _set_scale(self, new_scale: float | Tensor) -> None:
        scale = cast(Tensor, self._scale)
        if isinstance(new_scale, Tensor):
            if new_scale.numel() != 1 or new_scale.requires_grad:
                raise AssertionError(
                    f"`update(new_scale=tensor of shape {tuple(new_scale.shape)})` must have one "
                    "element and not require a gradient."
                )
            new = new_scale.detach().reshape(())
        else:
            if not 2.0**-126 <= new_scale <= torch.finfo(torch.float32).max:
                raise ValueError(
                    f"`update(new_scale={new_scale})` must be a finite number of at least 2**-126."
                )
            new = torch.tensor(float(new_scale))
        self._pending.leave({}, scale)
        scale.copy_(new)

    def _advance(self, scale: Tensor) -> None:
        records = self._per_optimizer_states.values()
        flags = [
            flag.to(device=scale.device, non_blocking=True)
            for record in records
            for flag in record["found_inf_per_device"].values()
        ]
        if not flags:
            raise AssertionError(
                "`update()`: no inf checks were recorded since the last one. Call "
                "`step(optimizer)` or `unscale_(optimizer)` first."
            )
        found_inf = torch.stack(flags).amax() if len(flags) > 1 else flags[0]
        blameless, ignore = self._triage(found_inf)
        observation = self._gradients.observation(found_inf)
        for outcome in self.last_step:
            outcome.observation = observation
        self._pending.leave(self._divided(), scale)
        if self._layerwise is not None:
            self._layerwise.observe(self.last_step, found_inf, blameless)
        if blameless:
            return
        self._rebind()
        if isinstance(self.policy, Dynamic):
            self.policy.update_(self._state, observation, ignore)
        else:
            after = advance(self.policy, self._state, observation, ignore)
            _copy_state_(self._state, after)

    def _triage(self, found_inf: Tensor) -> tuple[bool, Tensor | None]:
        """Whether the policy must not see this step: known to the host, or as a flag."""
        settled = [outcome for outcome in self.last_step if outcome.settled]
        if len(settled) == len(self._per_optimizer_states):
            skipped = [outcome for outcome in settled if outcome.skipped]
            beyond = any(r.get("unrepresentable") for r in self._per_optimizer_states.values())
            bad_data = all(outcome.reason != "overflow" for outcome in skipped)
            return bool(skipped) and (bad_data or beyond), None
        nonfinite_loss = self._evidence.nonfinite_loss(found_inf.device)
        return False, None if nonfinite_loss is None else nonfinite_loss * (found_inf > 0)

    def _divided(self) -> dict[int, Tensor | None]:
        return {
            key: None if record.get("divided", True) else record["outcome"].found_inf[0]
            for key, record in self._per_optimizer_states.items()
            if record["found_inf_per_device"]
        }

    def _settle_step(self) -> None:
        for outcome in self.last_step:
            self._ledger.add(outcome)
        self._sound_alarm()
        self._per_optimizer_states.clear()
        self._begin_step()
        self._step_closed = True

    def _rebind(self) -> None:
        """Takes over tensors that other code has put into `_scale` or `_growth_tracker`."""
        if self._state.scale is not self._scale:
            self._state = self._state._replace(scale=self._scale)
        tracker = getattr(self._state, "growth_tracker", None)
        if tracker is not None and tracker is not self._growth_tracker:
            self._state = self._state._replace(growth_tracker=self._growth_tracker)

    def _begin_step(self) -> None:
        self._evidence = Evidence(self._names)
        self._gradients = StepGradients(self.policy.needs, self.process_group)
        self._step_scaled = False
        self._step_closed = False

    def _open_step(self) -> None:
        if self._step_closed:
            self.last_step = StepOutcome()
            self._step_closed = False

    def _sound_alarm(self) -> None:
        counters = self._ledger.settled_counters
        outcomes = [outcome for outcome in self.last_step if outcome.settled and outcome.skipped]
        if outcomes and outcomes[0].reason == "overflow":
            floor = getattr(self.policy, "min_scale", SMALLEST_SCALE)
            factor = getattr(self.policy, "backoff_factor", 0.5)
            self._alarm.hear(counters.consecutive, outcomes[0].scale, floor, factor)

    # --- what the caller can see ---------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """Optimizer steps taken and skipped so far. Waits for the device if an optimizer is fused."""
        return self._ledger.counters

    def on_skip(self, callback: Callable[[OptimizerOutcome], object]) -> None:
        """Calls `callback` with the outcome of every skipped step from now on."""
        self._ledger.on_skip.append(callback)

    def name_parameters(self, model: torch.nn.Module) -> None:
        """Lets outcomes name this model's parameters; without it, optimizers' own names are used."""
        self._names.update({id(p): name for name, p in model.named_parameters()})

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> bool:
        """Calls `scheduler.step(...)` unless its optimizer skipped the last step; see `schedule`."""
        if not self._enabled:
            scheduler.step(*args, **kwargs)
            return True
        return step_if_taken(self.last_step, scheduler, *args, **kwargs)

    def check_ranks(self, process_group: Any = None) -> None:
        """Compares the scale and its counters over all ranks; a collective, and a host read.

        Raises:
            RuntimeError: if they differ; the message names the ranks.
        """
        group = process_group if process_group is not None else self.process_group
        scale, tracker = self._check_scale_growth_tracker("check_ranks")
        values = torch.stack([scale.double(), tracker.double()])
        ranks = differing_ranks(values, group)
        if ranks:
            raise RuntimeError(
                f"`check_ranks()`: ranks {ranks} differ from rank 0 in the loss scale or its growth "
                f"counter (here: scale {float(scale):g}). Their gradients differ; pass the group "
                "over which they are sharded as `GradScaler(process_group=…)`."
            )

    def set_growth_factor(self, new_factor: float) -> None:
        """Sets the policy's `growth_factor`."""
        self._replace_setting("growth_factor", new_factor)

    def set_backoff_factor(self, new_factor: float) -> None:
        """Sets the policy's `backoff_factor`."""
        self._replace_setting("backoff_factor", new_factor)

    def set_growth_interval(self, new_interval: int) -> None:
        """Sets the policy's `growth_interval`."""
        self._replace_setting("growth_interval", new_interval)

    def _replace_setting(self, name: str, value: float) -> None:
        if self._enabled and hasattr(self.policy, name):
            self.policy = replace(cast(Any, self.policy), **{name: value})
        setattr(self, f"_{name}", value)

    # --- saved ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Torch's five entries, and all of ours under ``"gradscale"``; empty if disabled.

        Plain numbers, strings, dictionaries and tensors: `torch.load(weights_only=True)` reads it,
        and so does torch's own scaler.
        """
        if not self._enabled:
            return {}
        own = {
            "version": VERSION,
            "policy": describe(self.policy),
            "state": self._saved_fields(),
            "counters": asdict(self.counters),
        }
        if self._layerwise is not None:
            own["layerwise"] = self._layerwise.state_dict()
        return {**super().state_dict(), "gradscale": own}

    def load_state_dict(
        self, state_dict: dict[str, Any], *, configuration: Literal["keep", "restore"] = "keep"
    ) -> None:
        """Takes over the state of this or of torch's scaler; nothing changes if it does not fit.

        Args:
            state_dict: from `state_dict`.
            configuration: ``"keep"`` goes on with this scaler's settings and warns where the saved
                ones differ; ``"restore"`` takes the saved settings.

        Raises:
            RuntimeError: if the dictionary is empty or has no scale.
            ValueError: if the saved scale is zero, subnormal or not finite, or a field does not fit.
        """
        if not self._enabled:
            return
        if configuration not in ("keep", "restore"):
            raise ValueError(
                f"`load_state_dict(configuration={configuration!r})` must be 'keep' or 'restore'."
            )
        policy = self.policy
        if configuration == "restore" and state_dict:
            policy = restored_policy(state_dict, policy)
        fields = check_saved(state_dict, policy.init(), policy)
        differing = differences(state_dict, policy)
        if differing:
            warnings.warn(
                f"`load_state_dict` keeps this scaler's settings, which differ from the saved ones: "
                f"{'; '.join(differing)}. Pass `configuration='restore'` to take the saved ones.",
                stacklevel=2,
            )
        self._take_over(policy, fields)
        own = state_dict.get("gradscale", {})
        if "counters" in own:
            self._ledger.counters = Counters(**own["counters"])
        if self._layerwise is not None and "layerwise" in own:
            self._layerwise.load_state_dict(own["layerwise"])

    def _take_over(self, policy: Policy, fields: dict[str, Any]) -> None:
        self.policy = policy
        for name in ("growth_factor", "backoff_factor", "growth_interval"):
            setattr(self, f"_{name}", getattr(policy, name, getattr(self, f"_{name}")))
        self._init_scale = float(fields["scale"])
        self._init_growth_tracker = int(fields.get("growth_tracker", 0))
        if self._scale is None:
            self._loaded = fields
        else:
            self._rebind()
            fill_state_(self._state, fields)

    def _saved_fields(self) -> dict[str, Any]:
        if self._state is not None:
            self._rebind()
            return dump_state(self._state)
        state = self.policy.init()
        fill_state_(state, self._loaded or {"scale": self._init_scale})
        return dump_state(state)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._enabled:
            state["_loaded"] = self._saved_fields()
            state["_state"] = None
            state["_pending"] = PendingGradients()
            state["_names"] = {}
            state["last_step"] = StepOutcome()
            state["_ledger"] = Ledger(self._ledger.on_skip)
            state["_ledger"].counters = self.counters
            del state["_evidence"], state["_gradients"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._enabled:
            self._begin_step()


def _present_device(device: str) -> str:
    if device != "cuda" or torch.cuda.is_available():
        return device
    accelerator = torch.accelerator.current_accelerator()
    present = accelerator.type if accelerator is not None else "cpu"
    warnings.warn(
        f"`GradScaler('cuda')`: CUDA is not available; scaling goes on on {present!r}. To switch it "
        "off instead, pass `enabled=False`.",
        stacklevel=3,
    )
    return present


def _read(flags: Sequence[Tensor], scale: Tensor) -> tuple[bool, float]:
    """Whether a flag is set, and the scale: one transfer if all are on one accelerator."""
    if scale.device.type != "cpu" and all(flag.device == scale.device for flag in flags):
        *found, value = torch.stack([*flags, scale]).tolist()
        return any(found), value
    return any(flag.item() for flag in flags), float(scale.item())


def _copy_state_(state: Any, after: Any) -> None:
    for old, new in zip(state, after, strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)
        else:
            _copy_state_(old, new)
