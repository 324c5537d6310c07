"""A tensor that passes several nodes is read once; one that changed or died is read again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradscale.backward.graph import Walk, walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import CountedPlace
from gradscale.backward.measure_repeats import Repeats
from gradscale.backward.measure_waiting import SMALL

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
