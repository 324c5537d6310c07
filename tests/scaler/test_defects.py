"""Every defect that torch's scaler is known for: it fails there, and holds here.

Each claim is a function of the scaler's class. `test_torch_has_the_defect` keeps the list honest:
a row that torch has repaired fails it, and is then no defect any more.
"""

import io
import math
import pickle
import warnings

import pytest
import torch

from gradscale.scaler import GradScaler

TORCH = torch.amp.GradScaler


def one_parameter(value=1.0, optimizer=torch.optim.SGD, **settings):
    parameter = torch.nn.Parameter(torch.tensor([value]))
    return parameter, optimizer([parameter], lr=0.5, **settings)


def scaled_by_hand(Scaler, scale, gradient, parameter, **settings):
    scaler = Scaler("cpu", init_scale=scale, **settings)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full_like(parameter, gradient)
    return scaler


def a_collapsed_scale_never_poisons_the_weights(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 2.0**-120, math.inf, parameter)
    for _ in range(40):
        parameter.grad = torch.tensor([math.inf])
        scaler.step(optimizer)
        scaler.update()
    parameter.grad = torch.tensor([0.0])
    scaler.step(optimizer)
    assert torch.isfinite(parameter).all()


def a_quotient_that_overflows_is_seen(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 2.0**-126, 1e30, parameter)
    scaler.step(optimizer)
    assert parameter.item() == 1.0


def a_quotient_that_overflows_is_seen_by_fused_optimizers(Scaler):
    parameter, optimizer = one_parameter(fused=True)
    scaler = scaled_by_hand(Scaler, 2.0**-126, 1e30, parameter)
    scaler.step(optimizer)
    assert parameter.item() == 1.0


def a_quotient_that_overflows_is_seen_by_fused_optimizers_after_unscale(Scaler):
    parameter, optimizer = one_parameter(fused=True)
    scaler = scaled_by_hand(Scaler, 2.0**-126, 1e30, parameter)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert parameter.item() == 1.0


def overflow_after_overflow_never_brings_the_scale_to_zero(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 2.0**16, 0.0, parameter)
    for _ in range(220):
        parameter.grad = torch.tensor([math.inf])
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() >= 2.0**-126


