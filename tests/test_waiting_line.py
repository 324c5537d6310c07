"""What waits for the device is handed on in order, once, and as soon as it has arrived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscale.waiting_line import LONGEST_LINE, WaitingLine


class Step:
    """Something that arrives when it is told to; a stubborn one does not, whoever waits."""

    def __init__(self, number: int = 0, *, arrived: bool = False, stubborn: bool = False) -> None:
        self.number, self.arrived, self.stubborn = number, arrived, stubborn

    def wait(self) -> None:
        self.arrived = not self.stubborn


def line_of(handed: list[Step]) -> WaitingLine[Step]:
    return WaitingLine(handed.append)


@given(st.permutations(range(6)))
def test_whatever_arrives_first_the_order_is_kept_and_nothing_is_early(order: list[int]) -> None:
    handed: list[Step] = []
    line, steps = line_of(handed), [Step(number) for number in range(6)]
    for step in steps:
        line.add(step)
    for number in order:
        steps[number].arrived = True
        line.poll()
        ahead = next((it.number for it in steps if not it.arrived), len(steps))
        assert handed == steps[:ahead]
    assert len(line) == 0


def test_what_has_arrived_is_handed_on_as_it_is_added() -> None:
    handed: list[Step] = []
    line_of(handed).add(Step(arrived=True))
    assert len(handed) == 1


def test_who_waits_gets_everything_but_what_cannot_be_waited_for() -> None:
    handed: list[Step] = []
    line = line_of(handed)
    for step in (Step(0), Step(1, stubborn=True), Step(2)):
        line.add(step)
    line.poll(wait=True)
    assert [step.number for step in handed] == [0]
    assert [step.number for step in line] == [1, 2]


def test_a_line_that_is_too_long_waits_for_its_head_only() -> None:
    handed: list[Step] = []
    line, steps = line_of(handed), [Step(number) for number in range(LONGEST_LINE + 2)]
    for step in steps:
        line.add(step)
    assert handed == steps[:2] and len(line) == LONGEST_LINE
    assert not any(step.arrived for step in steps[2:])


def test_an_error_comes_out_and_the_line_goes_on_behind_it() -> None:
    handed: list[int] = []

    def hand_on(step: Step) -> None:
        if step.number == 0:
            raise OSError("the disk is full")
        handed.append(step.number)

    line = WaitingLine(hand_on)
    with pytest.raises(OSError, match="the disk is full"):
        line.add(Step(0, arrived=True))
    line.add(Step(1, arrived=True))
    assert handed == [1]
