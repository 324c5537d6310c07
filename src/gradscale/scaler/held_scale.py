"""The scale: policy, plan and state, what the host knows of it, and how it is saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradscale.layerwise import Layerwise
from gradscale.layerwise.function_verdicts import FunctionVerdicts
from gradscale.policies.bits import MIN_SCALE
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Observation, Policy, advance
from gradscale.policies.static import Static
from gradscale.scaler.known_scale import KnownScale, lowest_factor
from gradscale.scaler.order import NO_SCALE
from gradscale.scaler.settings import TORCH_NUMBERS
from gradscale.scaler.state import Fields, copy_state_, dump_state, fill_state_
from gradscale.torch_types import StateDict


class HeldScale:
    """A policy and, from the first loss on, its state on the device of that loss.

    Attributes:
        policy: who chooses the scale.
        layerwise: who chooses the exponents beside it; None for one scale.
        functions: what is known of backward functions that torch did not write.
        tensor: S, float32 0-d, only ever changed in place; None before the first loss.
        tracker: torch's growth tracker, the state's own where it has one.
        state: the policy's.
        known: what the host knows of S without asking.
        init_scale: what S begins with.
        init_growth_tracker: what the tracker begins with.
        loaded: saved fields that a state made later takes over.
    """

    def __init__(
        self, policy: Policy, layerwise: Layerwise | None, functions: FunctionVerdicts
    ) -> None:
        self.policy = policy
        self.layerwise = layerwise
        self.functions = functions
        if layerwise is not None:
            layerwise.use_functions(functions)
        self.tensor: Tensor | None = None
        self.tracker: Tensor | None = None
        self.state: Any = None  # of the policy's own type, which knows it
        self.known = KnownScale()
        first: float | None = getattr(policy, "init_scale", None)
        self.init_scale = float(policy.init().scale if first is None else first)
        self.init_growth_tracker = 0
        self.loaded: Mapping[str, object] | None = None

    def ready(self, call: str) -> Tensor:
        """S, of which this call has need.

        Raises:
            AssertionError: as torch's, if no loss has been scaled yet.
        """
        if self.tensor is None:
            raise AssertionError(NO_SCALE.format(call=call))
        return self.tensor

    def begin_on(self, device: torch.device) -> Tensor:
        """Makes the state on this device, and returns S."""
        state = self.policy.init((), device)
        fill_state_(state, self.loaded or {})
        state.scale.fill_(self.init_scale)
        tracker = getattr(state, "growth_tracker", None)
        if tracker is None:
            tracker = torch.zeros((), dtype=torch.int32, device=device)
        tracker.fill_(self.init_growth_tracker)
        self.state, self.tensor, self.tracker = state, state.scale, tracker
        self.known.note(state.scale, self.init_scale)
        return state.scale

    def at_least(self, scale: Tensor) -> float:
        """A bound of S from below that costs nothing: from 1 on no quotient overflows."""
        return scale.item() if scale.is_cpu else self.known.at_least(scale)

    def rebind(self) -> None:
        """Other tensors have been put in the place of torch's two: the state is made of them."""
        if self.state is None:
            return
        self.state = self.state._replace(scale=self.tensor)
        if hasattr(self.state, "growth_tracker"):
            self.state = self.state._replace(growth_tracker=self.tracker)

    def decide(
        self, scale: Tensor, observation: Observation, ignore: Tensor | None, clean: bool
    ) -> None:
        """The policy chooses the next scale.

        Args:
            scale: S of the step that ends.
            observation: what the policy may see of it.
            ignore: above 0 if it is to see nothing, as a flag; None if the host knows that it may.
            clean: whether the host knows that nothing overflowed.
        """
        state, policy = self.state, self.policy
        known = None if scale.is_cpu else self.known
        before = 0.0 if known is None else known.at_least(scale)
        if isinstance(policy, Dynamic):
            # Two octaves above the floor a back-off cannot meet it, rounding included.
            high = clean or before * policy.backoff_factor > 2 * policy.min_scale
            policy.update_(state, observation, ignore, high)
        else:
            copy_state_(state, advance(policy, state, observation, ignore))
        if known is not None:
            cap = getattr(policy, "max_scale", None)
            known.moved(scale, lowest_factor(policy, clean), math.inf if cap is None else cap)

    def set_to(self, scale: Tensor, new: float | Tensor) -> None:
        """Writes another value into S."""
        if isinstance(new, Tensor):
            scale.copy_(new)
        else:
            self.known.note(scale.fill_(new), new)

    @property
    def constant(self) -> bool:
        """Whether nothing but the user moves it."""
        return isinstance(self.policy, Static)

    @property
    def floor(self) -> float:
        """The lowest scale that the policy allows."""
        return getattr(self.policy, "min_scale", MIN_SCALE)

    @property
    def alarm_below(self) -> float:
        """The scale below which the policy wants an alarm, at the first overflow that leads there.

        0 without one.
        """
        return getattr(self.policy, "alarm_below", 0.0)

    @property
    def backoff_factor(self) -> float:
        """What an overflow multiplies it by, as far as the policy has one such number."""
        return getattr(self.policy, "backoff_factor", TORCH_NUMBERS["backoff_factor"])

    def saved_fields(self) -> Fields:
        """The policy's state as plain values. Reads the device."""
        if self.state is not None:
            return dump_state(self.state)
        state = self.policy.init()
        fill_state_(state, {**(self.loaded or {}), "scale": self.init_scale})
        return dump_state(state)

    def take_over(self, policy: Policy, fields: Fields) -> None:
        """Goes on with this policy, at saved fields that fit it."""
        self.init_scale = float(fields["scale"])
        self.init_growth_tracker = int(fields["growth_tracker"])
        self.loaded = fields
        scale, tracker, before = self.tensor, self.tracker, self.state
        self.policy = policy
        if scale is None or tracker is None:
            return
        # The tensors stay the same ones, because captured graphs hold them.
        self.begin_on(scale.device)
        made = self.state
        if before is not None and type(before) is type(made):
            copy_state_(before, made)
            self.state = before
        scale.copy_(made.scale)
        tracker.fill_(self.init_growth_tracker)
        self.tensor, self.tracker = scale, tracker
        self.rebind()

    def __getstate__(self) -> StateDict:
        """Numbers instead of tensors, so that a copy begins on whatever device it is used."""
        scale = self.init_scale if self.tensor is None else float(self.tensor)
        tracker = self.init_growth_tracker if self.tracker is None else int(self.tracker)
        return {
            **self.__dict__,
            "loaded": self.saved_fields(),
            "init_scale": scale,
            "init_growth_tracker": tracker,
            "tensor": None,
            "tracker": None,
            "state": None,
            "known": KnownScale(),
        }
