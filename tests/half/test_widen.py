"""One pass from half to float32 gradients against the slow division, on every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradscale.half.rounding import narrow_
from gradscale.half.widen import BLOCK, widen, widen_reference
from gradscale.half.widening import Widening, in_memory_order
from interpreter import assert_equal_in_interpreter, needs_triton

FORMATS = [torch.float16, torch.bfloat16]
floats = st.floats(width=16, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def widened(sources, scale=None, exponents=None, later=None):
    pairs = list(zip(sources, exponents or [0] * len(sources), strict=True))
    out = [None] * len(sources)
    flag = None if scale is None else torch.zeros(())
    inverse = None if scale is None else torch.tensor(1.0 / scale)
    flags = widen(pairs, inverse, flag, out.__setitem__, later)
    return out, bool(next(iter(flags.values())).item()) if flags else False


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(st.lists(floats, max_size=9), min_size=1, max_size=4),
    log2_scale=st.integers(-20, 30),
    exponents=st.lists(st.integers(-20, 20), min_size=4, max_size=4),
    format=st.sampled_from(FORMATS),
)
def test_one_pass_equals_the_slow_division(parts, log2_scale, exponents, format):
    sources = [torch.tensor(part, dtype=torch.float32).to(format) for part in parts]
    exponents = exponents[: len(parts)]
    out, flag = widened(sources, 2.0**log2_scale, exponents)
    expected = [
        widen_reference(s, 2.0**log2_scale, k) for s, k in zip(sources, exponents, strict=True)
    ]
    for ours, (theirs, _) in zip(out, expected, strict=True):
        assert torch.equal(ours.nan_to_num(nan=7e37), theirs.nan_to_num(nan=7e37))
    # A power of two far from overflow: what is finite before stays so.
    assert flag == any(not bool(torch.isfinite(s).all()) for s in sources)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_blocks_cover_a_tensor_of_any_size(size):
    source = torch.randn(size).half()
    (out,), flag = widened(
        [
            source,
        ],
        2.0**10,
    )
    assert torch.equal(out, source.float() / 2.0**10) and not flag
    source[-1] = float("inf")
    assert widened([source], 2.0**10)[1]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(2, 0, 1),
        lambda x: x[:, ::2, 1:],
        lambda x: x[:1].expand(5, -1, -1),
        lambda x: x[0, 0, 0],
        lambda x: x[:0],
        lambda x: x.unsqueeze(0).to(memory_format=torch.channels_last),
    ],
    ids=["permuted", "strided", "expanded", "0-d", "empty", "channels last"],
)
def test_any_layout_is_widened(view):
    source = view(torch.randn(4, 6, 5).half())
    (out,), _ = widened([source], 4.0)
    assert out.shape == source.shape and torch.equal(out, source.float() / 4)


def test_dense_tensors_are_walked_in_the_order_of_memory():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    flat = in_memory_order(x)
    assert flat is not None and flat.data_ptr() == x.data_ptr() and flat.numel() == x.numel()
    assert in_memory_order(x[..., ::2]) is None


def test_without_a_scale_values_are_converted_and_nothing_is_checked():
    source = torch.tensor([1.0, float("inf"), float("nan")]).half()
    (out,), flag = widened([source])
    assert out[:2].tolist() == [1.0, float("inf")] and out[2].isnan() and not flag


def test_a_quotient_that_will_overflow_later_is_flagged_now():
    source = torch.tensor([2.0**100]).bfloat16()
    assert not widened([source], 1.0, later=torch.tensor(2.0**20))[1]
    assert widened([source], 1.0, later=torch.tensor(2.0**30))[1]


def test_mixed_formats_go_in_one_call():
    sources = [torch.ones(3).half(), torch.ones(2).bfloat16(), torch.full((2,), 3.0).half()]
    out, _ = widened(sources, 2.0)
    assert [o.tolist() for o in out] == [[0.5] * 3, [0.5] * 2, [1.5] * 2]


def test_nothing_is_read_on_the_host():
    with FakeTensorMode():
        sources = [(torch.ones(5, dtype=torch.float16), 2), (torch.ones(9, dtype=torch.float16), 0)]
        widen(sources, torch.ones(()), torch.zeros(()), lambda place, grad: None)


def test_without_the_kernel_an_accelerator_launches_each_pass_once():
    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    names = []
    shapes = [(BLOCK + 1,), (0,), (3, 4)] * 5
    sources = [(torch.empty(s, dtype=torch.float16, device="meta"), 0) for s in shapes]
    scalars = torch.ones((), device="meta"), torch.zeros((), device="meta")
    with Launches():
        widen(sources, *scalars, lambda place, grad: None)
    passes = [name for name in names if name.startswith(("_foreach", "_amp"))]
    assert passes == [
        "_foreach_copy_.default",
        "_amp_foreach_non_finite_check_and_unscale_.default",
    ]


@given(values=st.lists(st.floats(width=32), max_size=20), format=st.sampled_from(FORMATS))
@settings(max_examples=40, deadline=None)
def test_weights_are_rounded_as_torch_casts_and_clamped_only_on_request(values, format):
    master = torch.tensor(values, dtype=torch.float32)
    plain, clamped = torch.zeros(len(values)).to(format), torch.zeros(len(values)).to(format)
    narrow_([(plain, master)])
    narrow_([(clamped, master)], saturate=True)
    assert torch.equal(plain.nan_to_num(nan=7.0), master.to(format).nan_to_num(nan=7.0))
    limit = torch.finfo(format).max
    expected = master.double().clamp(-limit, limit).to(format)
    assert torch.equal(clamped.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


IN_INTERPRETER = """
import torch
from gradscale.half.widen import widen_reference
from gradscale.half.widening import Widening
from gradscale.half.widen_kernel import piece_table, widen_on_gpu
torch.manual_seed(0)
views = [lambda x: x, lambda x: x.reshape(-1, 7).T, lambda x: x[::3], lambda x: x[:0]]
for dtype in [torch.float16, torch.bfloat16]:
    for bad in [None, float("inf"), float("nan")]:
        sources = [view(torch.randn(size).to(dtype)) for view in views for size in [7, 70007]]
        if bad is not None:
            sources[1][-1] = bad
        exponents = [0, 5, -3, 20, 0, 1, 2, 3]
        jobs = [
            Widening(source, torch.empty_like(source, dtype=torch.float32), exponent)
            for source, exponent in zip(sources, exponents)
        ]
        flag = torch.zeros(())
        widen_on_gpu(jobs, torch.tensor(2.0**-16), flag)
        for job in jobs:
            expected, _ = widen_reference(job.source, 2.0**16, job.exponent)
            assert torch.equal(job.target.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert flag.item() == (bad is not None), (dtype, bad, flag)
        widen_on_gpu(jobs, None, None)
        assert torch.equal(jobs[0].target, jobs[0].source.float())
for begin in [0, 1, 8]:  # the first and the last begin at a multiple of 16 bytes
    source = torch.randn(5000 + begin).half()[begin:]
    jobs = [Widening(source, torch.empty(5000), 0), Widening(source[:4096], torch.empty(4096), 1)]
    assert piece_table(jobs)[1] == (begin != 1)
    flag = torch.zeros(())
    widen_on_gpu(jobs, torch.tensor(0.25), flag)
    assert torch.equal(jobs[0].target, source.float() / 4) and not flag
    assert torch.equal(jobs[1].target, source[:4096].float() / 8)
tiny = torch.tensor([2.0**-24]).half()
job = Widening(tiny, torch.empty(1), 0)
widen_on_gpu([job], torch.tensor(2.0**-120), torch.zeros(()))
assert job.target.item() == 2.0**-144, "subnormal in float32"
large = torch.tensor([2.0**100]).bfloat16()
job = Widening(large, torch.empty(1), 0)
for later, expected in [(2.0**20, 0), (2.0**30, 1)]:
    flag = torch.zeros(())
    widen_on_gpu([job], torch.ones(()), flag, torch.tensor(later))
    assert flag.item() == expected and job.target.item() == 2.0**100
flag = torch.zeros(())
widen_on_gpu([job], torch.tensor(2.0**60), flag)
assert flag.item() == 1, "a quotient that overflows"
print("equal")
"""


@needs_triton
def test_the_kernel_in_tritons_interpreter_equals_the_slow_division():
    assert_equal_in_interpreter(IN_INTERPRETER)


@needs_triton
def test_pieces_cover_every_tensor_once():
    from gradscale.half.widen_kernel import piece_table

    sizes = [1, 32768, 32769, 100_000, 5]
    jobs = [
        Widening(torch.empty(n, dtype=torch.float16), torch.empty(n), k)
        for k, n in enumerate(sizes, -2)
    ]
    table, aligned = piece_table(jobs)
    expected = []
    for source, target, exponent in jobs:
        power = torch.tensor(2.0**-exponent).view(torch.int32).item()
        for first in range(0, source.numel(), 32768):
            at = source.data_ptr() + 2 * first, target.data_ptr() + 4 * first
            expected.append([*at, min(32768, source.numel() - first), power])
    assert table.tolist() == expected and aligned


@pytest.mark.cuda
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_kernel_on_the_device_equals_torch_and_never_waits(format):
    sources = [torch.randn(size).to(format) for size in (1, 1000, 300_001)]
    sources += [torch.randn(9, 31).to(format).T, torch.randn(4097).to(format)[1:], sources[1][:0]]
    sources.append(torch.tensor([2.0**-24, -(2.0**-14), 0.0]).to(format))
    moved = [(source.cuda(), 3) for source in sources]
    out = [None] * len(sources)
    inverse, flag = torch.tensor(2.0**-120, device="cuda"), torch.zeros((), device="cuda")
    later = torch.ones((), device="cuda")
    for _ in range(2):
        widen(list(moved), inverse, flag, out.__setitem__, later)
        # The first call compiles.
        torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
    for ours, source in zip(out, sources, strict=True):
        assert torch.equal(ours.cpu(), (source.double() * 2.0**-123).float())
    assert flag.item() == 0
    moved[2][0][-1] = float("nan")
    widen(list(moved), inverse, flag, out.__setitem__)
    assert flag.item() == 1


@pytest.mark.cuda
def test_large_tensors_lie_beyond_32_bits():
    size = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 7 * size:
        pytest.skip("needs 15 GB of GPU memory")
    source = torch.zeros(size, dtype=torch.float16, device="cuda")
    source[-1], out = float("inf"), []
    flag = torch.zeros((), device="cuda")
    widen([(source, 0)], torch.ones((), device="cuda"), flag, lambda place, grad: out.append(grad))
    assert flag.item() == 1 and out[0][-1].isinf() and not out[0][:-1].any()


@pytest.mark.cuda
def test_a_captured_graph_widens_again_what_its_gradients_hold_then():
    source = torch.zeros(40_000, dtype=torch.float16, device="cuda")
    inverse, flag = torch.tensor(0.5, device="cuda"), torch.zeros((), device="cuda")
    out = [None]
    widen([(source, 1)], inverse, flag, out.__setitem__)  # torch's kernels are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        widen([(source, 1)], inverse, flag, out.__setitem__)
    for value in (3.0, 5.0):
        torch.empty(1 << 16, pin_memory=True).fill_(-1)  # memory that a table may have lain in
        source.fill_(value)
        graph.replay()
        assert torch.equal(out[0], source.float() / 4)
    source[7] = float("inf")
    graph.replay()
    assert flag.item() == 1
