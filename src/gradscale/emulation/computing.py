"""What a network computes in: autocast on hardware that has the format, emulation elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch

from gradscale.emulation.emulate import emulate

EIGHT_BIT = ("e5m2", "e4m3")


def is_emulated(precision: str, device: str, choice: str) -> bool:
    """Whether this precision is emulated; ``auto``: where the device has no fast native format.

    Example:
        >>> is_emulated("e5m2", "cuda", "auto"), is_emulated("fp32", "cpu", "on")
        (True, False)
    """
    if precision == "fp32":
        return False
    if precision in EIGHT_BIT or choice == "on":
        return True
    return choice == "auto" and not _fast(precision, device)


def _fast(precision: str, device: str) -> bool:
    if torch.device(device).type != "cpu":
        return True
    if precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


@contextmanager
def computing_in(precision: str, device: str, choice: str) -> Generator[None]:
    """Forward and backward passes inside run in `precision`.

    Args:
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"e5m2"`` and ``"e4m3"``: a forward pass
            in float16 whose backward products read their gradient in 8 bits.
        device: where the network is.
        choice: ``"auto"``, ``"on"`` or ``"off"``: whether to emulate.
    """
    if precision == "fp32":
        yield
        return
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    emulating = is_emulated(precision, device, choice)
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(torch.device(device).type, half))
        if emulating:
            forward = "bf16" if precision == "bf16" else "fp16"
            stack.enter_context(emulate(forward=forward, backward=precision))
        elif half == torch.float16 and torch.device(device).type == "cpu":
            # oneDNN has no float16 LSTM ("could not create a primitive descriptor").
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield
