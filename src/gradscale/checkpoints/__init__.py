"""Scaler states of torch, apex, DeepSpeed, Megatron, fairseq, Keras, Paddle and flax."""

from gradscale.checkpoints.convert import SYSTEMS as SYSTEMS
from gradscale.checkpoints.convert import detect_source as detect_source
from gradscale.checkpoints.convert import export_state as export_state
from gradscale.checkpoints.convert import import_state as import_state
from gradscale.checkpoints.convert import read_state as read_state
from gradscale.checkpoints.draft import Exported as Exported
from gradscale.checkpoints.state import ScalerSettings as ScalerSettings
from gradscale.checkpoints.state import ScalerState as ScalerState
