"""Attaches a plan to one backward graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.backward.multipliers import Factor, Multipliers
from gradscale.backward.multiply import is_unshared, multiply_gradient
from gradscale.backward.plan import ScalePlan
from gradscale.backward.running_pass import PassGate, current_pass
from gradscale.compiled.opened import InnerNode
from gradscale.compiled.under_way import under_way
from gradscale.live_nodes import LiveNode
from gradscale.untraced import untraced

Grads = Sequence[Tensor | None]
Scaled = tuple[Tensor | None, ...]
CLAIM = "gradscale.rescale"
_running = torch._C._current_graph_task_id
_differentiating = torch.is_grad_enabled
_DENSE = torch.strided


class Rescaled:
    """The hooks of one plan on one graph. They go with the graph, with `remove()` or with `with`.

    Attributes:
        edges: how many edges are multiplied; 0 for a uniform plan.
    """

    def __init__(self, gate: PassGate | None, handles: list[RemovableHandle], edges: int) -> None:
        self._gate = gate
        self._handles = handles
        self.edges = edges

    @untraced
    def remove(self) -> None:
        """Takes the hooks off; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._gate is not None:
            self._gate.close()

    def __enter__(self) -> Rescaled:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Rescaled({self.edges} edges, {len(self._handles)} hooks)"


def rescale(
    graph: BackwardGraph | Walk, plan: ScalePlan, multipliers: Multipliers | None = None
) -> Rescaled:
    """Stores every node's gradient at its exponent, by hooks on the edges whose ends differ.

    The gradient on an edge u -> v is multiplied by `2^(k_v - k_u)` as it leaves u. Every backward
    node that torch wrote is linear in what it receives and powers of two commute with rounding, so
    the gradients of the leaves keep their bits, except where a value would have over- or
    underflowed. Users' functions stay at the loss scale unless they are proven (`graph.proving`).

    Only a pass that goes from the losses to all of their leaves is scaled. `autograd.grad`,
    `backward(inputs=…)` and passes that start elsewhere in the graph find the hooks inert and so
    read plain gradients. Called during a pass (`LossEntry`), the hooks serve that pass only and are
    removed at its end.

    Args:
        graph: a graph whose losses are alive, or a `Walk`.
        plan: made for this structure.
        multipliers: factors already on the device, from an earlier step; made here if not given.

    Raises:
        ValueError: the plan is for another structure, or moves a leaf or a pinned node.
        RuntimeError: a node has a plan already, or the losses are gone.

    Example:
        >>> from gradscale.backward import ScalePlan
        >>> w = torch.ones(3, requires_grad=True)
        >>> loss = (w * 2).sum()
        >>> graph = BackwardGraph.of(loss)
        >>> handle = rescale(graph, ScalePlan.of(graph, {1: 5}))
        >>> loss.backward()
        >>> handle, w.grad
        (Rescaled(2 edges, 3 hooks), tensor([2., 2., 2.]))
    """
    plain = graph.graph if isinstance(graph, Walk) else graph
    plan.check(plain)
    if plan.is_uniform:
        return Rescaled(None, [], 0)
    walked = graph if isinstance(graph, Walk) else graph.walk_again()
    plan.check(walked.graph)
    if multipliers is None:
        multipliers = Multipliers(walked.graph, plan)
    multipliers.check(walked.graph, plan)
    gate = PassGate()
    if current_pass() < 0:  # during a pass, `LossEntry` has joined all that takes part in it
        _claim(walked, gate)
    handles = _hook_roots(walked, gate, multipliers) + _hook_edges(walked, gate, multipliers)
    _scale_inside(walked, gate, multipliers)
    rescaled = Rescaled(gate, handles, multipliers.multiplied)
    if current_pass() >= 0:
        gate.open_for_this_pass()
        torch.autograd.Variable._execution_engine.queue_callback(rescaled.remove)
    return rescaled


