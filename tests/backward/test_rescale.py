"""What the user reads is right, nothing outlives the pass, every product is exact."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from gradscale.backward import BackwardGraph, LossEntry, Multipliers, ScalePlan, Walk, rescale, walk
from gradscale.backward.multiply import is_unshared, multiply_gradient
from gradscale.backward.user_hooks import watch_user_hooks

watch_user_hooks()


class Chain:
    """w -> a -> b -> c -> loss, with every inner node away from the loss scale."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.w = torch.randn(3, 3, dtype=dtype, requires_grad=True)
        self.v = torch.randn(3, 3, dtype=dtype, requires_grad=True)
        self.a = self.w @ self.v
        self.b = self.a.tanh()
        self.c = self.b * self.w
        self.loss = self.c.square().sum()

    def true(self, *inner: Tensor) -> list[Tensor]:
        """Gradients of w, v and the inner tensors, before anything is hooked."""
        wanted = [self.w, self.v, *inner]
        return list(torch.autograd.grad(self.loss, wanted, retain_graph=True))

    def rescale(self, exponent: int = 5) -> Any:
        graph = BackwardGraph.of(self.loss)
        plan = ScalePlan(tuple(exponent for _ in range(len(graph))), graph.signature)
        return rescale(graph, plan.pinning(graph))


