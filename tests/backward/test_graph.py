"""The backward graph: order, edges, leaves, signatures, pins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscale.backward import BackwardGraph, Edge, walk
from gradscale.backward.user_hooks import watch_user_hooks, watched_numbers
from zoo import ZOO

watch_user_hooks()
EAGER = sorted(set(ZOO) - {"compiled_blocks"})


def slow_edges(root: Any) -> set[tuple[int, int, int, int]]:
    """Every edge of the live graph by node identity, by plain recursion over all paths' nodes."""
    seen: dict[int, Any] = {}
    edges: set[tuple[int, int, int, int]] = set()

    def visit(node: Any) -> None:
        if id(node) in seen:
            return
        seen[id(node)] = node
        for output, (target, entry) in enumerate(node.next_functions):
            if target is not None:
                edges.add((id(node), output, id(target), entry))
                visit(target)

    visit(root)
    return edges


@pytest.mark.parametrize("name", EAGER)
def test_the_graph_has_every_edge_of_the_live_one(name: str) -> None:
    loss = ZOO[name](torch.float32, 3).losses()[-1]
    graph, nodes = walk(loss)
    found = {(id(nodes[e.source]), e.output, id(nodes[e.target]), e.input) for e in graph.edges}
    assert found == slow_edges(loss.grad_fn)
    assert len(graph) == len(nodes) == len(set(map(id, nodes)))


@pytest.mark.parametrize("name", EAGER)
def test_edges_lead_onward_and_are_sorted(name: str) -> None:
    graph = BackwardGraph.of(ZOO[name](torch.float32, 3).losses())
    assert all(edge.source < edge.target for edge in graph.edges)
    assert [e[:2] for e in graph.edges] == sorted(e[:2] for e in graph.edges)
    for node in range(len(graph)):
        assert all(graph.edges[i].source == node for i in graph.edges_from(node))
        assert all(graph.edges[i].target == node for i in graph.edges_into(node))
    assert sum(len(graph.edges_from(n)) for n in range(len(graph))) == len(graph.edges)


@pytest.mark.parametrize("name", EAGER)
def test_two_iterations_have_one_signature_and_another_batch_size_too(name: str) -> None:
    torch.manual_seed(0)
    trial = ZOO[name](torch.float32, 3)
    one, two = BackwardGraph.of(trial.losses()), BackwardGraph.of(trial.losses())
    assert one.signature == two.signature and one.structure is two.structure
    assert list(one.parameters()) == list(two.parameters())
    for first, second in zip(one.parameters().values(), two.parameters().values(), strict=True):
        assert first is second


def test_structures_that_differ_have_different_signatures() -> None:
    graphs = [
        BackwardGraph.of(ZOO[name](dtype, 3).losses())
        for name in EAGER
        for dtype in (torch.float32, torch.float64)
    ]
    assert len({graph.signature for graph in graphs}) == len(graphs)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_which_leaf_is_shared_tells_structures_apart(order: tuple[int, int]) -> None:
    w = [torch.ones(2, requires_grad=True) for _ in range(2)]
    alike = (w[order[0]] * w[order[1]]).sum()
    square = (w[order[0]] * w[order[0]]).sum()
    assert BackwardGraph.of(alike).signature != BackwardGraph.of(square).signature
    other = (w[order[1]] * w[order[0]]).sum()
    assert BackwardGraph.of(alike).signature == BackwardGraph.of(other).signature


def test_the_dtype_of_a_cast_tells_structures_apart() -> None:
    w = torch.ones(2, requires_grad=True)
    graphs = [BackwardGraph.of((w.to(d) * 2).float().sum()) for d in (torch.half, torch.bfloat16)]
    assert graphs[0].signature != graphs[1].signature
    product = graphs[0].names.index("MulBackward0")
    assert [g.arrives[product][0].dtype for g in graphs] == [torch.half, torch.bfloat16]


def test_what_arrives_is_described_per_input() -> None:
    w = torch.ones(4, 6, requires_grad=True)
    left, right = w.split([2, 4], 1)
    graph = BackwardGraph.of(left.sum() + right.sum())
    (arrivals,) = [a for a, n in zip(graph.arrives, graph.names, strict=True) if "Split" in n]
    assert [arrival.shape for arrival in arrivals] == [(4, 2), (4, 4)]
    assert all(a.dtype == torch.float32 and a.device == torch.device("cpu") for a in arrivals)


