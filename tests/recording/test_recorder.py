"""What a recorder writes of a run, in which order, and what it costs the run."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from full_disk import file_size_limit
from gradscale import Recorder
from gradscale.backward.measurements import Counts
from gradscale.plans.window import Window
from gradscale.policies import Dynamic, Guarded, LastMaximum, Quantile, TwoSided
from gradscale.recording import read
from gradscale.recording.schema import FirstNonfinite
from gradscale.scaler import GradScaler
from gradscale.watching import watch
from gradscale.watching.rows import Row
from host_reads import HostReads

BAD = math.nan


def network(optimizer=torch.optim.SGD, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    return model, optimizer(model.parameters(), lr=0.1, **settings)


def train(model, optimizer, scaler, recorder=None, values=(1.0,)):
    for value in values:
        optimizer.zero_grad()
        loss = model(torch.full((3, 4), value)).square().mean()
        if recorder is not None:
            recorder.note_loss(loss)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


SCALERS = {"ours": GradScaler, "torch": torch.amp.GradScaler}


@pytest.mark.parametrize("name", SCALERS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_line_says_scale_loss_and_fate_of_its_step(name, fused, tmp_path):
    model, optimizer = network(fused=fused)
    scaler = SCALERS[name]("cpu", init_scale=2.0**8, growth_interval=2)
    with Recorder(tmp_path, scaler) as recorder:
        train(model, optimizer, scaler, recorder, [1.0, 1.0, BAD, 1.0])
    recording = read(tmp_path)
    steps = recording.steps
    assert [step.step for step in steps] == [0, 1, 2, 3]
    after = 2.0**9 if name == "ours" else 2.0**8  # bad data lowers torch's scale
    assert [step.scale for step in steps] == [2.0**8, 2.0**8, 2.0**9, after]
    assert [step.skipped for step in steps] == [False, False, True, False]
    assert steps[2].reason == "nonfinite_loss" and math.isnan(steps[2].loss)
    assert [step.overflow for step in steps] == [False, False, name == "torch", False]
    model, _ = network()
    loss = float(model(torch.ones(3, 4)).square().mean().detach())
    assert steps[0].loss == pytest.approx(loss, rel=1e-8)
    assert recording.end["steps"] == 4 and not recording.torn


def test_the_header_says_what_run_it_is(tmp_path):
    policy = Guarded(LastMaximum(format=torch.float16), Dynamic(growth_interval=7))
    scaler = GradScaler("cpu", policy=policy, layerwise=True)
    Recorder(tmp_path, scaler, note={"lr": 0.1}).close()
    header = read(tmp_path).header
    assert header.scaler == "gradscale.GradScaler" and header.version == 1
    assert header.policy["name"] == "Guarded"
    assert header.policy["config"]["policy"]["config"]["format"] == "fp16"
    assert header.policy["config"]["guard"]["config"]["growth_interval"] == 7
    assert header.layerwise.startswith("Windows(") and header.note == {"lr": 0.1}
    assert header.torch == str(torch.__version__) and header.started.endswith("Z")
    assert header.state is None


@pytest.mark.parametrize("policy", [Dynamic(growth_interval=9), Quantile(), TwoSided()])
def test_a_policy_in_the_middle_of_a_run_takes_its_state_along(policy, tmp_path):
    model, optimizer = network()
    scaler = GradScaler("cpu", policy=policy)
    train(model, optimizer, scaler, values=[1.0] * 4)
    Recorder(tmp_path, scaler).close()
    saved = scaler.state_dict()["gradscale"]["state"]
    state = read(tmp_path).header.state or {"scale": policy.init_scale}
    for name, value in saved.items():
        if name in state:
            again, value = torch.as_tensor(state[name]), torch.as_tensor(value)
            assert torch.allclose(again, value.to(again.dtype), rtol=0, atol=0, equal_nan=True)


def test_what_the_policy_saw_is_there_bit_for_bit(tmp_path):
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen = []
    with Recorder(tmp_path, scaler, amax=True, exponents=True):
        for _ in range(3):
            train(model, optimizer, scaler)
            seen.append(scaler.last_step.observation)
    for step, observation in zip(read(tmp_path).steps, seen, strict=True):
        assert step.amax == float(observation.amax)
        counts = observation.exponents[step.exponents.lowest + 149 :]
        assert tuple(counts[: len(step.exponents.counts)].tolist()) == step.exponents.counts
        assert sum(step.exponents.counts) == int(observation.exponents.sum())


def test_recording_changes_no_bit_of_the_training(tmp_path):
    ends = []
    for folder in (None, tmp_path):
        model, optimizer = network(torch.optim.AdamW)
        scaler = GradScaler("cpu", init_scale=2.0**6, growth_interval=2)
        recorder = None if folder is None else Recorder(folder, scaler, amax=True)
        train(model, optimizer, scaler, recorder, [1.0, 0.5, BAD, 2.0])
        ends.append((model.weight.detach().clone(), scaler.get_scale()))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_accumulated_losses_add_up_to_one_step(tmp_path):
    model, optimizer = network()
    scaler = GradScaler("cpu")
    with Recorder(tmp_path, scaler) as recorder:
        for index in range(4):
            loss = torch.tensor(1.0 + index, requires_grad=True) / 2 + 0 * model.weight.sum()
            recorder.note_loss(loss)
            scaler.scale(loss).backward()
            if index % 2:
                scaler.step(optimizer)
                scaler.update()
    assert [(step.step, step.loss) for step in read(tmp_path).steps] == [(0, 1.5), (1, 3.5)]


def test_a_loss_that_is_changed_afterwards_is_recorded_as_it_was(tmp_path):
    model, optimizer = network()
    scaler = GradScaler("cpu")
    with Recorder(tmp_path, scaler) as recorder:
        loss = model(torch.ones(3, 4)).square().mean()
        recorder.note_loss(loss)
        before = float(loss.detach())
        scaler.scale(loss).backward()
        loss.data.zero_()
        scaler.step(optimizer)
        scaler.update()
    assert read(tmp_path).steps[0].loss == pytest.approx(before, rel=1e-8)


@pytest.mark.parametrize("name", SCALERS)
def test_several_optimizers_are_one_step_that_says_who_skipped(name, tmp_path):
    first, second = network(), network()
    scaler = SCALERS[name]("cpu")
    with Recorder(tmp_path, scaler):
        for model, _ in (first, second):
            scaler.scale(model(torch.ones(3, 4)).mean()).backward()
        second[0].weight.grad.fill_(math.inf)
        for _, optimizer in (first, second):
            scaler.step(optimizer)
        scaler.update()
    (step,) = read(tmp_path).steps
    assert step.skipped and step.optimizers == (False, True) and step.overflow


def test_culprits_are_named_and_a_long_list_is_cut(tmp_path):
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu")
    scaler.name_parameters(model)
    with Recorder(tmp_path, scaler):
        loss = sum(part(torch.ones(1, 2)).sum() for part in model)
        scaler.scale(loss).backward()
        for parameter in model.parameters():
            parameter.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
    (step,) = read(tmp_path).steps
    assert step.culprits[:2] == ("0.weight", "0.bias")
    assert len(step.culprits) == 16 and step.culprits_left_out == 4


def test_torchs_scaler_gets_its_update_back(tmp_path):
    scaler = torch.amp.GradScaler("cpu")
    recorder = Recorder(tmp_path, scaler)
    assert "update" in scaler.__dict__
    recorder.close()
    assert "update" not in scaler.__dict__
    train(*network(), scaler)


def test_after_close_nothing_is_recorded(tmp_path):
    model, optimizer = network()
    scaler = GradScaler("cpu")
    recorder = Recorder(tmp_path, scaler)
    train(model, optimizer, scaler, recorder)
    recorder.close()
    recorder.close()
    train(model, optimizer, scaler, recorder)
    assert len(read(tmp_path).steps) == 1


def test_what_ended_a_run_is_written(tmp_path):
    scaler = GradScaler("cpu")
    with pytest.raises(KeyboardInterrupt), Recorder(tmp_path, scaler) as recorder:
        train(*network(), scaler, recorder)
        raise KeyboardInterrupt
    recording = read(tmp_path)
    assert recording.end == {"kind": "end", "steps": 1, "stopped": "KeyboardInterrupt"}


def test_a_run_without_a_scaler_says_when_a_step_ends(tmp_path):
    for scaler in (None, GradScaler("cpu", enabled=False)):
        path = tmp_path / f"{scaler is None}.jsonl"
        with Recorder(path, scaler) as recorder:
            recorder.note_loss(2.5)
            recorder.step()
            recorder.step()
        steps = read(path).steps
        assert [(step.step, step.scale, step.loss) for step in steps] == [(0, 1, 2.5), (1, 1, None)]


# What a watch hands over: rows of a measuring step, sooner or later.


class Watch:
    """Stands for `gradscale.watch`, so that a test can say when rows arrive."""

    format, every = "fp16", 2
    model = torch.nn.Linear(1, 1)

    def __init__(self):
        self.step, self.measures, self.callbacks = -1, False, []
        self.scaler = GradScaler("cpu")

    def on_measured(self, callback):
        self.callbacks.append(callback)

    def off_measured(self, callback):
        self.callbacks.remove(callback)

    def begin(self, measures):
        self.step, self.measures = self.step + 1, measures

    def deliver(self, step, rows):
        for callback in self.callbacks:
            callback(step, rows)

    def poll(self):
        pass

    wait = end_step = poll


def row(name="a.weight", kind="parameter", *, nonfinite=0, flushed=1, method="counted", **rest):
    counts = Counts(amax=1.5, zero=2, nonfinite=nonfinite, lowest=-25, octaves=(1, *[0] * 24, 5))
    return Row(name, kind, "fp16", counts, 16, flushed, method, Window(1, 11, 13), **rest)


def test_rows_that_arrive_late_are_in_the_line_of_their_step(tmp_path):
    model, optimizer = network()
    watch = Watch()
    scaler = watch.scaler
    with Recorder(tmp_path, scaler, watch):
        for step in range(4):
            watch.begin(measures=step % 2 == 0)
            train(model, optimizer, scaler)
            if step % 2:
                assert len(read(tmp_path).steps) == step - 1  # lines wait, and stay in order
                watch.deliver(step - 1, [row(), row("a", "module", method="extrapolated")])
                assert len(read(tmp_path).steps) == step + 1
    recording = read(tmp_path)
    assert [step.step for step in recording.steps] == [0, 1, 2, 3]
    assert [step.seen is not None for step in recording.steps] == [True, False, True, False]
    assert [(r.id, r.name, r.kind, r.order) for r in recording.rows] == [
        (0, "a.weight", "parameter", 0),
        (1, "a", "module", 1),
    ]
    seen = recording.steps[0].seen
    assert seen.method == "extrapolated" and seen.methods == ("counted", "extrapolated")
    assert seen.lost_share == pytest.approx(2 / 13) and seen.id == (0, 1)
    assert (seen.flushed, seen.nonzero, seen.zero) == ((1, 1), (6, 7), (2, 1))
    assert seen.amax == (0.585, 0.585) and (seen.lo, seen.hi) == ((1, 1), (11, 11))
    assert recording.steps[2].octaves[1].counts == (1, *[0] * 24, 5)


def test_rows_that_arrive_before_the_step_ends_are_kept_for_it(tmp_path):
    model, optimizer = network()
    watch = Watch()
    scaler = watch.scaler
    with Recorder(tmp_path, scaler, watch):
        watch.begin(measures=True)
        watch.deliver(0, [row()])
        train(model, optimizer, scaler)
        assert read(tmp_path).steps[0].seen is not None


def test_a_measurement_that_never_comes_holds_nothing_up_for_long(tmp_path):
    model, optimizer = network()
    watch = Watch()
    scaler = watch.scaler
    with Recorder(tmp_path, scaler, watch):
        watch.begin(measures=True)
        train(model, optimizer, scaler)
        for _ in range(70):
            watch.begin(measures=False)
            train(model, optimizer, scaler)
        assert len(read(tmp_path).steps) >= 7
    assert [step.step for step in read(tmp_path).steps] == list(range(71))


def test_a_skipped_step_that_was_measured_names_the_first_that_was_not_finite(tmp_path):
    model, optimizer = network()
    watch = Watch()
    scaler = watch.scaler
    with Recorder(tmp_path, scaler, watch):
        watch.begin(measures=True)
        rows = [row("head"), row("body", "module", nonfinite=2), row("body.weight", nonfinite=1)]
        watch.deliver(0, [*rows, row("act (output)", "activation", nonfinite=1)])
        train(model, optimizer, scaler, values=[BAD])
    (step,) = read(tmp_path).steps
    assert step.first_nonfinite == FirstNonfinite("body", "act (output)")
    assert step.skipped and step.reason == "nonfinite_loss" and len(step.culprits) == 2


def watched_run(path, scaler, model, steps=5, *, half=False, every=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watch(model, scaler, every=every, activations=True) as watching:
        with Recorder(path, scaler, watching):
            for _ in range(steps):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16, enabled=half):
                    loss = model(torch.ones(2, 4)).float().square().mean()
                (loss if scaler is None else scaler.scale(loss)).backward()
                if scaler is not None:
                    scaler.step(optimizer)
                    scaler.update()
    return read(path)


def deep():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


@pytest.mark.parametrize("name", SCALERS)
def test_a_real_watch_fills_the_lines_of_the_steps_it_measures(name, tmp_path):
    scaler = SCALERS[name]("cpu", init_scale=2.0**10)
    recording = watched_run(tmp_path, scaler, deep(), half=True)
    assert [step.seen is not None for step in recording.steps] == [True, True, True, False, True]
    names = {(row.name, row.kind) for row in recording.rows}
    assert {("0.weight", "parameter"), ("2.bias", "parameter"), ("2", "module")} <= names
    assert any(row.kind == "cast" for row in recording.rows)
    assert any(row.kind == "activation" for row in recording.rows)
    seen = recording.steps[0].seen
    rows = zip(seen.id, seen.exponent, strict=True)
    assert {exponent for i, exponent in rows if recording.rows[i].kind != "activation"} == {10}
    assert recording.header.measure_every == 2 and recording.header.format == "fp16"
    (structure,) = recording.structures
    assert structure.nodes == ("2", "0") and structure.edges == ((0, 1),)
    assert [recording.rows[structure.rows[node]].name for node in (0, 1)] == ["2", "0"]


def test_the_steps_of_a_layerwise_run_hold_its_plan(tmp_path):
    scaler = GradScaler("cpu", layerwise=True)
    model = deep()
    with torch.no_grad():
        model[2].weight.mul_(2.0**-30)
    recording = watched_run(tmp_path, scaler, model, half=True, every=1)
    plans = [step.plan for step in recording.steps if step.plan is not None]
    last = recording.steps[-1]
    exponents = {group.exponent for group in plans[-1].groups}
    rows = dict(zip(last.seen.id, last.seen.exponent, strict=True))
    assert exponents == {rows[row.id] for row in recording.rows if row.kind != "activation"}
    assert plans[-1].log2_scale == int(math.log2(last.scale)) and len(plans) < 5
    assert sorted(i for group in plans[-1].groups for i in group.rows) == [
        row.id for row in recording.rows if row.kind != "activation"
    ]


# Killed runs, and those that go on.

KILLED = """
    import sys, torch
    from gradscale import GradScaler, Recorder
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = GradScaler("cpu")
    recorder = Recorder(sys.argv[1], scaler, amax=True)
    step = 0
    while True:
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        print(step, flush=True)
        step += 1
