"""`GradScaler`: a training step from the scaled loss to the next scale."""

from gradscale.scaler.scaler import GradScaler as GradScaler
