"""A tensor that passes several nodes is read once; one that changed or died is read again."""

from __future__ import annotations

import torch

from gradscale.backward.graph import walk
from gradscale.backward.measure import measure
from gradscale.backward.measure_places import CountedPlace
from gradscale.backward.measure_repeats import Repeats

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


def test_both_terms_of_a_sum_show_the_gradient_that_was_read_once(monkeypatch: object) -> None:
    from gradscale.backward import measure as module

    read: list[int] = []
    plain = module.count_into
    monkeypatch.setattr(  # type: ignore[attr-defined]
        module, "count_into", lambda row, t, **k: (read.append(t.data_ptr()), plain(row, t, **k))
    )
    a, b = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    walked = walk((a.sin() + b.cos()).square().sum())
    names = [name for name in walked.graph.names]
    places = [
        CountedPlace(names.index(name), "arrived", -1, -1, "fp32", CPU)
        for name in ("AddBackward0", "SinBackward0", "CosBackward0")
    ]
    loss = (a.sin() + b.cos()).square().sum()
    walked = walk(loss)
    measuring = measure(walked, places=places)
    loss.backward()
    one, two, three = (record.counts for record in measuring.result().records)
    assert one == two == three and one.nonzero == 3
    assert len(read) == 1
