"""The contract of a policy: a frozen value that turns state and observation into the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

Need = Literal["amax", "exponents"]


class PolicyState(Protocol):
    """A policy's state: a NamedTuple of tensors, of which the first is the scale."""

    @property
    def scale(self) -> Tensor: ...  # noqa: D102
    def _asdict(self) -> dict[str, Tensor]: ...
    def _replace(self, **fields: Tensor | None) -> PolicyState: ...
    def __iter__(self) -> Iterator[Tensor]: ...


class ScaleState(NamedTuple):
    """The state of a policy that remembers nothing else: the scale, float32, shape `losses`."""

    scale: Tensor


S = TypeVar("S", bound=PolicyState)


class Observation(NamedTuple):
    """What one optimizer step saw of the gradients. Every field is on the device; none has been
    read by the host.

    Attributes:
        found_inf: shape `losses`, float32: above 0 where a gradient overflowed *because of the
            scale*. A step lost to bad data (a non-finite loss, parameter or input) is never shown
            to a policy.
        amax: shape `losses`, float32: the largest finite magnitude of the unscaled gradients, 0 if
            all are zero; None unless the policy `needs` ``"amax"``.
        exponents: shape `(*losses, EXPONENT_BINS)`, float32 or int64: how many unscaled gradient
            elements lie in each octave (`gradscale.histogram`); None unless the policy `needs`
            ``"exponents"``.
    """

    found_inf: Tensor
    amax: Tensor | None = None
    exponents: Tensor | None = None


class Policy(ABC):
    """Decides the loss scale. A subclass is a frozen dataclass of hyperparameters, and final.

    The rules that the conformance suite holds every policy to:

    - `init` and `update` are pure: no tensor is changed in place, none is read by the host.
    - The state is a NamedTuple of tensors; its first field is ``scale``, float32, finite and
      positive.
    - A state of shape `(losses,)` behaves as that many states of shape `()`.
    - An overflow never raises the scale.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Any:
        """The state before the first step: a NamedTuple of tensors of shape `shape` on `device`."""

    @abstractmethod
    def update(self, state: Any, observation: Observation) -> Any:
        """The state after a step that saw `observation`; `state` itself is left alone.

        Raises:
            ValueError: if `observation` lacks something that the policy `needs`.
        """


def advance(policy: Policy, state: S, observation: Observation, ignore: Tensor | None = None) -> S:
    """`policy.update`, except that elements where `ignore` is above 0 keep their old state.

    This is how a step that was lost to bad data leaves the policy untouched without a host read.

    Args:
        policy: who decides.
        state: the policy's state, fields of shape `(*losses, …)`.
        observation: what the step saw.
        ignore: shape `losses`, or None to ignore nothing.

    Returns:
        The next state, of the type of `state`.

    Example:
        >>> from gradscale.policies import Dynamic
        >>> policy = Dynamic()
        >>> overflow = Observation(found_inf=torch.ones(2))
        >>> bad_data = torch.tensor([0.0, 1.0])
        >>> advance(policy, policy.init((2,)), overflow, bad_data).scale
        tensor([32768., 65536.])
    """
    after = policy.update(state, observation)
    if ignore is None:
        return after
    keep = ignore > 0
    fields = [
        # A field may have dimensions behind `losses`, such as a ring of maxima.
        torch.where(keep.reshape(keep.shape + (1,) * (new.dim() - keep.dim())), old, new)
        for old, new in zip(state, after, strict=True)
    ]
    return cast("Callable[..., S]", type(state))(*fields)
