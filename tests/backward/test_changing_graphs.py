"""A plan followed over many steps between which the graph may change: checked the slow way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from assertions import assert_same_gradients
from gradscale.backward import BackwardGraph, LossEntry, Multipliers, ScalePlan, Walk, rescale
from slow_walk import slow_walk

WEIGHTS = 4
SIZE = 3


@dataclass(frozen=True)
class Step:
    """One forward and backward pass: which layers run, in which order, and what is unusual."""

    layers: list[tuple[str, int, int]]
    losses: int = 1
    frozen: frozenset[int] = frozenset()
    passes: int = 1
    alone: bool = False
    evaluates: bool = False
    penalty: bool = False


@dataclass
class Program:
    """Weights that every step may use, tie or leave out."""

    weights: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [
            torch.randn(SIZE, SIZE, generator=generator).div(2).requires_grad_()
            for _ in range(WEIGHTS)
        ]

    def losses(self, step: Step) -> list[Tensor]:
        for number, weight in enumerate(self.weights):
            weight.requires_grad_(number not in step.frozen)
        made = [torch.linspace(-1, 1, SIZE * SIZE).reshape(SIZE, SIZE)]
        for kind, which, back in step.layers:
            made.append(layer(kind, made[-1 - back % len(made)], self.weights[which], made[-1]))
        ends = [made[-1], made[len(made) // 2]][: step.losses]
        found = [end.square().sum() for end in ends if end.requires_grad]
        if step.penalty and found:
            used = [w for w in self.weights if w.requires_grad]
            slopes = torch.autograd.grad(found[0], used, create_graph=True, allow_unused=True)
            found[0] = found[0] + sum(s.square().sum() for s in slopes if s is not None)
        return found

    def taken(self) -> list[Tensor | None]:
        grads = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return grads


def layer(kind: str, x: Tensor, weight: Tensor, latest: Tensor) -> Tensor:
    if kind == "residual":
        return latest + (x @ weight).tanh()
    if kind == "checkpoint":
        return checkpoint(lambda t, w: (t @ w).tanh() * w, x, weight, use_reentrant=False)
    if kind == "split":
        left, right = (x @ weight).split([1, SIZE - 1], 1)
        return torch.cat([right.sin(), left], 1)
    if kind == "in place":
        y = x * weight
        y[:, 1:].mul_(0.5)
        return y
    if kind == "cast":
        return (x.bfloat16() @ weight.bfloat16()).float()
    return (x @ weight).relu()


KINDS = ["residual", "checkpoint", "split", "in place", "cast", "relu"]
layers = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, WEIGHTS - 1), st.integers(0, 3)),
    min_size=1,
    max_size=6,
)
steps = st.builds(
    Step,
    layers=layers,
    losses=st.integers(1, 2),
    frozen=st.frozensets(st.integers(0, WEIGHTS - 1), max_size=2),
    passes=st.integers(1, 2),
    alone=st.booleans(),
    evaluates=st.booleans(),
)


class Follower:
    """Follows one random plan for every structure, with the factors of the first time."""

    def __init__(self) -> None:
        self.plans: dict[str, tuple[ScalePlan, Multipliers]] = {}
        self.followed = 0
        self.entry = LossEntry(self.begin)

    def begin(self, walked: Walk) -> None:
        graph, nodes = walked
        slow = slow_walk([nodes[root] for root in graph.roots])
        assert slow.nodes == nodes
        assert slow.names == list(graph.names)
        assert slow.edges == [tuple(edge) for edge in graph.edges]
        if graph.signature not in self.plans:
            seed = int(graph.signature[:8], 16)
            plan = ScalePlan.random(graph, torch.Generator().manual_seed(seed))
            self.plans[graph.signature] = plan, Multipliers(graph, plan)
        plan, multipliers = self.plans[graph.signature]
        k = plan.exponents
        assert rescale(walked, plan, multipliers).edges == sum(
            k[source] != k[target] for source, _, target, _ in slow.edges
        )
        self.followed += 1


def run(program: Program, step: Step, watch=lambda loss: loss) -> list[Tensor | None]:
    if step.evaluates:
        with torch.no_grad():
            program.losses(Step(step.layers[:1]))
    losses = [watch(loss) for loss in program.losses(step)]
    for last in reversed(range(step.passes)):
        groups = [[loss] for loss in losses] if step.alone else [losses] * bool(losses)
        for number, group in enumerate(groups):
            more = last > 0 or number + 1 < len(groups)
            torch.autograd.backward(group, retain_graph=more)
    return program.taken()


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_steps_that_change_and_return_follow_the_right_plan(steps, again):
    """Steps in any order and again: a plan that was followed before must fit, or not be used."""
    follower, program = Follower(), Program()
    for step in [*steps, *(steps[i % len(steps)] for i in again)]:
        expected = run(program, step)
        assert_same_gradients(run(program, step, follower.entry.watch), expected)
    assert follower.entry.partial_passes == 0


def test_a_penalty_on_the_slope_follows_a_plan():
    follower, program = Follower(), Program()
    step = Step([("relu", 0, 0), ("residual", 1, 1), ("split", 0, 0)], penalty=True)
    for _ in range(3):
        expected = run(program, step)
        assert_same_gradients(run(program, step, follower.entry.watch), expected)
    assert follower.followed == 3 and len(follower.plans) == 1


def test_two_wirings_of_the_same_nodes_are_two_structures():
    """The same kinds of nodes, made in the same order: only the edges tell them apart."""
    w = [torch.full((2,), float(i + 1), requires_grad=True) for i in range(3)]
    follower = Follower()
    for order in ((0, 1, 2), (1, 0, 2), (0, 1, 2)):
        for weight in w:
            weight.grad = None
        a, b, c = (w[i].exp() for i in range(3))
        x, y, z = ((a, b, c)[i] for i in order)
        ((x * y + z) * a).sum().backward()
        expected = [weight.grad for weight in w]
        for weight in w:
            weight.grad = None
        a, b, c = (w[i].exp() for i in range(3))
        x, y, z = ((a, b, c)[i] for i in order)
        follower.entry.watch(((x * y + z) * a).sum()).backward()
        assert_same_gradients([weight.grad for weight in w], expected)
    assert follower.followed == 3 and len(follower.plans) == 2


def test_every_structure_keeps_its_plan_while_lengths_alternate():
    follower, w = Follower(), torch.full((2,), 0.5, requires_grad=True)
    for length in (3, 5, 3, 4, 5, 3):
        h = w
        for _ in range(length):
            h = (h * w).tanh()
        w.grad = None
        h.sum().backward(retain_graph=True)
        expected, w.grad = w.grad, None
        follower.entry.watch(h.sum()).backward()
        assert_same_gradients([w.grad], [expected])
    assert len(follower.plans) == 3


def test_nodes_of_a_class_made_anew_in_each_step_are_recognized():
    follower, w = Follower(), torch.ones(2, requires_grad=True)
    for _ in range(3):

        class Twice(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                return grad * 2

        w.grad = None
        follower.entry.watch(Twice.apply(w.exp()).sin().sum()).backward()
    assert len(follower.plans) == 1


def test_bottoms_are_in_both_of_two_graphs_that_share_a_node():
    w = [torch.ones(2, requires_grad=True) for _ in range(2)]
    trunk = (w[0] * 2).exp()
    graphs = [BackwardGraph.of(head.sum()) for head in (trunk * w[1], trunk.sin())]
    names = [[graph.names[node] for node in graph.structure.bottoms] for graph in graphs]
    assert names == [["MulBackward0"], ["MulBackward0"]]


def test_edges_that_differ_only_in_the_input_of_their_target_are_two_structures():
    """`split` makes one node with two inputs; which half goes where is told by nothing else."""
    follower, w = Follower(), torch.ones(4, requires_grad=True)
    for swapped in (False, True, False):
        halves = w.exp().split(2)
        one, other = reversed(halves) if swapped else halves
        w.grad = None
        (one.sin() * other).sum().backward(retain_graph=True)
        expected, w.grad = w.grad, None
        halves = w.exp().split(2)
        one, other = reversed(halves) if swapped else halves
        follower.entry.watch((one.sin() * other).sum()).backward()
        assert_same_gradients([w.grad], [expected])
    assert follower.followed == 3 and len(follower.plans) == 2
