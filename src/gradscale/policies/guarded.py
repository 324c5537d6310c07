"""Any policy under the ceiling of a second one that believes only in overflows."""

from __future__ import annotations

import functools
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscale.policies.dynamic import Dynamic, DynamicState
from gradscale.policies.policy import Need, Observation, Policy, PolicyState
from gradscale.policies.setting_checks import quote


@dataclass(frozen=True)
class Guarded(Policy):
    """Uses the policy's scale, but never more than its guard's.

        step:      each of the two is updated;  scale = min(policy's scale, guard's scale)
        overflow:  the guard first comes down to the scale in force, then backs off

    A policy that reads `amax` of the parameter gradients cannot see an overflow inside the backward
    pass: it would
    return to the scale that just failed. Under a guard it stays below it and tries again only as
    the guard grows. The guard's modest first scale is the policy's warm-up, too.

    The state is flat: ``scale``, then the guard's fields (``guard_...``), then the policy's
    (``policy_...``).

    Args:
        policy: whose scale is wanted.
        guard: the ceiling; it grows every 200 clean steps unless told otherwise, so that at most
            about one step in 200 is lost to a policy that always aims too high.

    Raises:
        TypeError: if `policy` is not a policy, or `guard` is not a `Dynamic`.
        ValueError: if `policy` is `Guarded` itself.

    Example:
        >>> from gradscale.policies.last_maximum import LastMaximum
        >>> policy = Guarded(LastMaximum())
        >>> state = policy.init()
        >>> state.scale, policy.needs
        (tensor(65536.), frozenset({'amax'}))
        >>> for found_inf in (1.0, 0.0):
        ...     seen = Observation(torch.tensor(found_inf), amax=torch.tensor(2.0**-9))
        ...     state = policy.update(state, seen)
        >>> state.scale, state.policy_scale
        (tensor(32768.), tensor(8388608.))
    """

    policy: Policy
    guard: Dynamic = field(default_factory=lambda: Dynamic(growth_interval=200))

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{quote(self, 'policy')} must be a policy, not {type(self.policy).__name__}. "
                "Pass one such as `LogNormal()`."
            )
        if isinstance(self.policy, Guarded):
            raise ValueError(
                f"{quote(self, 'policy')} must not be guarded already. "
                "Pass the inner policy, and set `guard`."
            )
        if not isinstance(self.guard, Dynamic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{quote(self, 'guard')} must be a `Dynamic`, not {type(self.guard).__name__}. "
                "Pass `Dynamic(growth_interval=...)`."
            )

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the guarded policy needs."""
        return self.policy.needs

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> PolicyState:
        """Both first states in one, shape `shape`."""
        guard, inner = self.guard.init(shape, device), self.policy.init(shape, device)
        scale = torch.minimum(guard.scale, inner.scale)
        return _state_type(type(inner))(scale, *guard, *inner)

    def update(self, state: Any, observation: Observation) -> PolicyState:
        """Both next states in one, under the smaller of their scales.

        Raises:
            ValueError: if `observation` lacks something that the policy needs.
        """
        guard, inner = _split(state)
        # What overflowed is the scale in force, not the guard's own.
        failed = torch.where(observation.found_inf > 0, state.scale, guard.scale)
        guard = self.guard.update(guard._replace(scale=failed), observation)
        inner = self.policy.update(inner, observation)
        return type(state)(torch.minimum(guard.scale, inner.scale), *guard, *inner)


@functools.cache
def _state_type(inner: type[PolicyState]) -> type[Any]:
    """The flat NamedTuple of a guard's fields and those of `inner`, a policy's state."""
    names = [f"guard_{name}" for name in DynamicState._fields]
    names += [f"policy_{name}" for name in getattr(inner, "_fields")]  # noqa: B009
    flat = namedtuple("GuardedState", ["scale", *names])  # pyright: ignore[reportUntypedNamedTuple]
    members = {"__slots__": (), "inner": inner, "__reduce__": _reduce}
    return type("GuardedState", (flat,), members)


def _split(state: Any) -> tuple[DynamicState, PolicyState]:
    guards = len(DynamicState._fields)
    return DynamicState(*state[1 : 1 + guards]), type(state).inner(*state[1 + guards :])


def _reduce(state: Any) -> tuple[object, ...]:
    # The flat type has no name to be found by: a pickle builds it again.
    return _rebuild, (type(state).inner, tuple(state))


def _rebuild(inner: type[PolicyState], fields: tuple[Tensor, ...]) -> PolicyState:
    return _state_type(inner)(*fields)
