"""Whether a graph of device work is being captured: the host runs this once, the device many times.

What the host would learn then holds for no replay. Asking an event about its copy would break the
capture, and what a replay copies from host memory must still be there.
"""

from __future__ import annotations

import torch

_BACKENDS = [it for it in (torch.cuda, torch.xpu) if hasattr(it, "is_current_stream_capturing")]
"""Those that capture graphs; Intel's began to with torch 2.11 or so, and says so by the name."""


def capturing() -> bool:
    """Whether the current stream is being captured.

    Example:
        >>> capturing()
        False
    """
    return any(it.is_initialized() and it.is_current_stream_capturing() for it in _BACKENDS)
