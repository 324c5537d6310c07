"""Whole training steps that the host only starts: one CUDA graph, or one compiled graph."""

from gradscale.captured.captured_step import CapturedStep as CapturedStep
