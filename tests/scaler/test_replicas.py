"""Data-parallel ranks that decide differently are noticed, and nobody is asked for it."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from gradscale.scaler import GradScaler
from gradscale.scaler.replicas import EVERY, Digest, Replicas, sample_of
from processes import ON_RANKS, on_two_ranks
from replicas_worker import afterwards, run, static_skips

on_ranks = functools.partial(on_two_ranks, run)


def on_processes(test):
    """Marks a test that starts processes."""
    return functools.reduce(lambda marked, mark: mark(marked), ON_RANKS, test)


@on_processes
def test_replicas_that_part_are_named_on_both_sides_and_nothing_is_sent_for_it():
    first, second = on_ranks("replicas", 120, {})
    for messages, sent, _ in (first, second):
        assert len(messages) == 1 and sent == 0
        assert "After 200 updates rank " in messages[0]
        assert "rank 0 is at scale 8, 0 skipped" in messages[0]
        assert "rank 1 is at scale 4, 1 skipped" in messages[0]
        assert "agreed after update 100" in messages[0]
        assert "process_group=dist.group.WORLD" in messages[0]
    assert (first[2], second[2]) == (8.0, 4.0)


@pytest.mark.parametrize(
    ("kind", "bad", "settings"),
    [
        pytest.param("replicas", None, {}, id="all is well"),
        pytest.param("replicas", 120, {"process_group": True}, id="they ask each other"),
        pytest.param("strangers", 120, {}, id="other networks"),
        pytest.param("own data", 120, {}, id="no reduction"),
    ],
)
@on_processes
def test_ranks_that_agree_or_are_no_replicas_hear_nothing(kind, bad, settings):
    assert [messages for messages, _, _ in on_ranks(kind, bad, settings)] == [[], []]


@on_processes
def test_a_scale_that_never_moves_hides_no_skipped_step():
    assert [len(messages) for messages in on_two_ranks(static_skips)] == [1, 1]


@on_processes
def test_a_process_group_that_has_gone_disturbs_nobody():
    assert on_two_ranks(afterwards) == [[True, True]] * 2


def test_only_the_first_update_and_each_fiftieth_look(monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.0), GradScaler("cpu")
    due: list[int] = []
    monkeypatch.setattr(Replicas, "look", lambda self, update, *rest: due.append(update))
    for _ in range(3 * EVERY - 1):
        scaler.scale((parameter * 1).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert due == [1, 50, 100, 150, 200, 250]


def test_what_the_host_does_not_know_is_not_compared():
    one, other = Digest(0, 100, 8.0, 3, None, ()), Digest(1, 100, 8.0, 3, 5, ())
    assert not one.parted_from(other)
    assert one._replace(skipped=4).parted_from(other)
    assert one.parted_from(other._replace(tracker=0))


def test_a_sample_is_the_extremes_of_the_first_weight_that_has_a_gradient():
    without, with_one = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.arange(4.0))
    with_one.grad = torch.tensor([1.0, -2.0, 0.5, 0.0])
    assert [float(it) for it in sample_of([without, with_one])] == [0.0, 3.0, -2.0, 1.0]
    assert sample_of([without]) is None


def test_a_copied_scaler_leaves_notes_of_its_own():
    replicas = Replicas()
    assert copy.deepcopy(replicas)._number != replicas._number
