"""Infinities and NaNs beside a scaler: counted exactly, named, and nothing is made of the file."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.doctor import examine
from gradscale.doctor.inert.bad_floats import FloatSearch
from gradscale.doctor.inert.containers import read_container
from gradscale.doctor.inert.flat import flatten
from gradscale.doctor.inert.tree import rebuild

STATE = torch.amp.GradScaler("cpu").state_dict()
FORMATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BAD = [math.nan, math.inf, -math.inf]


def saved(tmp_path, **beside):
    path = tmp_path / "checkpoint.pt"
    torch.save({**beside, "scaler": STATE}, path)
    return path


def codes(path):
    return [finding.code for finding in examine(path).findings if finding.code != "untested"]


def looked_through(value, readable=2**30, legacy=False):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return rebuild(flatten(read_container(file), readable))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
@given(
    size=st.integers(2, 3000),
    places=st.lists(st.tuples(st.integers(0, 2999), st.sampled_from(BAD)), max_size=6),
    seed=st.integers(0, 99),
    large=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_the_count_is_that_of_torch_in_every_format(dtype, legacy, size, places, seed, large):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if large:
        tensor[0], tensor[1] = torch.finfo(dtype).max, torch.finfo(dtype).min
    for place, value in places:
        tensor[place % size] = value
    (read,) = looked_through([tensor], legacy=legacy)
    assert read.nonfinite == int((~torch.isfinite(tensor)).sum())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_arrays_of_numpy_are_looked_through_in_either_order_of_bytes(kind, order):
    array = np.array([1.0, np.nan, 3.0, -np.inf, 0.0], dtype=f"{order}{kind}")
    file = io.BytesIO()
    torch.save([array], file)
    file.seek(0)
    (read,) = rebuild(flatten(read_container(file), 2**20))
    assert read.nonfinite == 2


def test_every_pattern_of_16_bits_is_told_as_torch_tells_it():
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
        (read,) = looked_through([every])
        assert read.nonfinite == int((~torch.isfinite(every.float())).sum())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_a_mask_is_no_number_gone_wrong(dtype, infinity):
    mask = torch.full((32, 32), infinity, dtype=dtype).triu(1)
    (read,) = looked_through([mask])
    assert read.nonfinite == 0
    mask[3, 4] = 1.0
    (read,) = looked_through([mask])
    assert read.nonfinite == 495
    (read,) = looked_through([torch.full((3,), math.nan, dtype=dtype)])
    assert read.nonfinite == 3


def test_views_with_gaps_are_left_out_and_others_are_not():
    wide = torch.ones(4, 6)
    wide[:, 5] = math.nan
    transposed, gaps = torch.full((2, 3), math.nan).t(), wide[:, :5]
    first, second = looked_through([transposed, gaps])
    assert (first.nonfinite, second.nonfinite) == (6, None)


def test_small_tensors_come_first_where_not_all_may_be_read():
    large, small = torch.full((1000,), math.nan), torch.full((10,), math.nan)
    first, second = looked_through([large, small], readable=1000)
    assert (first.nonfinite, second.nonfinite) == (None, 10)


def poisoned():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return net, optimizer


def test_a_healthy_checkpoint_has_nothing_to_say(tmp_path):
    net, optimizer = poisoned()
    mask, best = torch.full((4, 4), -math.inf).triu(1), torch.tensor(math.inf)
    path = saved(
        tmp_path, model=net.state_dict(), optimizer=optimizer.state_dict(), mask=mask, best=best
    )
    assert codes(path) == [] and examine(path).healthy


@pytest.mark.parametrize("whole", [False, True])
def test_statistics_weights_and_moments_are_named_each_with_its_way_out(tmp_path, whole):
    net, optimizer = poisoned()
    net[1].running_mean[2] = -math.inf
    net[0].weight.data[0, :3] = math.nan
    optimizer.state[net[0].bias]["exp_avg_sq"][:] = math.inf
    model = net if whole else net.state_dict()
    path = saved(tmp_path, model=model, optimizer=optimizer.state_dict())
    found = {finding.code: finding for finding in examine(path).problems}
    assert set(found) == {"bad-statistics", "bad-weights", "bad-moments"}
    assert {finding.severity for finding in found.values()} == {"error"}
    assert "1 of 8 elements of" in found["bad-statistics"].evidence
    assert "running_mean" in found["bad-statistics"].evidence
    assert "3 of 32 elements of" in found["bad-weights"].evidence
    assert "weight" in found["bad-weights"].evidence
    assert "exp_avg_sq" in found["bad-moments"].evidence
    assert "reset_running_stats" in found["bad-statistics"].way_out


def test_only_a_few_of_many_are_named(tmp_path):
    path = saved(tmp_path, model={f"layer.{i}": torch.full((2,), math.nan) for i in range(12)})
    (finding,) = examine(path).problems
    assert '["model"]["layer.4"]; and 7 tensors more.' in finding.evidence


def test_a_file_without_a_scaler_is_examined_if_its_weights_are_bad(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.tensor([1.0, math.nan])}, path)
    assert codes(path) == ["bad-weights"]
    torch.save({"weight": torch.tensor([1.0, 2.0])}, path)
    with pytest.raises(ValueError, match="holds no scaler's state"):
        examine(path)


def test_what_unpacks_to_more_than_the_file_is_not_looked_through(tmp_path):
    path, packed = saved(tmp_path, model={"w": torch.zeros(10**6)}), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
    diagnosis = examine(packed)
    assert diagnosis.healthy
    assert "1 tensor could not be looked through" in str(diagnosis)


def test_reading_stops_at_what_one_search_may_read():
    search = FloatSearch(100)
    (tensor,) = read_from([torch.ones(20)])
    assert search.nonfinite(tensor) == 0 and search.nonfinite(tensor) is None


def read_from(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return read_container(file)