def _claim(walked: Walk, gate: PassGate) -> None:
    """Refuses a second plan where one is at work: the factors of both would apply.

    Leaves outlive the iteration, and carry no plan. Of two graphs that share any other node, the
    lowest ones below that are in both.
    """
    for number in walked.graph.structure.bottoms:
        node = walked.nodes[number]
        before = cast(PassGate | None, node.metadata.get(CLAIM))
        if before is not None and before.alive:
            raise RuntimeError(
                f"`rescale(graph, plan)`: {node.name()} already carries a plan. For losses that "
                "share nodes, walk them together: `BackwardGraph.of([first, second])`. To replace "
                "a plan, call `remove()` on what `rescale` returned before."
            )
        node.metadata[CLAIM] = gate


def _hook_roots(walked: Walk, gate: PassGate, multipliers: Multipliers) -> list[RemovableHandle]:
    """The root's own incoming edge, and where a hook learns which pass is running."""
    if current_pass() >= 0:
        if any(multipliers.root_exponents):
            raise ValueError(
                "`rescale(walk, plan)` during a backward pass needs exponent 0 at the roots: what "
                "arrives there has arrived already."
            )
        return []
    handles: list[RemovableHandle] = []
    structure = walked.graph.structure
    for root, by in zip(structure.roots, multipliers.of_roots(), strict=True):
        leaves = [walked.nodes[leaf] for leaf in structure.leaves_of_root[root]]
        interior = bool(structure.edges_into[root])
        scaling = None if interior else by
        handles.append(walked.nodes[root].register_prehook(_root_hook(gate, leaves, scaling)))
    return handles


def _root_hook(
    gate: PassGate, leaves: Sequence[LiveNode], by: Tensor | None
) -> Callable[[Grads], Scaled | None]:
    @untraced
    def hook(grads: Grads) -> Scaled | None:
        gate.enter(leaves)
        if by is None or not gate.is_open():
            return None
        return tuple(None if grad is None else multiply_gradient(grad, by) for grad in grads)

    return hook


def _hook_edges(walked: Walk, gate: PassGate, multipliers: Multipliers) -> list[RemovableHandle]:
    handles: list[RemovableHandle] = []
    for source, factors in multipliers.of_sources:
        handle = walked.nodes[source].register_hook(partial(_scale_outputs, gate, factors))
        hooks = handle.hooks_dict_ref()
        if hooks is not None and len(hooks) > 1:  # who sees a gradient before may keep it
            seen = [factor._replace(new=False) for factor in factors]
            hooks[handle.id] = partial(_scale_outputs, gate, seen)
        handles.append(handle)
    return handles


def _scale_inside(walked: Walk, gate: PassGate, multipliers: Multipliers) -> None:
    """Hands compiled nodes the factors of what crosses inside them, and of what leaves them."""
    spans = walked.graph.structure.spans
    for span, factors in zip(spans, multipliers.of_spans(), strict=True):
        inner = cast(InnerNode, walked.nodes[span.nodes[0]])
        under_way(inner.live).scale(factors, gate)


# Called for every multiplication of every step, between kernels that have displaced what Python
# needs from the caches of a CPU: to look at an attribute of a tensor costs 2 us here, ten times as
# much as in a loop of its own. So what the structure knows is not asked.
@untraced
def _scale_outputs(
    gate: PassGate, factors: Sequence[Factor], produced: Grads, arrived: Grads
) -> Scaled | None:
    del arrived
    if gate.open_in != _running():
        return None
    scaled: list[Tensor | None] | None = None  # a list would hold what may be overwritten
    for output, by, plain, large, new in factors:
        grad = produced[output]
        if grad is None:
            continue
        if new and type(grad) is Tensor and grad.layout is _DENSE and not _differentiating():
            grad.mul_(by)
            continue
        if large and is_unshared(grad):
            multiply_gradient(grad, by, may_overwrite=True)
            continue
        scaled = scaled or list(produced)
        scaled[output] = grad * by if plain else multiply_gradient(grad, by)
    return None if scaled is None else tuple(scaled)
