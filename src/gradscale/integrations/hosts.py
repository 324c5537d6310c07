"""Which hosts are known, by the names of their classes: none is imported to find out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostKind:
    """A class of another package, and what attaches to its objects.

    Attributes:
        package: the first part of the name of the module that defines it.
        name: of the class; its subclasses are of the same kind.
        module: of `gradscale.integrations`.
        function: in that module, of the host and a `WantedScaler`.
        slots: where it keeps its scalers, as attributes from the host on, for `attach_slots`.
        half: how one has it train in float16, for whom it does not.
    """

    package: str
    name: str
    module: str
    function: str
    slots: tuple[str, ...] = ()
    half: str = ""


HOSTS = (
    HostKind("accelerate", "Accelerator", "accelerate", "attach_accelerator"),
    HostKind("transformers", "Trainer", "transformers", "attach_trainer"),
    HostKind("lightning", "Trainer", "lightning", "attach_lightning"),
    HostKind("lightning", "Fabric", "lightning", "attach_lightning"),
    HostKind("pytorch_lightning", "Trainer", "lightning", "attach_lightning"),
    HostKind("lightning_fabric", "Fabric", "lightning", "attach_lightning"),
    HostKind("deepspeed", "DeepSpeedEngine", "deepspeed", "attach_engine"),
    HostKind("megatron", "MixedPrecisionOptimizer", "megatron", "attach_megatron"),
    HostKind("keras", "Model", "keras", "attach_model"),
    HostKind("fastai", "Learner", "fastai", "attach_learner"),
    HostKind("skorch", "NeuralNet", "skorch", "attach_skorch"),
    HostKind(
        "monai",
        "AdversarialTrainer",
        "slots",
        "attach_slots",
        ("state.g_scaler", "state.d_scaler"),
        "`AdversarialTrainer(amp=True)`",
    ),
    HostKind("monai", "SupervisedTrainer", "slot_hosts", "attach_monai"),
    HostKind("ignite", "Engine", "slot_hosts", "refuse_ignite"),
    HostKind("timm", "NativeScaler", "slots", "attach_slots", ("_scaler",)),
    HostKind(
        "mmengine",
        "AmpOptimWrapper",
        "slot_hosts",
        "attach_mmengine",
        ("loss_scaler",),
        "`optim_wrapper=dict(type='AmpOptimWrapper', …)`",
    ),
    HostKind(
        "mmengine",
        "Runner",
        "slot_hosts",
        "attach_mmengine",
        ("optim_wrapper.loss_scaler",),
        "`optim_wrapper=dict(type='AmpOptimWrapper', …)`",
    ),
    HostKind(
        "ultralytics", "BaseTrainer", "slot_hosts", "attach_ultralytics", ("scaler",), "`amp=True`"
    ),
    HostKind(
        "speechbrain",
        "Brain",
        "slot_hosts",
        "attach_speechbrain",
        ("scaler",),
        "`precision='fp16'`",
    ),
    HostKind(
        "nerfstudio",
        "Trainer",
        "slot_hosts",
        "attach_nerfstudio",
        ("grad_scaler",),
        "`TrainerConfig(mixed_precision=True)`",
    ),
    HostKind(
        "nnunetv2", "nnUNetTrainer", "slots", "attach_slots", ("grad_scaler",), "a CUDA device"
    ),
    HostKind("detectron2", "AMPTrainer", "slots", "attach_slots", ("grad_scaler",), "`AMPTrainer`"),
    HostKind(
        "detectron2",
        "DefaultTrainer",
        "slots",
        "attach_slots",
        ("_trainer.grad_scaler",),
        "`cfg.SOLVER.AMP.ENABLED = True`",
    ),
    HostKind("composer", "Trainer", "slots", "attach_slots", ("state.scaler",), "`amp_fp16`"),
)
"""In the order in which they are looked for: what derives from another kind stands before it."""


def kind_of(host: object) -> HostKind | None:
    """The kind of a host, from the names of its class and of those it derives from."""
    names = {(cls.__module__.partition(".")[0], cls.__qualname__) for cls in type(host).__mro__}
    return next((kind for kind in HOSTS if (kind.package, kind.name) in names), None)
