"""Every system's checkpoint, as it is written by that system, is found and read."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from checkpoints import peers
from gradscale.doctor import examine

from . import saved

PEERS = {
    "torch": peers.Torch(7),
    "apex": peers.Apex(7),
    "deepspeed": peers.DeepSpeed(7),
    "deepspeed_fused": peers.DeepSpeedFused(7),
    "keras": peers.Keras(7),
    "flax": peers.Flax(7),
    "megatron": peers.Megatron(7),
    "paddle": peers.Paddle(7),
}
ROOTS: list[Any] = [
    lambda state: state,
    lambda state: {"model": {"w": torch.ones(3)}, "scaler": state},
    lambda state: {"a": [1, ({"callbacks": {"precision": state}},)]},
]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("form", ["archive", "older", "pickle"])
@pytest.mark.parametrize("root", ROOTS)
def test_a_state_is_found_wherever_it_is(name: str, form: str, root: Any, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    content = root(PEERS[name].save())
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "archive")
    (patient,) = examine(file).patients
    assert (patient.system, patient.scale, patient.broken) == (name, 1024.0, None)


def test_where_a_state_is_can_be_pasted_into_python(tmp_path: Path) -> None:
    checkpoint = {"x": [{"scaler": gradscale.GradScaler("cpu").state_dict()}]}
    torch.save(checkpoint, tmp_path / "x.pt")
    where = examine(tmp_path / "x.pt").patients[0].where
    assert eval(f"checkpoint{where}", {"checkpoint": checkpoint})["scale"] == 65536.0


def test_json_with_a_state_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"scaler": PEERS["torch"].save()}))
    assert examine(tmp_path / "state.json").patients[0].system == "torch"


def test_a_zero_checkpoint_holds_an_object_whose_class_is_not_here(tmp_path: Path) -> None:
    peer = peers.DeepSpeed(500, 2)
    for overflow in (True, False, False):
        peer.update(overflow)
    file = saved.zero(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt", peer)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    (patient,) = examine(file).patients
    assert patient.where == '["optimizer_state_dict"]["loss_scaler"]'
    assert (patient.system, patient.scale, patient.hysteresis_left) == ("deepspeed", 1024.0, 1)
    assert (patient.steps, patient.never_overflowed, patient.good_steps) == (3, False, 2)


def test_deepspeeds_counters_and_configuration_beside_the_state_are_read(tmp_path: Path) -> None:
    config = {"fp16": {"loss_scale_window": 200, "initial_scale_power": 12, "loss_scale": 0}}
    more = {"global_steps": 4000, "skipped_steps": 900, "ds_config": config}
    diagnosis = examine(saved.zero(tmp_path / "x.pt", peers.DeepSpeed(500), **more))
    (patient,) = diagnosis.patients
    assert patient.skips is not None and patient.skips.share == 0.225
    codes = [finding.code for finding in diagnosis.findings]
    assert "skipped-share" in codes and "arguments-differ" in codes
    said = next(f for f in diagnosis.findings if f.code == "arguments-differ").evidence
    assert "Growth_interval is 500 in the state and 200 in the run's arguments" in said


def test_megatrons_settings_come_from_its_arguments(tmp_path: Path) -> None:
    args = {"loss_scale_window": 500, "min_loss_scale": 4.0, "hysteresis": 3}
    (patient,) = examine(saved.megatron(tmp_path / "m.pt", peers.Megatron(500, 3), **args)).patients
    assert patient.where == '["optimizer"]["grad_scaler"]'
    assert (patient.interval, patient.settings["min_scale"], patient.steps) == (500, 4.0, 5000)
    assert patient.from_beside == ("min_scale", "growth_interval", "hysteresis")


OLD = {"args": argparse.Namespace(fp16=True, fp16_scale_window=128, min_loss_scale=0.5)}
NEW: dict[str, Any] = {
    "args": None,
    "cfg": {
        "common": {"fp16_scale_window": None, "min_loss_scale": 0.5},
        "optimization": {"update_freq": [4]},
        "distributed_training": {"distributed_world_size": 32},
    },
}


@pytest.mark.parametrize("more", [OLD, NEW], ids=["namespace", "configuration"])
def test_fairseqs_settings_come_from_its_arguments(more: dict[str, Any], tmp_path: Path) -> None:
    diagnosis = examine(saved.fairseq(tmp_path / "f.pt", 16.0, **more))
    (patient,) = diagnosis.patients
    assert (patient.system, patient.scale, patient.steps) == ("fairseq", 16.0, 3000)
    assert (patient.interval, patient.settings["min_scale"]) == (128, 0.5)
    missing = next(f for f in diagnosis.findings if f.code == "counters-missing")
    assert "fairseq's FP16Optimizer does not save the finite steps" in missing.evidence


def test_a_configuration_with_a_loss_scale_is_no_state(tmp_path: Path) -> None:
    torch.save({"config": {"loss_scale": 0, "lr": 1.0}, "model": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no scaler's state"):
        examine(tmp_path / "x.pt")


def test_each_loss_of_apex_is_a_patient(tmp_path: Path) -> None:
    amp = {f"loss_scaler{i}": {"loss_scale": 2.0**i, "unskipped": i} for i in range(3)}
    torch.save({"amp": amp}, tmp_path / "x.pt")
    patients = examine(tmp_path / "x.pt").patients
    assert [p.scale for p in patients] == [1.0, 2.0, 4.0]
    assert patients[1].where == '["amp"]["loss_scaler1"]'


@pytest.mark.parametrize("kind", [torch.amp.GradScaler, gradscale.GradScaler])
def test_a_scaler_that_was_pickled_whole_is_read(kind: Any, tmp_path: Path) -> None:
    scaler = kind("cpu", init_scale=256.0, growth_interval=50)
    torch.save({"scaler": scaler}, tmp_path / "x.pt")
    (patient,) = examine(tmp_path / "x.pt").patients
    assert patient.system == ("torch" if kind is torch.amp.GradScaler else "gradscale")
    assert (patient.scale, patient.interval, patient.good_steps) == (256.0, 50, 0)


def trained(skip: int = 0, **options: Any) -> gradscale.GradScaler:
    scaler = gradscale.GradScaler("cpu", **options)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(8):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).mean()
        scaler.scale(loss * (float("nan") if step < skip else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler


def test_our_own_state_says_what_became_of_the_steps(tmp_path: Path) -> None:
    torch.save({"scaler": trained(skip=2).state_dict()}, tmp_path / "x.pt")
    diagnosis = examine(tmp_path / "x.pt")
    (patient,) = diagnosis.patients
    assert patient.skips is not None and (patient.skips.steps, patient.skips.skipped) == (8, 2)
    assert patient.skips.reasons == {"nonfinite_loss": 2}
    (problem,) = diagnosis.problems
    assert problem.what == "2 steps were lost to an infinite or NaN loss, not to the scale."


def test_a_layerwise_state_says_how_many_scales_it_needs(tmp_path: Path) -> None:
    torch.save(trained(layerwise=True).state_dict(), tmp_path / "x.pt")
    (patient,) = examine(tmp_path / "x.pt").patients
    assert patient.plan is not None
    assert (patient.plan.graphs, patient.plan.scales, patient.plan.frozen) == (1, 1, ())


def test_a_static_scaler_is_not_expected_to_move(tmp_path: Path) -> None:
    scaler = trained(policy=gradscale.Static(0.5))
    torch.save(scaler.state_dict(), tmp_path / "x.pt")
    diagnosis = examine(tmp_path / "x.pt")
    assert diagnosis.patients[0].dynamic is False
    assert [f.code for f in diagnosis.problems] == ["below-one"]


def test_a_trainers_step_count_is_read_beside_its_scaler(tmp_path: Path) -> None:
    state = torch.amp.GradScaler("cpu").state_dict() | {"scale": 2.0**18, "_growth_tracker": 1}
    torch.save(state, tmp_path / "scaler.pt")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 4001}')
    (problem,) = examine(tmp_path / "scaler.pt").problems
    assert problem.code == "still-growing"
    assert "After 4,001 steps it is where 2 growths and no overflow lead" in problem.evidence


def test_a_disabled_scaler_is_said_to_be_one(tmp_path: Path) -> None:
    torch.save({"scaler": torch.amp.GradScaler("cpu", enabled=False).state_dict()}, tmp_path / "x")
    diagnosis = examine(tmp_path / "x")
    assert diagnosis.healthy and diagnosis.findings[0].code == "disabled"


@pytest.mark.parametrize("differ", [False, True])
def test_ranks_that_disagree_are_found(differ: bool, tmp_path: Path) -> None:
    for rank in range(3):
        peer = peers.Megatron(500)
        if differ and rank == 2:
            peer.update(overflow=True)
            peer.update(overflow=True)
        saved.megatron(tmp_path / "iter_0005000" / f"mp_rank_0{rank}" / "model_optim_rng.pt", peer)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5000")
    diagnosis = examine(tmp_path)
    codes = [finding.code for finding in diagnosis.problems]
    assert codes == (["ranks-differ"] if differ else [])
    if differ:
        assert "3 ranks, scales 2^9 (512), 2^10 (1024)" in diagnosis.problems[0].evidence
    else:
        (patient,) = diagnosis.patients
        assert patient.files == 3 and "mp_rank_*" in patient.where
        assert "the same in 3 files" in str(diagnosis)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pt", b"", "it is empty"),
        ("a.pt", b"hello, world\n", "no pickle that Python could have written"),
        ("a.pt", b"PK\x03\x04 and no more", "it is a damaged archive"),
        ("a.pt", b"\0" * 257 + b"ustar" + b"\0" * 300, "it is a tar archive"),
        ("a.pt", pickle.dumps({"model": {}, "epoch": 3}), "It has the keys 'model', 'epoch'"),
        ("a.json", b"{", "Expecting property name"),
        ("a.json", b"[" * 100_000, "nested too deeply|Expecting value"),
        ("a.jsonl", b'{"kind": "step"}\n', "begins with a line of kind 'run'"),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        examine(tmp_path / name)


def test_a_path_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Pass a checkpoint, a recording"):
        examine(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no checkpoint and no run"):
        examine(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(ValueError, match="dcp_to_torch"):
        examine(tmp_path)
    torch.save({"model": 1}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"none of 2 files holds .* Not read: b.pt: "):
        examine(tmp_path)
