"""What a compiled step measures, against the scaler's own pass over gradients."""

from __future__ import annotations

import torch

from gradscale.captured.tensor_gradients import measured
from gradscale.gradients.unscale import collect_from, exponent_counts, finite_amax


def test_complex_gradients_are_measured_part_by_part():
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.tensor([3.0 + 4.0j, 0.25 + 0j])
    amax, counts = measured([p.grad for p in parameters], {"amax", "exponents"})
    groups = collect_from(parameters)
    assert amax == finite_amax(groups, torch.device("cpu")) == 4.0
    assert torch.equal(counts, exponent_counts(groups, torch.device("cpu")))
