"""The precisions of a training run, and which of them can be computed."""

from __future__ import annotations

from gradscale.emulation.computing import EIGHT_BIT as EIGHT_BIT
from gradscale.emulation.computing import computing_in as computing_in
from gradscale.emulation.computing import is_emulated as is_emulated

PRECISIONS = {
    "fp32": "float32 throughout",
    "bf16": "bfloat16 autocast",
    "fp16": "float16 autocast",
    "e5m2": "float16 forward, float8_e5m2 gradients in every backward product",
    "e4m3": "float16 forward, float8_e4m3fn gradients in every backward product",
}


def check_precision(precision: str, choice: str) -> None:
    """Refuse what cannot be computed.

    Raises:
        ValueError: if an 8-bit precision is asked for without emulation.
    """
    # Half precision can, natively; torch has no autocast to 8 bits.
    if precision in EIGHT_BIT and choice == "off":
        raise ValueError(
            f"`--format {precision} --emulate off` cannot be computed: torch has no 8-bit "
            "autocast. Leave `--emulate auto`."
        )
