"""A tensor that passes several nodes is read once; one that changed or died is read again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gradscale.backward import ScalePlan, rescale
from gradscale.backward.graph import Walk, walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import CountedPlace
from gradscale.backward.measure_repeats import Repeats
from gradscale.backward.measure_waiting import SMALL
from gradscale.backward.measurements import Measurements
from gradscale.backward.user_hooks import watch_user_hooks
from zoo import ZOO

CPU = torch.device("cpu")


def test_views_of_the_whole_memory_repeat_and_parts_do_not() -> None:
    repeats, x = Repeats(), torch.randn(4, 6)
    assert repeats.of(x, 0) is None
    assert repeats.of(x.T.contiguous(), 1) is None  # a copy
    assert repeats.of(x.view(3, 8), 2) == 0
    assert repeats.of(x.permute(1, 0), 3) == 0
    assert repeats.of(x[1:], 4) is None
    assert repeats.of(x[:, ::2], 5) is None
    assert repeats.of(x[:1].expand(4, 6), 6) is None
    assert repeats.sources == {2: 0, 3: 0}


def test_a_tensor_that_was_written_to_is_counted_again() -> None:
    repeats, x = Repeats(), torch.randn(3)
    view = x.view(3, 1)
    assert repeats.of(x, 0) is None
    x.add_(1)
    assert repeats.of(view, 1) is None
    assert repeats.of(x, 2) == 1


def test_memory_that_was_used_again_is_no_repetition() -> None:
    repeats = Repeats()
    x = torch.ones(1000)
    repeats.of(x, 0)
    address = x.data_ptr()
    del x
    for row in range(1, 50):
        y = torch.zeros(1000)
        assert repeats.of(y, row) is None
        if y.data_ptr() == address:
            return


def test_a_row_with_two_tensors_is_not_copied() -> None:
    repeats, x, y = Repeats(), torch.ones(2), torch.ones(2)
    repeats.of(x, 0)
    repeats.of(y, 0)
    assert repeats.of(x, 1) is None
    assert repeats.of(y, 1) is None


def sum_of_two(size: int) -> tuple[Tensor, list[CountedPlace], Walk]:
    a, b = torch.randn(size, requires_grad=True), torch.randn(size, requires_grad=True)
    loss = (a.sin() + b.cos()).square().sum()
    walked = walk(loss)
    places = [
        CountedPlace(walked.graph.names.index(name), "arrived", -1, -1, "fp32", CPU)
        for name in ("AddBackward0", "SinBackward0", "CosBackward0")
    ]
    return loss, places, walked


def test_both_terms_of_a_sum_show_the_gradient_that_was_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gradscale.backward import measure_tally as module

    read: list[int] = []
    plain = module.count_into

    def noted(row: Tensor, tensor: Tensor, *, ceil: bool) -> None:
        read.append(tensor.data_ptr())
        plain(row, tensor, ceil=ceil)

    monkeypatch.setattr(module, "count_into", noted)
    loss, places, walked = sum_of_two(2 * SMALL)
    measuring = measure(walked, places=places)
    loss.backward()
    one, two, three = (record.counts for record in measuring.result().records)
    assert one == two == three and one.nonzero == 2 * SMALL
    assert len(read) == 1


def test_a_small_tensor_that_repeats_is_known_though_it_is_counted_with_others() -> None:
    loss, places, walked = sum_of_two(3)
    measuring = measure(walked, places=places)
    loss.backward()
    one, two, three = (record.counts for record in measuring.result().records)
    assert one == two == three and one.nonzero == 3
    assert measuring.repeats == {1: 0, 2: 0}


def counted(
    losses: Sequence[Tensor], plan: Sequence[int], monkeypatch: pytest.MonkeyPatch, *, each: bool
) -> Measurements:
    """One measured pass; `each`: at every node anew, whatever was counted elsewhere."""
    with monkeypatch.context() as patch:
        if each:
            patch.setattr(sys.modules["gradscale.backward.measure"], "moved", lambda *_: {})
            patch.setattr(Repeats, "of", lambda *_: None)
        walked = walk(losses)
        measuring = measure(walked, plan)
        scaled = rescale(walked, ScalePlan(tuple(plan), walked.graph.signature))
        torch.autograd.backward(losses, retain_graph=True)
        scaled.remove()
        return measuring.result()


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"complex_numbers", "compiled_blocks"}))
def test_what_is_counted_once_counts_as_if_it_was_counted_at_each_node(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    losses = ZOO[name](torch.bfloat16, 3).losses()
    graph = walk(losses).graph
    plans = [ScalePlan.uniform(graph), ScalePlan.random(graph, torch.Generator().manual_seed(1))]
    for plan in plans:
        once = counted(losses, plan.exponents, monkeypatch, each=False)
        assert once == counted(losses, plan.exponents, monkeypatch, each=True)


def test_large_gradients_behind_views_and_joins_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(3, 50, 50, dtype=torch.float16, requires_grad=True)
    parts = (x.sin() * 2).permute(0, 2, 1).contiguous().view(3, -1).unbind()
    losses = [torch.stack([part.exp() for part in parts]).float().sum()]
    plan = [0] * len(walk(losses).graph)
    once = counted(losses, plan, monkeypatch, each=False)
    assert once == counted(losses, plan, monkeypatch, each=True)
    assert {r.counts.numel for r in once.records} >= {x.numel()}


def test_a_user_who_changes_a_gradient_behind_a_view_is_seen() -> None:
    watch_user_hooks()
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    middle = x.sin()
    middle.register_hook(lambda grad: grad * 8)
    loss = middle.view(2, 2).sum()
    measuring = measure(walk(loss))
    loss.backward()
    by_name = {r.node: r.counts.amax for r in measuring.result().records if r.kind == "arrived"}
    assert by_name == {0: 1.0, 1: 1.0, 2: 8.0}
