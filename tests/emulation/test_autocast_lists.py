"""CUDA's autocast lists on the CPU: every listed operation, by the dtype of what it returns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradscale.emulation import cuda_lists, emulate

aten = torch.ops.aten
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
MACROS = {
    "LOWER_PRECISION_FP": cuda_lists.LOWER_PRECISION,
    "FP32": cuda_lists.FLOAT32,
    "FP32_SET_OPT_DTYPE": cuda_lists.FLOAT32_RESULT,
    "PROMOTE": cuda_lists.PROMOTE,
}
# Kernels of other devices, which the CPU's composite operations never reach.
ELSEWHERE = {
    "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell",
    "_scaled_dot_product_flash_attention",
}


def half(*shape: int) -> Tensor:
    """Half precision, within (0.1, 0.9) so that every function below is defined."""
    return (torch.rand(shape) * 0.8 + 0.1).half()


def cell(name: str, gates: int) -> Tensor:
    weights = torch.randn(gates * 3, 4), torch.randn(gates * 3, 3)
    state = (half(2, 3), half(2, 3)) if name == "lstm_cell" else half(2, 3)
    found = getattr(torch, name)(half(2, 4), state, *weights)
    return found[0] if isinstance(found, tuple) else found


def recurrent(name: str) -> Tensor:
    options = {"nonlinearity": "relu"} if name == "RNN" else {}
    layer = getattr(torch.nn, name)(4, 3, **options)
    return layer(torch.randn(5, 2, 4))[0]


V, M, I1 = (4,), (4, 4), (1, 2, 8)  # fmt: skip
I2, I3 = (1, 2, 8, 8), (1, 2, 4, 4, 4)
T = torch.tensor

# Every operation gets float32 (the weights' dtype) and must lower it.
LOWERED = {
    "_convolution": lambda: torch._convolution(
        torch.randn(I1), torch.randn(3, 2, 3), None, [1], [0], [1], False, [0], 1, False, False,
        False, False,
    ),
    "_convolution.deprecated": lambda: aten._convolution.deprecated(
        torch.randn(I1), torch.randn(3, 2, 3), None, [1], [0], [1], False, [0], 1, False, False,
        False,
    ),
    "conv1d": lambda: F.conv1d(torch.randn(I1), torch.randn(3, 2, 3)),
    "conv2d": lambda: F.conv2d(torch.randn(I2), torch.randn(3, 2, 3, 3)),
    "conv3d": lambda: F.conv3d(torch.randn(I3), torch.randn(3, 2, 3, 3, 3)),
    "conv_tbc": lambda: torch.conv_tbc(torch.randn(8, 1, 2), torch.randn(3, 2, 3), torch.zeros(3)),
    "conv_transpose1d": lambda: F.conv_transpose1d(torch.randn(I1), torch.randn(2, 3, 3)),
    "conv_transpose2d.input": lambda: F.conv_transpose2d(torch.randn(I2), torch.randn(2, 3, 3, 3)),
    "conv_transpose3d.input": lambda: F.conv_transpose3d(
        torch.randn(I3), torch.randn(2, 3, 3, 3, 3)
    ),
    "convolution": lambda: torch.convolution(
        torch.randn(I1), torch.randn(3, 2, 3), None, [1], [0], [1], False, [0], 1
    ),
    "prelu": lambda: F.prelu(torch.randn(V), torch.ones(1)),
    "addmm": lambda: torch.addmm(torch.randn(M), torch.randn(M), torch.randn(M)),
    "addmv": lambda: torch.addmv(torch.randn(V), torch.randn(M), torch.randn(V)),
    "addr": lambda: torch.addr(torch.randn(M), torch.randn(V), torch.randn(V)),
    "matmul": lambda: torch.randn(M) @ torch.randn(M),
    "einsum": lambda: torch.einsum("ij,kj->ik", torch.randn(M), torch.randn(M)),
    "mm": lambda: torch.mm(torch.randn(M), torch.randn(M)),
    "mv": lambda: torch.mv(torch.randn(M), torch.randn(V)),
    "linalg_vecdot": lambda: torch.linalg.vecdot(torch.randn(M), torch.randn(M)),
    "linear": lambda: F.linear(torch.randn(M), torch.randn(M), torch.randn(V)),
    "addbmm": lambda: torch.addbmm(torch.randn(M), torch.randn(2, 4, 4), torch.randn(2, 4, 4)),
    "baddbmm": lambda: torch.baddbmm(*torch.randn(3, 2, 4, 4)),
    "bmm": lambda: torch.bmm(*torch.randn(2, 2, 4, 4)),
    "chain_matmul": lambda: aten.chain_matmul.default([*torch.randn(3, 4, 4)]),
    "linalg_multi_dot": lambda: torch.linalg.multi_dot([*torch.randn(3, 4, 4)]),
    "lstm_cell": lambda: cell("lstm_cell", 4),
    "gru_cell": lambda: cell("gru_cell", 3),
    "rnn_tanh_cell": lambda: cell("rnn_tanh_cell", 1),
    "rnn_relu_cell": lambda: cell("rnn_relu_cell", 1),
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(
        *torch.randn(3, 1, 2, 4, 4)
    ),
    "lstm.input": lambda: recurrent("LSTM"),
    "gru.input": lambda: recurrent("GRU"),
    "rnn_relu.input": lambda: recurrent("RNN"),
}  # fmt: skip

# Every operation gets float16 and must return float32.
RAISED = {
    **{
        name: lambda name=name: getattr(torch, name)(half(4))
        for name in (
            "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p",
            "reciprocal", "rsqrt", "sinh", "tan",
        )
    },
    "pow.Tensor_Scalar": lambda: half(4) ** 2,
    "pow.Tensor_Tensor": lambda: half(4) ** half(4),
    "pow.Scalar": lambda: 2 ** half(4),
    "softplus": lambda: F.softplus(half(4)),
    "layer_norm": lambda: F.layer_norm(half(4, 4), [4]),
    "native_layer_norm": lambda: torch.native_layer_norm(half(4, 4), [4], None, None, 1e-5)[0],
    "rms_norm": lambda: F.rms_norm(half(4, 4), [4]),
    "group_norm": lambda: F.group_norm(half(1, 4, 4), 2),
    "frobenius_norm.dim": lambda: aten.frobenius_norm.dim(half(4, 4), [1]),
    "nuclear_norm": lambda: aten.nuclear_norm.default(half(4, 4)),
    "nuclear_norm.dim": lambda: aten.nuclear_norm.dim(half(4, 4), [0, 1]),
    "cosine_similarity": lambda: F.cosine_similarity(half(4, 4), half(4, 4)),
    "poisson_nll_loss": lambda: F.poisson_nll_loss(half(4), half(4)),
    "cosine_embedding_loss": lambda: F.cosine_embedding_loss(half(2, 4), half(2, 4), T([1, -1])),
    "nll_loss": lambda: F.nll_loss(half(2, 4), T([0, 1])),
    "nll_loss2d": lambda: F.nll_loss(half(1, 4, 2, 2), torch.zeros(1, 2, 2).long()),
    "hinge_embedding_loss": lambda: F.hinge_embedding_loss(half(2), T([1, -1])),
    "kl_div": lambda: F.kl_div(half(4), half(4), reduction="sum"),
    "l1_loss": lambda: F.l1_loss(half(4), half(4)),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(half(4), half(4)),
    "huber_loss": lambda: F.huber_loss(half(4), half(4)),
    "mse_loss": lambda: F.mse_loss(half(4), half(4)),
    "margin_ranking_loss": lambda: F.margin_ranking_loss(half(4), half(4), half(4)),
    "multilabel_margin_loss": lambda: F.multilabel_margin_loss(half(1, 4), T([[0, 2, -1, 1]])),
    "soft_margin_loss": lambda: F.soft_margin_loss(half(4), half(4)),
    "triplet_margin_loss": lambda: F.triplet_margin_loss(half(2, 4), half(2, 4), half(2, 4)),
    "multi_margin_loss": lambda: F.multi_margin_loss(half(2, 4), T([0, 1])),
    "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(
        half(4), half(4)
    ),
    "dist": lambda: torch.dist(half(4), half(4)),
    "pdist": lambda: F.pdist(half(3, 4)),
    "cdist": lambda: torch.cdist(half(3, 4), half(3, 4)),
    "renorm": lambda: torch.renorm(half(3, 4), 2, 0, 1.0),
    "logsumexp": lambda: torch.logsumexp(half(3, 4), 1),
    "upsample_nearest1d": lambda: F.interpolate(half(*I1), 4),
    "_upsample_nearest_exact1d": lambda: F.interpolate(half(*I1), 4, mode="nearest-exact"),
    "upsample_nearest2d": lambda: aten.upsample_nearest2d.default(half(*I2), [4, 4]),
    "_upsample_nearest_exact2d": lambda: aten._upsample_nearest_exact2d.default(half(*I2), [4, 4]),
    "upsample_nearest3d": lambda: aten.upsample_nearest3d.default(half(*I3), [2, 2, 2]),
    "_upsample_nearest_exact3d": lambda: aten._upsample_nearest_exact3d.default(
        half(*I3), [2, 2, 2]
    ),
    "upsample_linear1d": lambda: aten.upsample_linear1d.default(half(*I1), [4], False),
    "upsample_bilinear2d": lambda: aten.upsample_bilinear2d.default(half(*I2), [4, 4], False),
    "_upsample_bilinear2d_aa": lambda: aten._upsample_bilinear2d_aa.default(
        half(*I2), [4, 4], False
    ),
    "upsample_trilinear3d": lambda: aten.upsample_trilinear3d.default(half(*I3), [2, 2, 2], False),
    "upsample_bicubic2d": lambda: aten.upsample_bicubic2d.default(half(*I2), [4, 4], False),
    "_upsample_bicubic2d_aa": lambda: aten._upsample_bicubic2d_aa.default(half(*I2), [4, 4], False),
    "prod": lambda: half(4).prod(),
    "prod.dim_int": lambda: half(4, 4).prod(1),
    "softmax.int": lambda: half(4, 4).softmax(-1),
    "log_softmax.int": lambda: half(4, 4).log_softmax(-1),
    "cumprod": lambda: half(4).cumprod(0),
    "cumsum": lambda: half(4).cumsum(0),
    "linalg_vector_norm": lambda: torch.linalg.vector_norm(half(4)),
    # These refuse half precision before they look at `dtype`, except for the Frobenius norm.
    "linalg_matrix_norm": lambda: torch.linalg.matrix_norm(half(4, 4).float(), 1),
    "linalg_matrix_norm.str_ord": lambda: torch.linalg.matrix_norm(half(4, 4)),
    "sum": lambda: half(4).sum(),
    "sum.dim_IntList": lambda: half(4, 4).sum(1),
    "norm.Scalar": lambda: aten.norm.Scalar(half(4), 2),
    "norm.ScalarOpt_dim": lambda: aten.norm.ScalarOpt_dim(half(4, 4), 2, [1]),
}  # fmt: skip

# Every operation gets two dtypes; the function takes the other operands' dtype.
PROMOTED = {
    "addcdiv": lambda o: torch.addcdiv(half(4), o(4), half(4)),
    "addcmul": lambda o: torch.addcmul(half(4), o(4), half(4)),
    "atan2": lambda o: torch.atan2(half(4), o(4)),
    "bilinear": lambda o: torch.bilinear(half(2, 3), o(2, 3), half(4, 3, 3), None),
    "cross": lambda o: torch.cross(half(2, 3), o(2, 3), dim=1),
    "dot": lambda o: torch.dot(half(4), o(4)),
    "vdot": lambda o: torch.vdot(half(4), o(4)),
    "grid_sampler": lambda o: torch.grid_sampler(half(*I2), o(1, 4, 4, 2), 0, 0, False),
    "index_put": lambda o: torch.index_put(half(4), (T([0, 1]),), o(2)),
    "tensordot": lambda o: torch.tensordot(half(4, 4), o(4, 4), 1),
    "scatter_add": lambda o: torch.scatter_add(half(4), 0, T([0, 1]), o(2)),
}
SAME = {
    "relu": lambda: F.relu(half(4)),
    "gelu": lambda: F.gelu(half(4)),
    "tanh": lambda: half(4).tanh(),
    "sqrt": lambda: half(4).sqrt(),
    "mean": lambda: half(4).mean(),
    "max_pool2d": lambda: F.max_pool2d(half(*I2), 2),
    "batch_norm": lambda: F.batch_norm(half(2, 4), torch.zeros(4), torch.ones(4)),
    "sum with a dtype": lambda: half(4).sum(dtype=torch.float16),
    "softmax with a dtype": lambda: half(4).softmax(0, dtype=torch.float16),
}


@contextmanager
def autocast() -> Iterator[None]:
    with emulate(), torch.autocast("cpu", torch.float16):
        yield


@pytest.mark.parametrize("name", LOWERED)
def test_an_operation_of_the_lower_precision_list_returns_float16(name: str) -> None:
    with autocast():
        assert LOWERED[name]().dtype == torch.float16


@pytest.mark.parametrize("name", RAISED)
def test_an_operation_of_the_float32_lists_returns_float32(name: str) -> None:
    with autocast():
        assert RAISED[name]().dtype == torch.float32


@pytest.mark.parametrize("name", ["softmax.int", "layer_norm", "exp", "sum", "logsumexp"])
def test_float32_is_what_it_computes_in_and_not_only_what_it_returns(name: str) -> None:
    with autocast():
        found = RAISED[name]()
    assert not torch.equal(found, found.half().float())


@pytest.mark.parametrize("name", PROMOTED)
def test_an_operation_of_the_promote_list_returns_the_widest_dtype(name: str) -> None:
    with autocast():
        assert PROMOTED[name](lambda *shape: half(*shape).float()).dtype == torch.float32
        assert PROMOTED[name](half).dtype == torch.float16


@pytest.mark.parametrize("name", SAME)
def test_an_operation_on_no_list_keeps_its_dtype(name: str) -> None:
    with autocast():
        assert SAME[name]().dtype == torch.float16


@pytest.mark.parametrize("name", [*LOWERED, *RAISED])
def test_no_operation_is_changed_outside_of_autocast(name: str) -> None:
    calls = LOWERED | RAISED
    with emulate("fp32", "fp32"):
        torch.manual_seed(1)
        found = outcome(calls[name])
    torch.manual_seed(1)
    assert found == outcome(calls[name])


def outcome(call) -> torch.dtype | str:
    """The dtype, or the error of what has no float16 kernel or meets mixed dtypes."""
    try:
        return call().dtype
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)


def test_every_listed_operation_is_in_a_table() -> None:
    listed = {*cuda_lists.LOWER_PRECISION, *cuda_lists.RECURRENT} - {
        name for name in cuda_lists.RECURRENT if name.endswith(".data") or "tanh" in name
    }
    assert set(LOWERED) == listed
    raised = {*cuda_lists.FLOAT32, *cuda_lists.FLOAT32_RESULT, *cuda_lists.FLOAT32_APPENDED}
    assert set(RAISED) == raised
    assert set(PROMOTED) == set(cuda_lists.PROMOTE)


@pytest.mark.parametrize("macro", MACROS)
def test_the_lists_are_those_of_the_installed_torch(macro: str) -> None:
    text = HEADER.read_text()
    body = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)+.*\n)", text)
    assert body is not None
    rows = re.findall(r"_\((\w+)(?:, (\w+))?\)", body[1])
    # Overloads for named tensors, which 2.13 has no more, only call the others.
    rows = [(name, overload) for name, overload in rows if "imname" not in overload]
    # Torch 2.11 also lists overloads by a dimension's name, whose tensors no Python kernel gets.
    numbered = [row for row in rows if "dimname" not in row[1].lower()]
    known = {f"{name}.{overload}" if overload else name for name, overload in numbered}
    assert known - ELSEWHERE <= set(MACROS[macro])
    if torch.__version__ >= "2.13":
        assert known - ELSEWHERE == set(MACROS[macro])


def test_binary_cross_entropy_is_refused_with_the_way_out() -> None:
    with autocast(), pytest.raises(RuntimeError, match="binary_cross_entropy_with_logits"):
        F.binary_cross_entropy(half(4), half(4))
    with emulate():
        assert F.binary_cross_entropy(torch.rand(4), torch.rand(4)).isfinite()


def test_double_precision_is_never_cast() -> None:
    x = torch.rand(4, 4, dtype=torch.float64)
    with autocast():
        assert x.softmax(-1).dtype == x.exp().dtype == x.sum().dtype == torch.float64
        assert (x @ x).dtype == torch.float64


def test_gradients_return_in_the_dtype_of_what_was_cast() -> None:
    x = half(4, 4).requires_grad_()
    with autocast():
        x.softmax(-1).square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float16
    wide = x.detach().float().requires_grad_()
    wide.softmax(-1).square().sum().backward()
    assert torch.equal(x.grad, wide.grad.half())


@pytest.mark.cuda
@pytest.mark.parametrize("name", [*LOWERED, *RAISED, *SAME])
def test_the_dtype_is_the_one_that_cuda_returns(name: str) -> None:
    call = (LOWERED | RAISED | SAME)[name]
    with autocast():
        wanted = call().dtype
    with torch.device("cuda"), torch.autocast("cuda", torch.float16):
        assert call().dtype == wanted