def same(found: list[Tensor | None], expected: list[Tensor]) -> bool:
    return all(f is not None and torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_a_tensor_hook_sees_the_loss_scale() -> None:
    chain, seen = Chain(), []
    expected = chain.true(chain.b)
    chain.b.register_hook(seen.append)
    assert chain.rescale().edges > 0
    chain.loss.backward()
    assert same([chain.w.grad, chain.v.grad, seen[0]], expected)


def test_a_hook_registered_before_an_in_place_change_sees_the_loss_scale() -> None:
    chain, seen = Chain(), []
    d = chain.a * 3
    d.register_hook(seen.append)
    d.add_(1.0)
    chain.loss = (d * chain.c).sum()
    (expected,) = torch.autograd.grad(chain.loss, d, retain_graph=True)
    seen.clear()
    chain.rescale()
    chain.loss.backward()
    assert torch.equal(seen[0], expected)


def test_a_retained_gradient_follows_an_in_place_change_at_the_loss_scale() -> None:
    chain = Chain()
    d = chain.a * 3
    d.retain_grad()
    d.add_(1.0)
    chain.loss = (d.sin() * chain.c).sum()
    (expected,) = torch.autograd.grad(chain.loss, d, retain_graph=True)
    d.grad = None  # retained by that pass too
    chain.rescale()
    chain.loss.backward()
    assert d.grad is not None and torch.equal(d.grad, expected)


def test_a_retained_gradient_is_at_the_loss_scale() -> None:
    chain = Chain()
    expected = chain.true(chain.a)
    chain.a.retain_grad()
    chain.a.retain_grad()  # twice is no mistake
    chain.rescale()
    chain.loss.backward()
    assert same([chain.w.grad, chain.v.grad, chain.a.grad], expected)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_module_backward_hooks_see_the_loss_scale(full: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    x, seen = torch.randn(2, 3), []
    register = model[1].register_full_backward_hook if full else model[1].register_backward_hook
    register(lambda _, grads_in, grads_out: seen.append((grads_in[0], grads_out[0])))
    model(x).sum().backward()
    loss = model(x).sum()
    graph = BackwardGraph.of(loss)
    plan = ScalePlan((5,) * len(graph), graph.signature).pinning(graph)
    assert rescale(graph, plan).edges > 0
    loss.backward()
    (before, after) = seen
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_autograd_grad_of_an_inner_tensor_reads_plain_gradients() -> None:
    chain = Chain()
    expected = chain.true(chain.b, chain.a)
    chain.rescale()
    assert same(chain.true(chain.b, chain.a), expected)
    chain.loss.backward()
    assert same([chain.w.grad, chain.v.grad], expected[:2])


def test_backward_with_some_inputs_reads_plain_gradients() -> None:
    chain = Chain()
    expected = chain.true(chain.b)
    chain.rescale()
    chain.loss.backward(inputs=[chain.w, chain.b], retain_graph=True)
    assert same([chain.w.grad, chain.b.grad], [expected[0], expected[2]])


def test_backward_with_all_inputs_and_an_inner_one_reads_plain_gradients_at_an_entry() -> None:
    chain = Chain()
    expected = chain.true(chain.b)
    begun: list[int] = []
    entry = LossEntry(_plan_of(begun))
    watched = entry.watch(chain.loss) * 1.0
    watched.backward(inputs=[chain.w, chain.v, chain.b], retain_graph=True)
    assert same([chain.w.grad, chain.v.grad, chain.b.grad], expected)
    assert begun == [] and entry.partial_passes == 1
    watched.backward()
    assert len(begun) == 1
    assert torch.equal(chain.w.grad, 2 * expected[0])


def test_a_pass_that_starts_inside_the_graph_is_plain() -> None:
    chain = Chain()
    aside = chain.b.exp().sum()
    (expected,) = torch.autograd.grad(aside, chain.w, retain_graph=True)
    chain.rescale()
    aside.backward(retain_graph=True)
    assert torch.equal(chain.w.grad, expected)


def test_two_passes_over_a_retained_graph_agree() -> None:
    chain = Chain()
    expected = chain.true()
    chain.rescale()
    for _ in range(2):
        chain.w.grad = chain.v.grad = None
        chain.loss.backward(retain_graph=True)
        assert same([chain.w.grad, chain.v.grad], expected)


def test_reentrant_checkpoints_stay_at_the_loss_scale() -> None:
    block, head = nn.Linear(3, 3), nn.Linear(3, 1)
    x = torch.randn(2, 3, requires_grad=True)

    def loss() -> Tensor:
        return head(checkpoint(block, x * 2, use_reentrant=True).tanh()).sum()

    loss().backward()
    expected = [block.weight.grad.clone(), x.grad.clone()]
    block.zero_grad()
    x.grad = None
    again = loss()
    graph = BackwardGraph.of(again)
    assert {graph.names[n] for n in graph.pinned} == {"CheckpointFunctionBackward"}
    rescale(graph, ScalePlan((5,) * len(graph), graph.signature).pinning(graph))
    again.backward()
    assert same([block.weight.grad, x.grad], expected)
    assert [id(p) for p in graph.hidden([*block.parameters(), x])] == [
        id(p) for p in block.parameters()
    ]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_recorded_backward_pass_is_differentiated_right() -> None:
    def penalty(exponent: int | None) -> list[Tensor]:
        torch.manual_seed(1)
        chain = Chain(torch.float64)
        if exponent is not None:
            chain.rescale(exponent)
        chain.loss.backward(create_graph=True)
        first = [chain.w.grad, chain.v.grad]
        chain.w.grad = chain.v.grad = None
        sum(g.square().sum() for g in first).backward()
        found = [*(g.detach() for g in first), chain.w.grad, chain.v.grad]
        chain.w.grad = chain.v.grad = None
        return found

    assert same(penalty(5), penalty(None))


def test_a_uniform_plan_installs_nothing() -> None:
    chain = Chain()
    graph = BackwardGraph.of(chain.loss)
    handle = rescale(graph, ScalePlan.uniform(graph))
    assert repr(handle) == "Rescaled(0 edges, 0 hooks)"


def test_removing_restores_plain_gradients_inside() -> None:
    chain = Chain()
    with chain.rescale() as handle:
        assert "hooks" in repr(handle)
    assert repr(handle).endswith(", 0 hooks)")
    chain.rescale().remove()
    chain.loss.backward()


def test_a_second_plan_on_the_same_nodes_is_refused() -> None:
    chain = Chain()
    chain.rescale()
    with pytest.raises(RuntimeError, match=r"already carries a plan.*walk them together"):
        chain.rescale()


def test_a_failing_user_hook_leaves_no_hook_that_acts() -> None:
    chain = Chain()
    expected = chain.true()
    begun: list[int] = []
    watched = LossEntry(_plan_of(begun)).watch(chain.loss)
    broken = chain.a.register_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        watched.backward(retain_graph=True)
    broken.remove()
    chain.w.grad = chain.v.grad = None
    chain.loss.backward()
    assert begun and same([chain.w.grad, chain.v.grad], expected)


def _fail(grad: Tensor) -> Tensor:
    raise ZeroDivisionError


def _plan_of(begun: list[int]) -> Any:
    def begin(walked: Walk) -> None:
        plan = ScalePlan((5,) * len(walked.graph), walked.graph.signature)
        begun.append(rescale(walked, plan.pinning(walked.graph)).edges)

    return begin


def test_neither_graph_nor_handle_keeps_a_tensor_alive() -> None:
    gc.disable()
    try:
        kept: list[Any] = []
        refs = list(_one_step(kept))
        assert kept and [ref() for ref in refs] == [None] * len(refs)
    finally:
        gc.enable()


def _one_step(kept: list[Any]) -> Iterator[weakref.ref[Any]]:
    class Saved:
        """Dies with the node whose forward made it."""

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.saved = Saved()
            refs.append(weakref.ref(ctx.saved))
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * 2

    refs: list[weakref.ref[Any]] = []
    w = torch.randn(3, requires_grad=True)
    for backward in (True, False):
        loss = Keep.apply(w.sin()).sum()
        graph = BackwardGraph.of(loss)
        plan = ScalePlan((5,) * len(graph), graph.signature).pinning(graph)
        multipliers = Multipliers(graph, plan)
        kept += [graph, multipliers, rescale(graph, plan, multipliers)]
        entry = LossEntry(_plan_of([]))
        watched = entry.watch(Keep.apply(w.sin()).sum())
        kept.append(entry)
        if backward:
            loss.backward()
            watched.backward()
    del loss, watched
    yield from refs


def test_rescale_never_reads_the_host() -> None:
    with FakeTensorMode():
        chain = Chain()
        handle = chain.rescale()
        chain.loss.backward()
    assert handle.edges > 0 and chain.w.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numel", [0, 1, 7, 1000])
@pytest.mark.parametrize("exponent", [-126, -30, -1, 1, 20, 126])
def test_a_product_is_rounded_once_in_every_dtype(
    dtype: torch.dtype, numel: int, exponent: int
) -> None:
    grad = (torch.randn(numel) * torch.randn(numel).mul(8).exp2()).to(dtype)
    found = multiply_gradient(grad, torch.tensor(2.0**exponent))
    expected = (grad.double() * 2.0**exponent).to(dtype)
    assert found.dtype == dtype and torch.equal(found, expected)


def test_an_accelerators_path_rounds_once_as_well() -> None:
    from gradscale.backward.multiply import _on_device

    for dtype in (torch.float16, torch.bfloat16):
        for shape in [(), (5,), (3, 7)]:
            grad = torch.randn(shape).to(dtype)
            for exponent in (-30, 20):
                by = torch.tensor(2.0**exponent)
                found = _on_device(grad, by, torch.empty_like(grad))
                assert torch.equal(found, (grad.double() * 2.0**exponent).to(dtype))
                assert found.shape == grad.shape


def test_complex_sparse_and_scalar_gradients_keep_every_sign() -> None:
    by = torch.tensor(4.0)
    value = complex(-0.0, math.inf)
    found = torch.view_as_real(multiply_gradient(torch.tensor([value]), by))
    assert torch.equal(found, torch.tensor([[-0.0, math.inf]])) and found[0, 0].signbit()
    conjugate = multiply_gradient(torch.tensor([1 + 2j]).conj(), by)
    assert torch.equal(conjugate.resolve_conj(), torch.tensor([4 - 8j]))
    sparse = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True)
    assert torch.equal(multiply_gradient(sparse, by)._values(), torch.tensor([4.0, 8.0]))
    assert multiply_gradient(torch.tensor(3.0), by).item() == 12.0


def test_only_a_gradient_that_nobody_else_holds_is_overwritten() -> None:
    seen: dict[str, list[bool]] = {}
    kept: list[Any] = []

    def note(name: str) -> Any:
        def hook(made: tuple[Tensor, ...], _: Any) -> None:
            seen[name] = [is_unshared(grad) for grad in made]

        return hook

    x, w = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    product = x @ w
    total = product + w
    active = total.relu()
    loss = active.sum()
    active.grad_fn.register_hook(lambda made, _: kept.extend(made))
    named = {"product": product, "total": total, "active": active, "loss": loss}
    for name, tensor in named.items():
        tensor.grad_fn.register_hook(note(name))
    loss.backward()
    assert seen == {
        "product": [True, True],
        "total": [False, False],
        "active": [False],
        "loss": [False],
    }


def test_a_large_gradient_is_overwritten_and_a_small_one_beside_it_replaced() -> None:
    size = 200  # 40,000 elements: more than `WORTH_ASKING`
    x, bias = torch.randn(size, size), torch.randn(size, requires_grad=True)
    w = torch.randn(size, size, requires_grad=True)
    loss = torch.addmm(bias, x, w).square().sum()
    made: list[list[int]] = []

    def note(produced: tuple[Tensor | None, ...], arrived: Any) -> None:
        del arrived
        made.append([0 if grad is None else grad.data_ptr() for grad in produced])

    graph, nodes = walk(loss)
    product = graph.names.index("AddmmBackward0")
    nodes[product].register_hook(note)
    plan = ScalePlan.of(graph, {product: 5})
    assert rescale(Walk(graph, nodes), plan).edges == 3
    nodes[product].register_hook(note)
    loss.backward()
    before, after = made
    assert before[2] == after[2] == w.grad.data_ptr()
    assert before[0] != after[0]


def test_a_gradient_that_a_user_keeps_is_not_overwritten() -> None:
    chain = Chain()
    (expected,) = torch.autograd.grad(chain.loss, chain.b, retain_graph=True)
    kept: list[Tensor] = []
    watched = chain.c.grad_fn.register_hook(lambda made, _: kept.append(made[0]))
    graph = BackwardGraph.of(chain.loss)
    rescale(graph, ScalePlan.of(graph, {graph.names.index("TanhBackward0"): 5}))
    chain.loss.backward()
    watched.remove()
    assert torch.equal(kept[0], expected)


def test_new_multipliers_need_no_new_hooks() -> None:
    chain = Chain()
    expected = chain.true()
    graph = BackwardGraph.of(chain.loss)
    plans = [ScalePlan((k,) * len(graph), graph.signature).pinning(graph) for k in (5, -3)]
    multipliers = Multipliers(graph, plans[0], edges=range(len(graph.edges)))
    rescale(graph, plans[0], multipliers)
    for plan in (*plans, ScalePlan.uniform(graph)):
        multipliers.set(plan)
        chain.w.grad = chain.v.grad = None
        chain.loss.backward(retain_graph=True)
        assert same([chain.w.grad, chain.v.grad], expected)


def test_multipliers_of_another_plan_or_structure_are_refused() -> None:
    chain = Chain()
    graph = BackwardGraph.of(chain.loss)
    one = ScalePlan.of(graph, {1: 3})
    other = ScalePlan.of(graph, {2: 3})
    multipliers = Multipliers(graph, one)
    with pytest.raises(ValueError, match="another plan's factors"):
        rescale(graph, other, multipliers)
    with pytest.raises(ValueError, match="there is no factor"):
        multipliers.set(other)
    twice = chain.loss * 2
    longer = BackwardGraph.of(twice)
    with pytest.raises(ValueError, match="another structure"):
        rescale(longer, ScalePlan.of(longer, {1: 3}), multipliers)


def test_losses_entered_in_one_pass_are_walked_together() -> None:
    w = torch.randn(3, requires_grad=True)
    trunk = w.sin()
    roots: list[int] = []
    entry = LossEntry(lambda walked: roots.append(len(walked.graph.roots)))
    first, second = (entry.watch(head(trunk).sum()) for head in (torch.exp, torch.tanh))
    (first + second).backward(retain_graph=True)
    first.backward(retain_graph=True)
    second.backward()
    assert roots == [2, 1, 1]


def test_two_entries_in_one_pass_leave_it_plain() -> None:
    begun: list[int] = []
    entries = [LossEntry(_plan_of(begun)) for _ in range(2)]
    w = torch.randn(3, requires_grad=True)
    trunk = w.sin()
    first, second = (e.watch((trunk * k).sum()) for k, e in enumerate(entries, 1))
    (first + second).backward(retain_graph=True)
    assert begun == [] and [entry.partial_passes for entry in entries] == [1, 1]
    assert torch.allclose(w.grad, 3 * w.detach().cos())
    second.backward()
    assert len(begun) == 1


def test_a_loss_without_gradient_passes_an_entry_untouched() -> None:
    loss = torch.tensor(1.0)
    assert LossEntry(lambda walked: None).watch(loss) is loss


def test_a_graph_whose_loss_is_gone_says_so() -> None:
    chain = Chain()
    graph = BackwardGraph.of(chain.loss)
    plan = ScalePlan.of(graph, {1: 1})
    del chain.loss
    with pytest.raises(RuntimeError, match="losses of this BackwardGraph are gone"):
        rescale(graph, plan)
    chain = Chain()
    walked = walk(chain.loss)
    assert rescale(walked, ScalePlan.of(walked.graph, {1: 1})).edges == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_every_device_rounds_once(dtype: torch.dtype, device: str) -> None:
    kind = torch.complex64 if dtype.is_complex else torch.float32
    grad = torch.randn(1000, dtype=kind).mul(8).to(dtype).to(device)
    for exponent in (-30, 20):
        by = torch.tensor(2.0**exponent, device=device)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        expected = (grad.to(wide) * 2.0**exponent).to(dtype)
        assert torch.equal(multiply_gradient(grad, by), expected)
        assert torch.equal(multiply_gradient(grad.clone(), by, may_overwrite=True), expected)


@pytest.mark.cuda
def test_a_scaled_pass_on_the_gpu_keeps_its_bits_without_a_sync() -> None:
    w = torch.randn(64, 64, device="cuda", requires_grad=True)

    def loss() -> Tensor:
        return ((w @ w).half().tanh() @ w.half()).float().square().mean()

    loss().backward()
    expected, w.grad = w.grad, None
    again = loss()
    graph = BackwardGraph.of(again)
    plan = ScalePlan.random(graph, torch.Generator().manual_seed(0), 0, 2)
    multipliers = Multipliers(graph, plan)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert rescale(graph, plan, multipliers).edges > 0
        again.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(w.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gradient_without_dimensions_keeps_its_dtype(dtype):
    product = multiply_gradient(torch.tensor(3.0, dtype=dtype), torch.tensor(4.0))
    assert product.dtype == dtype and product.item() == 12.0