def a_stream_of_bad_batches_leaves_the_scale_alone(Scaler):
    parameter, optimizer = one_parameter()
    scaler = Scaler("cpu")
    for _ in range(220):
        optimizer.zero_grad()
        scaler.scale((parameter * math.nan).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**16


def an_optimizer_without_gradients_makes_an_ordinary_step(Scaler):
    _, optimizer = one_parameter()
    scaler = Scaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()


def a_fused_optimizer_without_gradients_makes_an_ordinary_step(Scaler):
    _, optimizer = one_parameter(fused=True)
    scaler = Scaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()


def a_closure_is_never_run_unscaled_positional_or_keyword(Scaler):
    for keyword in (False, True):
        parameter, optimizer = one_parameter(optimizer=torch.optim.LBFGS, max_iter=1)
        scaler = Scaler("cpu", init_scale=4.0)
        scaler.scale(torch.zeros(()))

        def closure(parameter=parameter, optimizer=optimizer, scaler=scaler):
            optimizer.zero_grad()
            loss = parameter.square().sum()
            scaler.scale(loss).backward()
            return loss

        scaler.step(optimizer, **{"closure": closure}) if keyword else scaler.step(
            optimizer, closure
        )
        # The gradient of x^2 at 1, not four times as much.
        assert parameter.grad.item() == 2.0


def a_skipped_step_can_be_told_from_a_taken_one(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 4.0, math.inf, parameter)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.skipped and scaler.last_step[optimizer].skipped


def a_skipped_step_of_a_fused_optimizer_can_be_told_from_a_taken_one(Scaler):
    parameter, optimizer = one_parameter(optimizer=torch.optim.AdamW, fused=True)
    scaler = scaled_by_hand(Scaler, 4.0, math.nan, parameter)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.skipped and optimizer.state[parameter]["step"] == 0


def loading_a_state_keeps_the_configuration(Scaler):
    scaler = Scaler("cpu", growth_interval=7, backoff_factor=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler.load_state_dict(TORCH("cpu").state_dict())
    assert scaler.get_growth_interval() == 7 and scaler.get_backoff_factor() == 0.25


def refuses(Scaler, **settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Scaler("cpu", **settings)


def an_initial_scale_of_zero_is_refused(Scaler):
    refuses(Scaler, init_scale=0.0)


def a_negative_initial_scale_is_refused(Scaler):
    refuses(Scaler, init_scale=-1.0)


def an_initial_scale_of_nan_is_refused(Scaler):
    refuses(Scaler, init_scale=math.nan)


def a_backoff_factor_of_zero_is_refused(Scaler):
    refuses(Scaler, backoff_factor=0.0)


def a_negative_backoff_factor_is_refused(Scaler):
    refuses(Scaler, backoff_factor=-1.0)


def a_growth_interval_of_zero_is_refused(Scaler):
    refuses(Scaler, growth_interval=0)


def an_infinite_growth_factor_is_refused(Scaler):
    refuses(Scaler, growth_factor=math.inf)


def a_growth_factor_that_shrinks_cannot_be_set(Scaler):
    with pytest.raises(ValueError, match="growth_factor"):
        Scaler("cpu").set_growth_factor(0.1)


def float16_gradients_are_unscaled(Scaler):
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = scaled_by_hand(Scaler, 4.0, 1.0, parameter)
    scaler.step(optimizer)
    assert parameter.tolist() == [0.75, 0.75]


def complex_gradients_are_unscaled(Scaler):
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = scaled_by_hand(Scaler, 4.0, 4j, parameter)
    scaler.step(optimizer)
    assert parameter.tolist() == [1 - 1j, 1 - 1j]


def a_parameter_of_two_optimizers_is_divided_once(Scaler):
    parameter, first = one_parameter()
    second = torch.optim.SGD([parameter], lr=0.5)
    scaler = scaled_by_hand(Scaler, 4.0, 4.0, parameter)
    scaler.unscale_(first)
    scaler.unscale_(second)
    assert parameter.grad.item() == 1.0


def a_parameter_of_a_plain_and_a_fused_optimizer_is_divided_once(Scaler):
    parameter, first = one_parameter()
    second = torch.optim.SGD([parameter], lr=0.5, fused=True)
    scaler = scaled_by_hand(Scaler, 4.0, 4.0, parameter)
    scaler.step(first)
    scaler.step(second)
    assert parameter.item() == 1.0 - 0.5 - 0.5


def a_parameter_of_a_fused_and_a_plain_optimizer_is_divided_once(Scaler):
    parameter, first = one_parameter(fused=True)
    second = torch.optim.SGD([parameter], lr=0.5)
    scaler = scaled_by_hand(Scaler, 4.0, 4.0, parameter)
    scaler.step(first)
    scaler.step(second)
    assert parameter.item() == 1.0 - 0.5 - 0.5


def without_cuda_scaling_goes_on(Scaler):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scaler = Scaler()
    assert len(caught) == 1 and scaler.is_enabled()


def gradients_left_over_a_scale_change_add_up(Scaler):
    parameter, optimizer = one_parameter()
    scaler = Scaler("cpu", init_scale=4.0, growth_interval=1)
    for _ in range(2):
        scaler.scale(parameter.sum()).backward()
        scaler.unscale_(optimizer)
        gradient = parameter.grad.item()
        scaler.update()
    assert gradient == 2.0


def gradients_of_a_waiting_optimizer_follow_the_scale(Scaler):
    (one, first), (two, second) = one_parameter(), one_parameter()
    scaler = Scaler("cpu", init_scale=4.0, growth_interval=1)

    def accumulate(*optimizers):
        first.zero_grad()
        scaler.scale(one.sum() + two.sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)

    accumulate(first, second)
    scaler.update()
    second.zero_grad()
    accumulate(first)
    scaler.update()
    accumulate(first)
    scaler.unscale_(second)
    assert two.grad.item() == 2.0


def a_schedule_waits_for_the_optimizer(Scaler):
    parameter, optimizer = one_parameter()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    scaler = scaled_by_hand(Scaler, 4.0, math.inf, parameter)
    scaler.step(optimizer)
    scaler.update()
    if hasattr(scaler, "step_scheduler"):
        assert not scaler.step_scheduler(scheduler)
    else:
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def a_half_precision_vector_of_losses_does_not_overflow(Scaler):
    losses = torch.full((2,), 2.0, dtype=torch.float16)
    assert Scaler("cpu", init_scale=2.0**16).scale(losses).tolist() == [2.0**17, 2.0**17]


def a_whole_number_sets_the_scale(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 8.0, 1.0, parameter)
    scaler.step(optimizer)
    scaler.update(4)
    assert scaler.get_scale() == 4.0


def a_momentum_skipped_at_first_starts_from_nothing(Scaler):
    """Not in the tables: torch keeps the uninitialized buffer of a skipped first step."""
    parameter = torch.nn.Parameter(torch.ones(1024))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, fused=True)
    rubbish = [torch.full((1024,), 7.0) for _ in range(64)]
    del rubbish
    scaler = scaled_by_hand(Scaler, 4.0, math.inf, parameter)
    scaler.step(optimizer)
    kept = optimizer.state[parameter].get("momentum_buffer")
    scaler.update()
    assert kept is None or not kept.any()


def a_saved_state_is_refused_if_the_run_had_collapsed(Scaler):
    state = TORCH("cpu").state_dict() | {"scale": 0.0}
    with pytest.raises(ValueError, match="scale"):
        Scaler("cpu").load_state_dict(state)


DEFECTS = [
    claim
    for name, claim in list(globals().items())
    if callable(claim)
    and getattr(claim, "__module__", None) == __name__
    and name not in ("one_parameter", "scaled_by_hand", "refuses")
]


def check(claim, Scaler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        claim(Scaler)


@pytest.mark.parametrize("claim", DEFECTS, ids=lambda claim: claim.__name__)
def test_here(claim):
    check(claim, GradScaler)


@pytest.mark.parametrize("claim", DEFECTS, ids=lambda claim: claim.__name__)
def test_torch_has_the_defect(claim):
    if claim is without_cuda_scaling_goes_on and torch.cuda.is_available():
        pytest.skip("torch has it only where there is no CUDA")
    with pytest.raises(BaseException):  # noqa: B017 - how torch fails differs by row; `Failed` is no Exception
        check(claim, TORCH)


CONTRASTS = ["bfloat16", "float64"]


@pytest.mark.parametrize("Scaler", [TORCH, GradScaler])
@pytest.mark.parametrize("name", CONTRASTS)
def test_other_dtypes_work_in_both(Scaler, name):
    parameter = torch.nn.Parameter(torch.ones(2, dtype=getattr(torch, name)))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = scaled_by_hand(Scaler, 4.0, 1.0, parameter)
    scaler.step(optimizer)
    assert parameter.tolist() == [0.75, 0.75]


@pytest.mark.parametrize("Scaler", [TORCH, GradScaler])
def test_growth_stops_before_infinity_in_both(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 2.0**120, 0.0, parameter, growth_interval=1)
    for _ in range(10):
        parameter.grad = torch.zeros(1)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**127


@pytest.mark.parametrize("Scaler", [TORCH, GradScaler])
def test_two_optimizers_one_overflows_in_both(Scaler):
    (one, first), (two, second) = one_parameter(), one_parameter()
    scaler = scaled_by_hand(Scaler, 4.0, math.inf, one)
    two.grad = torch.tensor([4.0])
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (one.item(), two.item(), scaler.get_scale()) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize("Scaler", [TORCH, GradScaler])
def test_protocol_errors_keep_their_class_in_both(Scaler):
    parameter, optimizer = one_parameter()
    scaler = scaled_by_hand(Scaler, 4.0, 1.0, parameter)
    with pytest.raises(AssertionError, match=r"[Nn]o inf checks were recorded"):
        scaler.update()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    with pytest.raises(AssertionError, match="pickled"):
        pickle.dump(scaler, io.BytesIO())
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        scaler.unscale_(optimizer)


@pytest.mark.parametrize("settings", [{"growth_factor": 1.0}, {"backoff_factor": 1.0}])
@pytest.mark.parametrize("Scaler", [TORCH, GradScaler])
def test_factors_that_torch_refuses_raise_its_class_in_both(Scaler, settings):
    with pytest.raises(AssertionError):
        Scaler("cpu", **settings)
