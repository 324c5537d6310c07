"""What a network computes in: autocast on hardware that has the format, emulation elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch

from gradscale.emulation import emulate

PRECISIONS = {
    "fp32": "float32 throughout",
    "bf16": "bfloat16 autocast",
    "fp16": "float16 autocast",
    "e5m2": "float16 forward, float8_e5m2 gradients in every backward product",
    "e4m3": "float16 forward, float8_e4m3fn gradients in every backward product",
}
EIGHT_BIT = ("e5m2", "e4m3")


def check_precision(precision: str, choice: str) -> None:
    """Refuse what cannot be computed.

    Raises:
        ValueError: if an 8-bit precision is asked for without emulation.
    """
    if precision in EIGHT_BIT and choice == "off":
        raise ValueError(
            f"`--precision {precision} --emulate off` cannot be computed: torch has no 8-bit "
            "autocast. Leave `--emulate auto`."
        )


def emulated(precision: str, device: str, choice: str) -> bool:
    """Whether this precision is emulated; ``auto``: where the device has no fast native format.

    Example:
        >>> emulated("e5m2", "cuda", "auto"), emulated("fp32", "cpu", "on")
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
    """Forward and backward passes inside run in `precision`."""
    if precision == "fp32":
        yield
        return
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    emulating = emulated(precision, device, choice)
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(torch.device(device).type, half))
        if emulating:
            forward = "bf16" if precision == "bf16" else "fp16"
            stack.enter_context(emulate(forward=forward, backward=precision))
        elif half == torch.float16 and torch.device(device).type == "cpu":
            # oneDNN has no float16 LSTM ("could not create a primitive descriptor").
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield
