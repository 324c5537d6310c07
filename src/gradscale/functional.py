"""A training step as pure functions: unscale, clip, take or leave. Compiles into one graph.

`GradScaler` keeps its books on the host, so `torch.compile` leaves its methods out of the graph.
With these functions, a policy and gradients from `torch.func` or `torch.autograd.grad`, a whole
step compiles with ``fullgraph=True``, and reads nothing on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gradscale.gradients.clip import clip_coefficient
from gradscale.gradients.norm import SMALLEST_NORM
from gradscale.policies.policy import Observation, Policy
from gradscale.policies.policy import advance as advanced

Tree = TypeVar("Tree")
State = TypeVar("State", bound="tuple[Any, ...]")


def unscale(gradients: Tree, scale: Tensor) -> tuple[Tree, Tensor]:
    """Divides gradients by the scale, in float32 at least, and checks the quotients.

    Args:
        gradients: tensors in any nesting of dictionaries, lists and tuples.
        scale: float32 0-d, such as the ``scale`` of a policy's state.

    Returns:
        The same nesting of quotients, and a flag, float32 0-d: 1 if one is not finite.

    Example:
        >>> gradients, found_inf = unscale({"w": torch.tensor([8.0, 4.0])}, torch.tensor(4.0))
        >>> gradients["w"].tolist(), found_inf.item()
        ([2.0, 1.0], 0.0)
    """
    inverse = scale.reciprocal()
    leaves, structure = tree_flatten(gradients)
    quotients = [
        leaf.to(torch.promote_types(leaf.dtype, torch.float32)) * inverse for leaf in leaves
    ]
    # A quotient is not finite if the gradient was not.
    finite = [torch.isfinite(quotient).all() for quotient in quotients]
    found_inf = torch.stack(finite).all().logical_not().to(torch.float32)
    return tree_unflatten(quotients, structure), found_inf


def clip_by_norm(gradients: Tree, max_norm: float, norm_type: float = 2.0) -> tuple[Tree, Tensor]:
    """Clips unscaled gradients by their common norm, as `torch.nn.utils.clip_grad_norm_` does.

    The norm is summed in float32 at least, and in float64 where its squares would not fit.

    Args:
        gradients: tensors in any nesting.
        max_norm: the norm they may have.
        norm_type: the order of the norm.

    Returns:
        The clipped gradients, and the norm before, 0-d.

    Example:
        >>> gradients, norm = clip_by_norm([torch.tensor([3.0]), torch.tensor([4.0])], 2.5)
        >>> norm.item(), round(gradients[1].item(), 3)
        (5.0, 2.0)
    """
    leaves, structure = tree_flatten(gradients)
    filled = [leaf for leaf in leaves if leaf.numel()]
    device = filled[0].device.type
    norm, coefficient = _clipping(filled, max_norm, norm_type, torch.float32)
    if device != "mps":
        # As `gradient_norm`, which reads the norm: the CPU needs float64 where squares do not fit.
        wide, exact = _clipping(filled, max_norm, norm_type, torch.float64)
        fits = (norm >= SMALLEST_NORM) & (norm < torch.inf) & (device == "cpu")
        coefficient = torch.where(fits, coefficient, exact)
        norm = torch.where(fits, norm, wide.to(norm.dtype))
    clipped = [leaf * coefficient.to(leaf.real.dtype) for leaf in leaves]
    return tree_unflatten(clipped, structure), norm


def _clipping(
    gradients: Sequence[Tensor], max_norm: float, norm_type: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The common norm, summed in `dtype` or wider, and its coefficient."""
    norms = [
        torch.linalg.vector_norm(each, norm_type, dtype=torch.promote_types(each.dtype, dtype))
        for each in gradients
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return norm, clip_coefficient(norm, max_norm)


def select(found_inf: Tensor, skipped: Tree, taken: Tree) -> Tree:
    """What a step leaves behind: `taken`, or `skipped` if a gradient was not finite.

    Args:
        found_inf: float32 0-d, from `unscale`.
        skipped: parameters, moments, counters as they were, in any nesting.
        taken: the same nesting after the step.

    Example:
        >>> select(torch.tensor(1.0), {"w": torch.zeros(1)}, {"w": torch.ones(1)})
        {'w': tensor([0.])}
    """
    bad = found_inf > 0

    def one(old: Any, new: Any) -> Any:
        return torch.where(bad, old, new)

    return tree_map(one, skipped, taken)


def advance(policy: Policy, state: State, found_inf: Tensor, loss: Tensor | None = None) -> State:
    """The policy's next state; unchanged after a step that was lost to bad data.

    Args:
        policy: one that needs nothing but the flag.
        state: from `policy.init`, or from here.
        found_inf: float32 0-d, from `unscale`.
        loss: 0-d, before it was scaled. If it is not finite, the scale is not to blame.

    Example:
        >>> from gradscale import Dynamic
        >>> policy = Dynamic(init_scale=8.0)
        >>> overflow, loss = torch.tensor(1.0), torch.tensor(2.5)
        >>> advance(policy, policy.init(), overflow, loss).scale.item()
        4.0
        >>> advance(policy, policy.init(), overflow, loss * float("nan")).scale.item()
        8.0
    """
    ignore = None
    if loss is not None:
        ignore = torch.isfinite(loss).logical_not().to(torch.float32) * found_inf
    return advanced(policy, state, Observation(found_inf), ignore)