"""


@pytest.mark.slow
def test_a_killed_run_is_readable_up_to_its_last_step(tmp_path):
    path = tmp_path / "recording.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 200:
                break
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
    last = int(rest[-1]) if rest else 200
    recording = read(path)
    steps = [step.step for step in recording.steps]
    assert steps == list(range(len(steps))) and len(steps) >= last + 1
    assert recording.end is None


def run(path, scaler, steps, *, at=None):
    model, optimizer = network()
    with Recorder(path, scaler, step=at) as recorder:
        train(model, optimizer, scaler, recorder, [1.0] * steps)


def test_a_resumed_recording_drops_the_lines_of_later_steps(tmp_path):
    path = tmp_path / "recording.jsonl"
    scaler = GradScaler("cpu", growth_interval=2)
    run(path, scaler, 6)
    resumed = GradScaler("cpu", init_scale=2.0**30)
    run(path, resumed, 3, at=4)
    recording = read(path)
    assert [step.step for step in recording.steps] == [0, 1, 2, 3, 4, 5, 6]
    assert [step.scale for step in recording.steps[3:5]] == [2.0**17, 2.0**30]
    assert path.read_text().count('"kind":"run"') == 1
    assert recording.end["steps"] == 7


def test_a_torn_recording_can_be_continued(tmp_path):
    path = tmp_path / "recording.jsonl"
    run(path, GradScaler("cpu"), 6)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    run(path, GradScaler("cpu"), 2, at=3)
    assert [step.step for step in read(path).steps] == [0, 1, 2, 3, 4]
    path.write_bytes(b"".join(lines[:4])[:-1])  # only a newline is missing: the line goes, too
    run(path, GradScaler("cpu"), 2, at=3)
    assert [step.step for step in read(path).steps] == [0, 1, 3, 4]
    path.write_bytes(lines[0][:10])
    run(path, GradScaler("cpu"), 2, at=0)
    assert [step.step for step in read(path).steps] == [0, 1]


def test_a_resumed_recording_keeps_the_numbers_of_its_rows(tmp_path):
    for at, names in ((None, ["a", "b"]), (1, ["b", "c"])):
        model, optimizer = network()
        watch = Watch()
        scaler = watch.scaler
        with Recorder(tmp_path, scaler, watch, step=at):
            watch.begin(measures=True)
            watch.deliver(0, [row(name) for name in names])
            train(model, optimizer, scaler)
    recording = read(tmp_path)
    assert [info.name for info in recording.rows] == ["a", "b", "c"]
    assert [step.seen.id for step in recording.steps] == [(0, 1), (1, 2)]


def test_a_recording_is_never_overwritten_by_accident(tmp_path):
    run(tmp_path, GradScaler("cpu"), 1)
    with pytest.raises(FileExistsError, match=r"there is a recording already.*by `step=`"):
        Recorder(tmp_path, GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"`Recorder\(step=-1\)` must be a whole number of at"):
        Recorder(tmp_path, GradScaler("cpu"), step=-1)


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path):
    scaler = GradScaler("cpu")
    recorder = Recorder(tmp_path, scaler)
    model, optimizer = network()
    train(model, optimizer, scaler, recorder)
    whole = (tmp_path / "recording.jsonl").stat().st_size
    with file_size_limit(whole + 20):
        with pytest.warns(UserWarning, match="cannot be written any more.*training goes on"):
            train(model, optimizer, scaler, recorder)
        train(model, optimizer, scaler, recorder)
        recorder.close()
    assert len(read(tmp_path).steps) == 1 and scaler.counters.steps == 3
    assert (tmp_path / "recording.jsonl").stat().st_size == whole, "no half line is left behind"


# What it costs.


@pytest.mark.parametrize("settings", [{}, {"amax": True}])
def test_a_recorded_step_reads_nothing_before_its_values_are_there(settings, tmp_path):
    """On a CUDA device that is not there, where every host read raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = GradScaler("cuda")
    recorder = Recorder(tmp_path, scaler, **settings)
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
        optimizer = torch.optim.AdamW([parameter], fused=True)
        for _ in range(5):
            loss = torch.zeros((), device="cuda")
            recorder.note_loss(loss)
            scaler.scale(loss)
            parameter.grad = torch.ones(3, device="cuda")
            scaler.step(optimizer)
            scaler.update()
        assert len(recorder._pending) == 5
    assert read(tmp_path).steps == ()


