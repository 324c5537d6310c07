"""What a step sends: few messages, and none grows with the number of parameters."""

from __future__ import annotations

import functools

import pytest

from messages_worker import OPTIMIZERS, all_messages
from processes import ON_RANKS, on_two_ranks

pytestmark = ON_RANKS

PLACE = 1120
"""Bytes of what is counted at one node; its largest magnitude is one message apart."""


@functools.cache
def results():
    return on_two_ranks(all_messages)[0]


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_sends_one_flag_and_a_skipped_one_its_reason(optimizer, width):
    assert results()[optimizer, False, width, None] == [[4]] * 6
    assert results()[optimizer, False, width, 3] == [[4], [4], [4], [4, 4], [4], [4]]


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plan_adds_one_flag_and_a_measurement_what_was_counted(optimizer, width):
    for step, sent in enumerate(results()[optimizer, True, width, None]):
        if step in (0, 1, 2, 4):
            flag, same, largest, counted, bad, wish = sent
            assert (flag, same, bad, wish) == (4, 16, 8, 4)
            places = largest // 4
            assert counted == places * PLACE and 120 <= places <= 150
        else:
            assert sent == [4, 4]