def test_a_recurrence_of_five_thousand_steps_is_walked() -> None:
    w = torch.ones(2, requires_grad=True)
    h = w
    for _ in range(5000):
        h = (h * w).tanh()
    graph = BackwardGraph.of(h.sum())
    assert len(graph) == 10_002 and graph.leaves == (10_001,)
    assert graph.names[:3] == ("SumBackward0", "TanhBackward0", "MulBackward0")
    assert graph.edges[2] == Edge(2, 0, 3, 0)


def test_a_graph_of_several_losses_has_several_roots() -> None:
    losses = ZOO["two_losses"](torch.float32, 3).losses()
    graph = BackwardGraph.of(losses)
    assert len(graph.roots) == 2
    assert graph.signature != BackwardGraph.of(losses[0]).signature
    reached = graph.structure.leaves_of_root
    assert set(reached[graph.roots[0]]) != set(reached[graph.roots[1]])
    assert set(reached[graph.roots[0]]) | set(reached[graph.roots[1]]) == set(graph.leaves)


def test_a_loss_inside_another_losss_graph_is_pinned() -> None:
    graph = BackwardGraph.of(ZOO["loss_of_a_loss"](torch.float32, 3).losses())
    inner = [root for root in graph.roots if graph.edges_into(root)]
    assert len(inner) == 1 and graph.pinned == frozenset(inner)


def test_one_loss_named_twice_is_one_root() -> None:
    loss = torch.ones(2, requires_grad=True).sum()
    assert BackwardGraph.of([loss, loss]).roots == (0,)


def test_a_parameter_may_be_its_own_loss() -> None:
    w = torch.ones((), requires_grad=True)
    graph = BackwardGraph.of(w)
    assert graph.roots == graph.leaves == (0,) and graph.edges == ()


def test_a_loss_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a loss that requires a gradient.*no_grad"):
        BackwardGraph.of(torch.ones(()))


def test_hidden_leaves_are_found() -> None:
    hidden, shown = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)

    class Hides(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * hidden.detach()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            with torch.enable_grad():
                (hidden * 2).sum().backward()
            return grad * 1.0

    loss = Hides.apply(shown).sum()
    graph = BackwardGraph.of(loss)
    loss.backward()
    unused = torch.ones(2, requires_grad=True)
    assert [id(p) for p in graph.hidden([hidden, shown, unused])] == [id(hidden)]


def test_watched_tensors_are_pinned_and_distributed_hooks_are_not() -> None:
    w = torch.ones(2, requires_grad=True)
    h = w * 2
    k = h.exp()
    loss = k.sum()

    def blind(grad: Tensor) -> None:
        del grad

    blind.__module__ = "torch.distributed.fsdp"
    h.register_hook(blind)
    assert BackwardGraph.of(loss).pinned == frozenset()
    k.register_hook(lambda grad: None)
    assert {BackwardGraph.of(loss).names[n] for n in BackwardGraph.of(loss).pinned} == {
        "ExpBackward0"
    }
    assert k.grad_fn._sequence_nr() in watched_numbers()
    w.register_hook(lambda grad: None)
    w.retain_grad()
    assert len(BackwardGraph.of(loss).pinned) == 1


def test_module_hooks_are_pinned() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model[1].register_full_backward_hook(lambda *args: None)
    graph = BackwardGraph.of(model(torch.ones(1, 2)).sum())
    assert {graph.names[n] for n in graph.pinned} == {"BackwardHookFunctionBackward"}


def test_pinning_adds_to_what_is_pinned() -> None:
    graph = BackwardGraph.of(torch.ones(2, requires_grad=True).exp().sum())
    assert graph.pinning([1]).pinning([0]).pinned == {0, 1} and graph.pinned == frozenset()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30))
def test_any_dag_is_sorted_alike_twice(pairs: list[tuple[int, int]]) -> None:
    def build() -> BackwardGraph:
        made = [torch.ones(1, requires_grad=True)]
        for a, b in pairs:
            made.append(made[a % len(made)] * made[b % len(made)])
        return BackwardGraph.of(made[-1].sum())

    one, two = build(), build()
    assert one.edges == two.edges and one.names == two.names
    assert all(edge.source < edge.target for edge in one.edges)
