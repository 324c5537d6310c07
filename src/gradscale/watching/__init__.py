"""Watching a training loop: what its gradients hold, and what a format loses of them."""

from gradscale.watching.rows import Row as Row
