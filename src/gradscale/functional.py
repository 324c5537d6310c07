"""A training step as pure functions: clip, unscale, take or leave. Compiles into one graph.

`GradScaler` keeps its books on the host, so `torch.compile` leaves its methods out of the graph.
With these functions, a policy and gradients from `torch.func` or `torch.autograd.grad`, a whole
step compiles with ``fullgraph=True``, and reads nothing on the host:

    c, norm = clipping(g, S, max_norm)        c = min(1, max_norm / |g / S|)
    q, found_inf = unscale(g, S, c)           q = g * (c / S), one product; is every q finite?
    p' = your rule(p, q)
    p = select(found_inf, p, p')
    S = next_state(policy, S, observe(found_inf, q, policy.needs), loss)

`captured` steps are made of them. Gradients in float32 get the bits that `GradScaler` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from gradscale.gradients.clip import clip_coefficient
from gradscale.gradients.flags import inverse
from gradscale.gradients.norm_rule import with_norm
from gradscale.histogram import count_exponents
from gradscale.policies.policy import Need, Observation, Policy, PolicyState, advance

Tree = TypeVar("Tree")
State = TypeVar("State", bound=PolicyState)


def unscale(
    gradients: Tree, scale: Tensor, coefficient: Tensor | None = None, *, keep_dtype: bool = False
) -> tuple[Tree, Tensor]:
    """Divides gradients by the scale, in float32 at least, and checks the quotients.

    Args:
        gradients: tensors in any nesting of dictionaries, lists and tuples.
        scale: float32 0-d, such as the ``scale`` of a policy's state.
        coefficient: float32 0-d, multiplied in with the same product; see `clipping`.
        keep_dtype: rounds each quotient to its gradient's dtype again, once, before it is checked:
            `GradScaler` does so for parameters in half precision.

    Returns:
        The same nesting of quotients, and a flag, float32 0-d: 1 if one is not finite.

    Example:
        >>> gradients, found_inf = unscale({"w": torch.tensor([8.0, 4.0])}, torch.tensor(4.0))
        >>> gradients["w"].tolist(), found_inf.item()
        ([2.0, 1.0], 0.0)
    """
    factor = inverse(scale)
    if coefficient is not None:
        factor = factor * coefficient
    leaves, structure = tree_flatten(gradients)
    quotients = [_product(leaf, factor) for leaf in leaves]
    if keep_dtype:
        # Before the check: to round back to half precision may itself overflow.
        quotients = [new.to(leaf.dtype) for leaf, new in zip(leaves, quotients, strict=True)]
    # A quotient is not finite if the gradient was not.
    finite = [torch.isfinite(quotient).all() for quotient in quotients]
    found_inf = torch.stack(finite).all().logical_not().to(torch.float32)
    return tree_unflatten(quotients, structure), found_inf


def _product(gradient: Tensor, factor: Tensor) -> Tensor:
    # A product with 1/S, as torch's kernel takes it: a quotient could round differently.
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.to(wide) * factor.to(wide)


def clipping(
    gradients: object, scale: Tensor, max_norm: float, norm_type: float = 2.0
) -> tuple[Tensor, Tensor]:
    """What `unscale` multiplies gradients by to clip them, before anything has touched them.

    The norm is summed in float32 at least, and in float64 where its squares would not fit. Clipping
    and unscaling are then one product, with one rounding.

    Args:
        gradients: at the loss scale, tensors in any nesting.
        scale: float32 0-d.
        max_norm: the norm that they may have once they are unscaled.
        norm_type: the order of the norm.

    Returns:
        The coefficient, float32 0-d, at most 1, and the norm of the unscaled gradients, 0-d.

    Example:
        >>> gradients, scale = [torch.tensor([6.0]), torch.tensor([8.0])], torch.tensor(2.0)
        >>> coefficient, norm = clipping(gradients, scale, 2.5)
        >>> clipped, found_inf = unscale(gradients, scale, coefficient)
        >>> norm.item(), round(clipped[1].item(), 3)
        (5.0, 2.0)
    """
    filled = [leaf for leaf in tree_leaves(gradients) if leaf.numel()]
    inv_scale = inverse(scale)

    def unscaled(norm: Tensor) -> tuple[Tensor, Tensor]:
        true = norm * inv_scale.to(norm.dtype)
        return clip_coefficient(true, max_norm), true

    coefficient, norm = with_norm(filled, norm_type, unscaled)
    wide = any(leaf.real.dtype is torch.float64 for leaf in filled)
    return coefficient, norm.to(torch.float64 if wide else torch.float32)


def clip_by_norm(gradients: Tree, max_norm: float, norm_type: float = 2.0) -> tuple[Tree, Tensor]:
    """Clips unscaled gradients by their common norm, as `torch.nn.utils.clip_grad_norm_` does.

    Args:
        gradients: tensors in any nesting.
        max_norm: the norm they may have.
        norm_type: the order of the norm.

    Returns:
        The clipped gradients, and the norm before, 0-d; see `clipping`.

    Example:
        >>> gradients, norm = clip_by_norm([torch.tensor([3.0]), torch.tensor([4.0])], 2.5)
        >>> norm.item(), round(gradients[1].item(), 3)
        (5.0, 2.0)
    """
    leaves, structure = tree_flatten(gradients)
    # They are unscaled: the same function at a scale of 1.
    one = torch.ones((), dtype=torch.float32, device=leaves[0].device)
    coefficient, norm = clipping(leaves, one, max_norm, norm_type)
    clipped = [leaf * coefficient.to(leaf.real.dtype) for leaf in leaves]
    return tree_unflatten(clipped, structure), norm


def observe(found_inf: Tensor, gradients: object, needs: Set[Need] = frozenset()) -> Observation:
    """What a policy is shown of a step: the flag, and what else it needs of the gradients.

    Args:
        found_inf: float32 0-d, from `unscale`.
        gradients: unscaled ones, in any nesting.
        needs: the policy's ``needs``.

    Example:
        >>> observe(torch.tensor(0.0), [torch.tensor([3.0, -4.0])], {"amax"}).amax.item()
        4.0
    """
    amax = counts = None
    # Real and imaginary parts one by one, as the scaler's own pass sees them.
    leaves = [torch.view_as_real(g) if g.is_complex() else g for g in tree_leaves(gradients)]
    if "amax" in needs:
        each = torch.stack([g.abs().amax().to(torch.float32) for g in leaves if g.numel()])
        # A tensor with a non-finite element counts as zero: its step is no measurement.
        amax = torch.where(each < torch.inf, each, 0.0).amax()
    if "exponents" in needs:
        counts = torch.stack([count_exponents(gradient) for gradient in leaves]).sum(0)
    return Observation(found_inf, amax, counts)


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

    def one(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(bad, old, new)

    return tree_map(one, skipped, taken)


def next_state(
    policy: Policy,
    state: State,
    seen: Tensor | Observation,
    losses: Tensor | Sequence[Tensor] | None = None,
) -> State:
    """The policy's next state; unchanged after a step that was lost to bad data.

    Args:
        policy: who chooses the scale.
        state: from `policy.init`, or from here.
        seen: from `observe`; or the flag alone, for a policy that needs nothing else.
        losses: 0-d, before they were scaled. If one is not finite, the scale is not to blame.

    Example:
        >>> from gradscale import Dynamic
        >>> policy = Dynamic(init_scale=8.0)
        >>> overflow, loss = torch.tensor(1.0), torch.tensor(2.5)
        >>> next_state(policy, policy.init(), overflow, loss).scale.item()
        4.0
        >>> next_state(policy, policy.init(), overflow, loss * float("nan")).scale.item()
        8.0
    """
    seen = Observation(seen) if isinstance(seen, Tensor) else seen
    ignore = None
    if losses is not None:
        each = [losses] if isinstance(losses, Tensor) else losses
        finite = torch.stack([torch.isfinite(loss).all() for loss in each]).all()
        # Only an overflow is left out: a step that was taken counts, whatever its losses were.
        ignore = finite.logical_not().to(torch.float32) * seen.found_inf
    return advance(policy, state, seen, ignore)
