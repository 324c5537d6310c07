"""The batch that a graph was recorded with."""

import pytest
import torch

from gradscale.captured.static_batch import StaticBatch


def test_later_batches_are_written_into_the_same_tensors():
    static = StaticBatch([torch.zeros(2), {"y": (torch.zeros(3), 7)}], "cpu")
    first, second = static.tensors[0], static.tensors[1]["y"][0]
    static.fill_([torch.ones(2), {"y": (torch.full((3,), 2.0), 7)}])
    assert static.tensors[0] is first
    assert first.tolist() == [1, 1]
    assert second.tolist() == [2, 2, 2]


def test_it_does_not_hold_the_users_own_tensors():
    batch = torch.zeros(2)
    static = StaticBatch(batch, "cpu")
    static.fill_(torch.ones(2))
    assert batch.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": torch.ones(1), "n": 7}, r"a float32 tensor of shape \(2,\), this batch has a float"),
        ({"x": torch.ones(2).half(), "n": 7}, "this batch has a float16 tensor"),
        ({"x": torch.ones(2), "n": 8}, "recorded with 7, this batch has 8"),
        ({"x": torch.ones(2)}, "a batch of the structure"),
    ],
)
def test_a_batch_that_is_not_alike_is_refused_and_nothing_written(batch, words):
    static = StaticBatch({"x": torch.zeros(2), "n": 7}, "cpu")
    with pytest.raises(ValueError, match=words) as error:
        static.fill_(batch)
    assert "`eager_step(batch)`" in str(error.value)
    assert static.tensors["x"].tolist() == [0, 0]