def test_torchs_scaler_is_recorded_without_a_read(tmp_path):
    counts = []
    for recorded in (False, True):
        model, optimizer = network()
        scaler = torch.amp.GradScaler("cpu")
        recorder = Recorder(tmp_path, scaler) if recorded else None
        train(model, optimizer, scaler, recorder)
        if recorder is not None:
            # Reading what has arrived is no wait.
            recorder._source._arrived = lambda facts: None
        with HostReads() as reads:
            train(model, optimizer, scaler, recorder)
        counts.append(reads.count)
    flags_and_scale = 2  # on the CPU they are there at once, and are read for the line
    assert counts[1] - counts[0] <= flags_and_scale


@pytest.mark.cuda
@pytest.mark.parametrize("name", SCALERS)
def test_recorded_steps_never_wait_for_cuda(name, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    scaler = SCALERS[name]("cuda")
    recorder = Recorder(tmp_path, scaler)

    def one():
        loss = torch.zeros((), device="cuda")
        recorder.note_loss(loss)
        scaler.scale(loss)
        parameter.grad = torch.ones(3, device="cuda")
        scaler.step(optimizer)
        scaler.update()

    one()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            one()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.close()
    assert [step.step for step in read(tmp_path).steps] == list(range(6))


# Nobody clears them here, which our scaler says once.
@pytest.mark.filterwarnings("ignore:a step was skipped because its gradients")
@pytest.mark.parametrize("name", SCALERS)
def test_a_skipped_step_is_over_for_the_watch_although_its_gradients_stay(name, tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = SCALERS[name]("cpu")
    with watch(model, scaler, every=1) as watching, Recorder(tmp_path, scaler, watching):
        for value in [1.0, BAD, 1.0]:
            scaler.scale(model(torch.full((3, 4), value)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert watching.step == 2
    assert all(step.seen is not None for step in read(tmp_path).steps)


def test_a_watch_must_know_the_scaler(tmp_path):
    model, scaler = deep(), GradScaler("cpu")
    for watched, words in ((None, "no scaler"), (GradScaler("cpu"), "another one")):
        message = rf"divides its gradients by the scale of {words}\. Make it with `watch\(model, s"
        with pytest.raises(ValueError, match=message):
            Recorder(tmp_path, scaler, watch(model, watched))


def test_only_known_scalers_are_followed(tmp_path):
    with pytest.raises(TypeError, match=r"`Recorder\(scaler=Linear\(…\)\)` must be a"):
        Recorder(tmp_path / "a", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"amax=True\)`: only a `gradscale.GradScaler` measures"):
        Recorder(tmp_path / "b", torch.amp.GradScaler("cpu"), amax=True)
    recorder = Recorder(tmp_path / "c", GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"`recorder.step\(\)`: this recorder follows a scaler"):
        recorder.step()
    with pytest.raises(ValueError, match=r"shape \(2,\)\)` must have one element"):
        recorder.note_loss(torch.ones(2))
