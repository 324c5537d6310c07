"""A scaler whose host divides and checks gradients itself, and tells what it found."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradscale.checkpoints import import_state
from gradscale.policies.policy import Policy
from gradscale.scaler import GradScaler


class ToldScaler:
    """Carries a policy for an engine that asks for the scale, and says whether a step overflowed.

    So outcomes are counted, alarms sound, metrics are logged and state is saved as in a loop of
    one's own: the scaler steps an optimizer of one number, whose gradient is what the host says.

    Args:
        scaler: carries the policy.
        device: where the scale is to be.
        teller: the host, in the words of an outcome's culprits.

    Raises:
        ValueError: if the policy needs more of a step than whether it overflowed.

    Example:
        >>> told = ToldScaler(GradScaler("cpu", init_scale=8.0), "cpu", "the engine")
        >>> told.tell(True)
        >>> told.scale.item(), told.scaler.counters.skipped
        (4.0, 1)
    """

    def __init__(self, scaler: GradScaler, device: str, teller: str) -> None:
        check_told(scaler.policy, teller)
        self.scaler = scaler
        stand_in = torch.nn.Parameter(torch.zeros((), device=device))
        self._optimizer = torch.optim.SGD([stand_in], lr=0.0)
        scaler._step.names[id(stand_in)] = f"a gradient that {teller} found"
        if scaler._held.tensor is None:
            scaler._held.begin_on(stand_in.device)

    @property
    def scale(self) -> Tensor:
        """The loss scale, float32 0-d."""
        return self.scaler._held.ready("scale")

    def tell(self, overflowed: bool) -> None:
        """Ends a step: the policy chooses the next scale.

        Args:
            overflowed: whether the host found an infinity or NaN, and so will not step.
        """
        (stand_in,) = self._optimizer.param_groups[0]["params"]
        stand_in.grad = torch.full_like(stand_in, torch.inf if overflowed else 0.0)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        stand_in.grad = None

    def take_over(self, state: Mapping[str, object], system: str | None = None) -> None:
        """Goes on at a saved state.

        Args:
            state: as saved.
            system: whose it is, by its name in `gradscale.checkpoints`; None if it is ours.
        """
        if system is not None:
            state = import_state(state, system)
        self.scaler.load_state_dict(dict(state))


def check_told(policy: Policy, teller: str) -> None:
    """Refuses a policy that would have to see the gradients.

    Raises:
        ValueError: if it needs them.
    """
    if policy.needs:
        needs = " and ".join(sorted(policy.needs))
        raise ValueError(
            f"`policy={type(policy).__name__}(…)` needs {needs} of each step, and {teller} "
            "tells only whether it overflowed. Pass one that needs nothing, such as `Dynamic`."
        )
