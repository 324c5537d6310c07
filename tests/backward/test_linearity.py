"""Whether users' backward functions are linear, asked without a trace."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscale.backward import ScalePlan, rescale, walk
from gradscale.backward.linearity import Probing
from gradscale.backward.user_functions import function_name, is_users
from user_functions import AddAuxiliaryLoss, Clamp, Decay, Reversal, Sign, WithLoss


def probed(loss, seed=1.0):
    walked = walk(loss)
    probing = Probing(walked, walked.graph.unproven)
    loss.backward(torch.tensor(seed))
    return list(probing.result().values())


def leaf(dtype=torch.float32, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator).to(dtype).requires_grad_()


def total(x):
    return (x.float() * torch.linspace(0.1, 1, x.numel())).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("seed", [1.0, 2.0**-12, 2.0**9])
def test_a_linear_function_is_seen_to_be_linear(dtype, seed):
    (found,) = probed(total(Reversal.apply(leaf(dtype))), seed)
    assert found.kind == "linear" and found.outputs == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda x: Clamp.apply(x, 0.3), Sign.apply])
def test_a_clamp_and_a_sign_are_not_linear(dtype, make):
    (found,) = probed(total(make(leaf(dtype))))
    assert found.kind == "nonlinear"


def test_a_clamp_that_does_not_act_yet_is_seen_all_the_same():
    (found,) = probed(total(Clamp.apply(leaf(), 100.0)))
    assert found.kind == "nonlinear"


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda x, y: AddAuxiliaryLoss.apply(x, y.sum()), (1,)),
        (lambda x, y: WithLoss.apply(x, y, "name"), (1,)),
        (lambda x, y: Decay.apply(x) + y, (0,)),
    ],
)
def test_a_function_that_returns_a_gradient_of_its_own_says_in_which_output(make, outputs):
    (found,) = probed(total(make(leaf(), leaf(seed=1))))
    assert (found.kind, found.outputs) == ("injects", outputs)


@given(factor=st.floats(-8, 8).filter(lambda f: abs(f) > 0.01), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_any_factor_is_linear_and_any_offset_is_not(factor, seed):
    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, offset):
            ctx.offset = offset
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * factor + ctx.offset, None

    (linear,) = probed(total(Affine.apply(leaf(seed=seed), 0.0)))
    (affine,) = probed(total(Affine.apply(leaf(seed=seed), factor)))
    assert (linear.kind, affine.kind) == ("linear", "injects")


def test_nothing_but_zeros_and_infinities_tell_nothing_yet():
    (zeros,) = probed(total(Reversal.apply(leaf()) * 0))
    assert zeros.kind == "unknown" and zeros.passing and "nothing but zeros" in zeros.why
    (infinite,) = probed(total(Reversal.apply(leaf())), float("inf"))
    assert infinite.kind == "unknown" and infinite.passing and "not finite" in infinite.why


class Noisy(torch.autograd.Function):
    """Linear once the random numbers are the same; counts its calls."""

    calls = 0

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        Noisy.calls += 1
        ctx.seen = True
        (weight,) = ctx.saved_tensors
        return grad * torch.rand_like(grad) * random.random() * weight, None


def test_probing_leaves_no_trace_in_random_numbers_results_or_the_context():
    def gradient(probes):
        torch.manual_seed(0)
        random.seed(0)
        x, weight = leaf(), torch.full((5,), 2.0)
        loss = total(Noisy.apply(x, weight))
        walked = walk(loss)
        probing = Probing(walked, walked.graph.unproven if probes else ())
        loss.backward()
        kinds = [found.kind for found in probing.result().values()]
        return x.grad, torch.rand(3), random.random(), weight, kinds

    Noisy.calls = 0
    plain, first = gradient(False), Noisy.calls
    seen, calls = gradient(True), Noisy.calls - first
    assert calls > first == 1 and seen[4] == ["linear"]
    assert torch.equal(plain[0], seen[0]) and torch.equal(plain[1], seen[1])
    assert plain[2] == seen[2] and torch.equal(plain[3], seen[3])


def with_backward(backward, *saved):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(*saved)
            return x.view_as(x)

    Function.backward = staticmethod(backward)
    return Function.apply


KEPT, MEAN, VARIANCE = torch.ones(5), torch.zeros(5), torch.ones(5)
INNER = nn.Linear(5, 5)


def writes(ctx, grad):
    return grad * KEPT.add_(1)


def writes_to_what_it_saved(ctx, grad):
    ctx.saved_tensors[0].view(-1)[0] = 7
    return grad


def trains(ctx, grad):
    with torch.enable_grad():
        INNER(grad.detach()).sum().backward()
    return grad


def normalizes(ctx, grad):
    nn.functional.batch_norm(grad.expand(4, 5), MEAN, VARIANCE, training=True)
    return grad


def fails_on_zeros(ctx, grad):
    if not grad.any():
        raise ValueError("a zero gradient")
    return grad


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (writes, "writes to a tensor that outlives it"),
        (writes_to_what_it_saved, "writes to a tensor that outlives it"),
        (trains, "runs a backward pass of its own"),
        (normalizes, "may update running statistics"),
        (fails_on_zeros, "it raised ValueError: a zero gradient"),
    ],
)
def test_what_would_leave_a_trace_is_stopped_and_says_why(backward, words):
    def state(probes):
        KEPT.fill_(1), MEAN.zero_(), VARIANCE.fill_(1), INNER.zero_grad()
        saved = torch.ones(5)
        loss = total(with_backward(backward, saved)(leaf()))
        walked = walk(loss)
        probing = Probing(walked, walked.graph.unproven if probes else ())
        loss.backward()
        grad = INNER.weight.grad
        kept = [saved, KEPT.clone(), MEAN.clone(), VARIANCE.clone()]
        return [*kept, torch.zeros(1) if grad is None else grad.clone()], probing.result()

    plain, _ = state(False)
    seen, results = state(True)
    (found,) = results.values()
    assert found.kind == "unknown" and words in found.why
    assert all(map(torch.equal, plain, seen))


def test_saved_tensors_behind_a_hook_are_read_once_by_the_real_call():
    def block(x):
        return Noisy.apply(x.tanh(), torch.ones(5))

    x = leaf()
    (found,) = probed(total(checkpoint(block, x, use_reentrant=False)))
    assert found.kind == "unknown" and "behind a hook" in found.why
    assert x.grad is not None


def test_torchs_functions_are_trusted_and_custom_operators_are_not():
    @torch.library.custom_op("gradscale_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_autograd(lambda ctx, grad: grad.clamp(-0.2, 0.2) * 2)
    loss = total(twice(leaf()))
    walked = walk(loss)
    (node,) = walked.graph.unproven
    assert is_users(walked.nodes[node])
    assert "twice" in function_name(walked.nodes[node])
    assert [found.kind for found in probed(loss)] == ["nonlinear"]
    reentrant = walk(total(checkpoint(torch.tanh, leaf(), use_reentrant=True)))
    assert reentrant.graph.structure.custom and not reentrant.graph.unproven


def test_a_plan_must_leave_a_users_function_at_the_loss_scale_until_it_is_proven():
    loss = total(Sign.apply(leaf()) * 2)
    walked = walk(loss)
    (node,) = walked.graph.unproven
    with pytest.raises(ValueError, match=r"pinned node .* must be 0"):
        ScalePlan.of(walked.graph, {node: 3})
    proven = walked.graph.proving([node])
    assert ScalePlan.of(proven, {node: 3}).exponents[node] == 3


@given(seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_random_plans_leave_a_function_that_is_not_linear_alone(seed):
    def gradient(planned):
        torch.manual_seed(seed)
        first, last = nn.Linear(4, 4), nn.Linear(4, 1)
        x = torch.randn(3, 4)
        loss = last(Clamp.apply(Sign.apply(first(x).tanh()) * 0.5, 0.2).sigmoid()).sum()
        if planned:
            graph = walk(loss).graph
            handle = rescale(graph, ScalePlan.random(graph, torch.Generator().manual_seed(seed)))
            assert handle.edges
        loss.backward()
        return torch.cat([p.grad.flatten() for p in (*first.parameters(), *last.parameters())])

    assert torch.equal(gradient(False), gradient(True))
