"""What every image-classification recipe shares: cross-entropy and accuracy."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.recipe import Batch, Recipe


class Classification(Recipe):
    """Images to classes. A batch is `(images (n, c, h, w), labels (n,))`."""

    metric_name = "accuracy"
    metric_is_share = True

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, the mean over the batch."""
        images, labels = batch
        # In float32, as every loss here: the mean of float16 numbers would be rounded, too.
        return F.cross_entropy(model(images).float(), labels)

    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """The share of images whose top class is right."""
        images, labels = batch
        return (model(images).argmax(dim=1) == labels).float().mean()
