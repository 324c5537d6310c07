"""Whether a CUDA graph is being captured: the host runs this once, the device many times.

What the host would learn then holds for no replay. Asking an event about its copy would break the
capture, and what a replay copies from host memory must still be there.
"""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether the current stream is being captured.

    Example:
        >>> capturing()
        False
    """
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
