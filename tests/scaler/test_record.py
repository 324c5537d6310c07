"""Where an optimizer's gradients are, and which call is allowed there."""

import copy
from collections import defaultdict

import pytest
import torch
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from gradscale import GradScaler
from gradscale.scaler.order import REFUSED
from gradscale.scaler.record import At, Record, Records


def begun(scaler, optimizer, loss):
    scaler.scale(loss()).backward()


def mixed(scaler, optimizer, loss):
    begun(scaler, optimizer, loss)
    scaler.unscale_(optimizer)
    begun(scaler, optimizer, loss)


def stepped(scaler, optimizer, loss):
    begun(scaler, optimizer, loss)
    scaler.step(optimizer)


def after(verb):
    def bring(scaler, optimizer, loss):
        begun(scaler, optimizer, loss)
        verb(scaler, optimizer)

    return bring


BROUGHT = {
    At.SCALED: begun,
    At.SUMMED: after(lambda scaler, optimizer: scaler.accumulate_(optimizer)),
    At.DIVIDED: after(lambda scaler, optimizer: scaler.unscale_(optimizer)),
    At.KEPT: after(lambda scaler, optimizer: scaler.clip_grad_norm_(optimizer, 1.0)),
    At.MIXED: mixed,
    At.STEPPED: stepped,
}
CALLS = {
    "unscale_": lambda scaler, optimizer, loss: scaler.unscale_(optimizer),
    "step": lambda scaler, optimizer, loss: scaler.step(optimizer),
    "clip": lambda scaler, optimizer, loss: scaler.clip_grad_value_(optimizer, 1.0),
    "update": lambda scaler, optimizer, loss: scaler.update(),
}
"""Calls that succeed wherever they are allowed; the others need gradients, or none."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("at", BROUGHT, ids=lambda at: at.name)
def test_what_the_table_refuses_is_refused_and_nothing_else(at, call):
    parameter = torch.nn.Parameter(torch.ones(2))
    # Only an optimizer that divides by itself ever has its gradients kept at the scale.
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=at is At.KEPT)
    scaler = GradScaler("cpu", init_scale=4.0)

    def loss():
        return (3 * parameter).sum()

    BROUGHT[at](scaler, optimizer, loss)
    assert scaler._per_optimizer_states[id(optimizer)].at is at
    refused = at in REFUSED[call] or (call == "update" and at is At.SCALED)  # nothing was checked
    if refused:
        with pytest.raises((RuntimeError, AssertionError)):
            CALLS[call](scaler, optimizer, loss)
    else:
        CALLS[call](scaler, optimizer, loss)


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        (OptState.READY, At.SCALED),
        (OptState.UNSCALED, At.DIVIDED),
        (OptState.STEPPED, At.STEPPED),
    ],
)
def test_what_other_code_writes_into_torchs_entry_holds(stage, at):
    record = Record()
    record.move(At.KEPT if stage is not OptState.UNSCALED else At.SUMMED)
    record["stage"] = stage
    assert record.at is at


@pytest.mark.parametrize("at", list(At)[:5], ids=lambda at: at.name)
def test_torchs_entry_says_in_torchs_words_where_gradients_are(at):
    record = Record()
    record.move(at)
    complete = at in (At.DIVIDED, At.KEPT, At.MIXED)
    assert record["stage"] is (OptState.UNSCALED if complete else OptState.READY)
    assert record.complete is complete and record.untouched is not complete
    record.stepped()
    assert record["stage"] is OptState.STEPPED and record.at is At.STEPPED


def test_records_that_other_code_makes_are_taken_over():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    scaler._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
    assert isinstance(scaler._per_optimizer_states[id(optimizer)], Record)
    scaler._per_optimizer_states[id(optimizer)] = {
        "stage": OptState.UNSCALED,
        "found_inf_per_device": {torch.device("cpu"): torch.zeros(())},
    }
    scaler.step(optimizer)
    scaler.update()
    assert parameter.item() == 0.0 and scaler.counters.steps == 1


def test_records_are_copied_as_records():
    records = Records()
    records[3].move(At.SUMMED)
    for copied in (records.copy(), copy.copy(records), copy.deepcopy(records)):
        assert copied is not records and copied[3].at is At.SUMMED and copied[4].at is At.SCALED
